"""What a user brings: lines of our own Samples, or OpenAI chat messages or LLaVA's conversations with boxes in them.

docs/datasets.md shows a line of each. Samples need only `image`, `question` and `answers`; what is missing of size,
digest and origin is filled in, and what is there is held against the image. Boxes are pixels of the upright original.
An `id` that several rows give becomes one of each row's own (mine.jsonl:3:id), because files repeat each other's.

Messages are one question and one reply, with the image in the question, or its path in a list `images` beside them.
The reply is read in any dialect of `vcot.grounding`; in which numbers it writes its boxes has to be declared (--frame),
because no text can tell. What is stated after "Answer:" is the answer, the text before it the reasoning; a reply that
states none is the answer itself. A system message is left out. Conversations are read in the same way, each round as
a row (llava_cot.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

from vcot.datasets.base import BOX_REASONS, ConversionContext, Form, dataset, text
from vcot.datasets.inputs import Refused, Row
from vcot.datasets.llava_cot import CONVERSATIONS, asked_in, earlier_turns, image_of, round_of, rounds
from vcot.datasets.quality import NEUTRAL
from vcot.errors import SettingsError
from vcot.grounding import Box, FrameSpec, Mention, Trace, tags
from vcot.records import Image, Reason, Sample
from vcot.settings import Options, setting
from vcot.storage.images import ImageError


class SamplesOptions(Options):
    frame: Literal["thousandths", "pixels", "resized_pixels", "padded_square", "fractions"] | None = setting(
        None, "samples: in which numbers the texts of chat messages write their boxes; needed for those, never guessed"
    )
    min_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)
    max_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)

    def faults(self) -> Iterator[str]:
        if self.frame == "resized_pixels" and (self.min_pixels is None or self.max_pixels is None):
            yield "--frame=resized_pixels needs --min-pixels and --max-pixels, the limits of the processor"

    @cached_property
    def spec(self) -> FrameSpec | None:
        return self.frame and FrameSpec(self.frame, self.min_pixels, self.max_pixels)


@dataset(
    "samples",
    "lines of Samples, OpenAI messages or LLaVA's conversations with boxes in a declared --frame",
    "--input-uri chats.jsonl --images-uri images --frame thousandths",
    options=SamplesOptions,
    forms=(
        Form(frozenset(("image", "question", "answers")), "Samples"),
        Form(frozenset(("messages",)), "OpenAI chat messages"),
        CONVERSATIONS,
    ),
    expand=rounds,
    names_rows=True,
    called="",
)
def sample(row: Row, context: ConversionContext[SamplesOptions]) -> Sample:
    forms = [form for form in ("messages", "conversations", "question") if form in row.value]
    if len(forms) > 1:
        raise Refused(Reason.WRONG_SHAPE, f"a row is of one form; this one has {' and '.join(forms)}")
    if "messages" in row.value:
        return _messages(row, context, _declared(row, context))
    if "conversations" in row.value:
        return _conversation(row, context, _declared(row, context))
    return _ours(row, context)


# ------------------------------------------------------------------------------------------------ our own lines


def _ours(row: Row, context: ConversionContext) -> Sample:
    said = row.value
    if strange := sorted(set(said) - set(Sample.model_fields)):
        raise Refused(
            Reason.WRONG_SHAPE,
            f"a Sample has no {', no '.join(map(_misspelt, strange))[:300]} What is your own goes below 'metadata'",
        )
    if (version := said.get("version")) is not None and (type(version) is not int or version != 1):
        raise Refused(Reason.WRONG_SHAPE, f"version {version!r:.60}; this vcot reads version 1")
    image = _image(said.get("image"), context)
    origin = _entries(said, "origin", dict, {})
    dataset = str(origin.get("dataset") or context.file_of(row))
    made = context.origin(row, image, dataset, _entries(origin, "licence", str, None))
    evidence = _entries(said, "evidence", list, None)
    return Sample(
        id=context.id_of(row),
        image=image,
        question=text(said, "question", Reason.NO_QUESTION),
        context=said.get("context"),
        choices=said.get("choices"),
        answers=_answers(said),
        reasoning=tuple(_trace(trace, image, context) for trace in _entries(said, "reasoning", list, [])),
        evidence=None if evidence is None else tuple(_mention(mention, image, context) for mention in evidence),
        metadata=_entries(said, "metadata", dict, {}),
        origin=made.model_copy(
            update={"teacher": _entries(origin, "teacher", str, None), "row": str(origin.get("row") or row.id)}
        ),
    )


def _misspelt(name: str) -> str:
    meant = difflib.get_close_matches(name, Sample.model_fields, n=1, cutoff=0.7)
    return f"{name!r}; did you mean {meant[0]!r}?" if meant else f"{name!r}."


def _entries(said: Mapping[str, Any], name: str, kind: type, missing: Any) -> Any:
    value = said.get(name)
    if value is not None and not isinstance(value, kind):
        raise Refused(Reason.WRONG_SHAPE, f"{name} is no {'object' if kind is dict else 'list'}: {value!r:.80}")
    return missing if value is None else value


def _image(said: Any, context: ConversionContext) -> Image:
    told: Any = {"uri": said} if isinstance(said, str) else said
    if not (isinstance(told, dict) and isinstance(told.get("uri"), str)):
        raise Refused(Reason.WRONG_SHAPE, f'image is a path, or {{"uri": a path}}; got {said!r:.60}')
    image = context.images.find(text(told, "uri", Reason.WRONG_SHAPE))
    known = {name: value for name, value in told.items() if value is not None}
    size = (known.get("width", image.width), known.get("height", image.height))
    if size != (image.width, image.height):
        raise Refused(
            Reason.IMAGE_SIZE_DIFFERS,
            f"the row says {size[0]} x {size[1]} pixels, {image.uri} has {image.width} x {image.height}",
        )
    if known.get("sha256", image.sha256) != image.sha256:
        raise ImageError(image.uri, "changed", f"sha256 is {image.sha256[:12]}…, the row says {known['sha256']!r:.20}")
    return image


def _answers(said: Mapping[str, Any]) -> tuple[str, ...]:
    answers = said.get("answers")
    answers = [answers] if isinstance(answers, str) else answers
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) and a.strip() for a in answers)):
        raise Refused(Reason.NO_ANSWER, f"answers are one text or more; got {answers!r:.80}")
    return tuple(answers)


def _trace(said: Any, image: Image, context: ConversionContext) -> Trace:
    if not isinstance(said, list):
        raise Refused(Reason.WRONG_SHAPE, f"a reasoning is a list of texts and mentions; got {said!r:.80}")
    return Trace(tuple(part if isinstance(part, str) else _mention(part, image, context) for part in said))


def _mention(said: Any, image: Image, context: ConversionContext) -> Mention:
    if not (isinstance(said, dict) and set(said) == {"label", "boxes"} and isinstance(said["label"], str)):
        raise Refused(Reason.WRONG_SHAPE, f'a mention is {{"label": …, "boxes": [[x1, y1, x2, y2]]}}; got {said!r:.80}')
    return Mention(said["label"] if said["label"].strip() else NEUTRAL, context.boxes(said["boxes"], image))


# ------------------------------------------------------------------------------- OpenAI messages, LLaVA's conversations


def _declared(row: Row, context: ConversionContext[SamplesOptions]) -> FrameSpec:
    """Raises SettingsError: nobody said in which numbers the texts write boxes."""
    if context.own.spec is None:
        raise SettingsError(
            f"--frame is missing: {row.id} is a chat message, and in which numbers the texts of such rows write boxes "
            "has to be said: thousandths, pixels, resized_pixels, padded_square or fractions"
        )
    return context.own.spec


def _messages(row: Row, context: ConversionContext, spec: FrameSpec) -> Sample:
    asked, replied = _turns(row.value["messages"])
    question, images = _content(asked)
    images += [p for p in _entries(row.value, "images", list, []) if isinstance(p, str)]
    if len(images) != 1:
        raise Refused(Reason.WRONG_SHAPE, f"a row has one image; this one has {len(images)}")
    image = context.images.of(images[0])
    return _answered(row, context, image, asked_in(question), None, _content(replied)[0], spec)


def _conversation(row: Row, context: ConversionContext, spec: FrameSpec) -> Sample:
    spoken = round_of(row)
    image = image_of(row, context)
    reply = spoken.reply if spoken.thought is None else f"{spoken.thought}\nAnswer: {spoken.reply}"
    earlier = earlier_turns([(asked_in(r.question), _reply(r.reply, image, spec)[1]) for r in spoken.before])
    return _answered(row, context, image, asked_in(spoken.question), earlier, reply, spec)


def _answered(
    row: Row, context: ConversionContext, image: Image, question: str, earlier: str | None, reply: str, spec: FrameSpec
) -> Sample:
    trace, answer = _reply(reply, image, spec)
    return Sample(
        id=context.id_of(row),
        image=image,
        question=question,
        context=earlier,
        answers=(answer,),
        reasoning=(trace,) if trace.parts else (),
        evidence=_gathered(trace),
        metadata=_entries(row.value, "metadata", dict, {}),
        origin=context.origin(row, image, context.file_of(row)),
    )


def _turns(said: Any) -> tuple[Any, Any]:
    turns = [t for t in said if isinstance(t, dict) and t.get("role") != "system"] if isinstance(said, list) else []
    if [turn.get("role") for turn in turns] != ["user", "assistant"]:
        roles = ", ".join(str(turn.get("role")) for turn in turns)[:80]
        raise Refused(Reason.WRONG_SHAPE, f"messages are one of the user, then one of the assistant; got {roles!r}")
    return turns[0].get("content"), turns[1].get("content")


def _content(said: Any) -> tuple[str, list[str]]:
    """The text of a message and the images in it."""
    if isinstance(said, str):
        return said, []
    parts = [part for part in said if isinstance(part, dict)] if isinstance(said, list) else []
    texts = [part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)]
    return "\n".join(texts), [uri for part in parts if (uri := _address(part)) is not None]


def _address(part: Mapping[str, Any]) -> str | None:
    if part.get("type") not in ("image_url", "image"):
        return None
    said = part.get("image_url", part.get("image"))
    said = said.get("url") if isinstance(said, dict) else said
    if not isinstance(said, str):
        raise Refused(Reason.WRONG_SHAPE, f"an image is a URL, a path or a data URL; got {said!r:.60}")
    return said


def _reply(said: str, image: Image, spec: FrameSpec) -> tuple[Trace, str]:
    """Reasoning and answer. A reply that states no answer is the answer, and its boxes stay in the reasoning."""
    frame = spec.on(image.width, image.height)
    before, answer = tags.split_answer(said)
    parsed = tags.parse(before, frame)
    if parsed.faults:
        fault = parsed.faults[0]
        raise Refused(
            BOX_REASONS[fault.kind],
            f"{fault.text[:80]!r} ({fault.kind.replace('_', ' ')}): a label is followed by its box, [x1, y1, x2, y2] "
            f"with x1 < x2 and y1 < y2; the frame {frame.name} runs over {frame.range} on an image of "
            f"{image.width} x {image.height} pixels",
        )
    trace = parsed.trace
    if answer is None:
        answer = " ".join(trace.text.split())
        trace = trace if trace.boxes else Trace(())
    if not answer:
        raise Refused(Reason.NO_ANSWER, f"no answer is stated in {said[-80:]!r}")
    return trace, answer


def _gathered(trace: Trace) -> tuple[Mention, ...] | None:
    """The places of a reasoning, one mention for each label; None where it has none."""
    places: dict[str, list[Box]] = {}
    for mention in trace.mentions:
        places.setdefault(mention.label, []).extend(mention.boxes)
    return tuple(Mention(label, tuple(dict.fromkeys(boxes))) for label, boxes in places.items()) or None
