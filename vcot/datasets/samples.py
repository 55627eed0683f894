"""What a user brings: lines of our own Samples, or OpenAI chat messages or LLaVA's conversations with boxes in them.

docs/datasets.md shows a line of each. Samples need only `image` (or `images`), `question` and `answers`; what is
missing of size, digest and origin is filled in, and what is there is held against the image. Boxes are pixels of the
upright original, of several images of the first.
An `id` that several rows give becomes one of each row's own (mine.jsonl:3:id), because files repeat each other's.

Messages are of the user and the assistant by turns. The last reply is the answer; earlier ones are learned, too. Images
stand in the turns of the user, or their paths in a list `images` beside them: each at its own <image> in the texts
where there are as many of these, else all in the first turn. Within a turn they come before its text.
The reply is read in any dialect of `vcot.grounding`; in which numbers it writes its boxes has to be declared (--frame),
because no text can tell. What is stated after "Answer:" is the answer, the text before it or in <think> the reasoning;
a reply that states none is the answer itself (replies.py). A system message is left out. Conversations are read in the
same way, each round as a row (llava_cot.py) with the earlier rounds as turns, which are not learned again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from vcot.datasets.base import ConversionContext, Form, dataset, text
from vcot.datasets.inputs import Refused, Row
from vcot.datasets.llava_cot import CONVERSATIONS, asked_in, image_of, images_beside, round_of, rounds
from vcot.datasets.quality import NEUTRAL
from vcot.datasets.replies import read_question, read_reply, read_trace, split_thought
from vcot.errors import SettingsError
from vcot.grounding import Box, FrameName, FrameSpec, Mention, Trace
from vcot.records import Image, Reason, Sample
from vcot.records.sample import Turn
from vcot.settings import Options, setting
from vcot.storage.images import ImageError


class SamplesOptions(Options):
    frame: FrameName | None = setting(
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
        Form(frozenset(("images", "question", "answers")), "Samples"),
        Form(frozenset(("messages",)), "OpenAI chat messages"),
        CONVERSATIONS,
    ),
    expand=rounds,
    names_rows=True,
    called="",
    several_images=True,
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
    if strange := sorted(set(said) - _FIELDS):
        raise Refused(
            Reason.WRONG_SHAPE,
            f"a Sample has no {', no '.join(map(_misspelt, strange))[:300]} What is your own goes below 'metadata'",
        )
    if (version := said.get("version")) is not None and (type(version) is not int or version not in (1, 2)):
        raise Refused(Reason.WRONG_SHAPE, f"version {version!r:.60}; this vcot reads versions 1 and 2")
    if "image" in said and "images" in said:
        raise Refused(Reason.WRONG_SHAPE, "a row has image, or images; this one has both")
    images = [_image(one, context) for one in _entries(said, "images", list, []) or [said.get("image")]]
    image = images[0]
    origin = _entries(said, "origin", dict, {})
    dataset = str(origin.get("dataset") or context.file_of(row))
    made = context.origin(row, image, dataset, _entries(origin, "licence", str, None), others=images[1:])
    evidence = _entries(said, "evidence", list, None)
    return Sample(
        id=context.id_of(row),
        images=tuple(images),
        turns=tuple(_turn(turn, image, context) for turn in _entries(said, "turns", list, [])),
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


_FIELDS = {*Sample.model_fields, "image"}


def _turn(said: Any, image: Image, context: ConversionContext) -> Turn:
    if not (isinstance(said, dict) and {"role", "said"} <= said.keys() <= Turn.model_fields.keys()):
        shape = (
            '{"role": "user" or "assistant", "said": a text, or a list of texts and mentions}, with images or learned'
        )
        raise Refused(Reason.WRONG_SHAPE, f"a turn is {shape}; got {said!r:.80}")
    spoken = [said["said"]] if isinstance(said["said"], str) else said["said"]
    return Turn(**said | {"said": _trace(spoken, image, context)})


def _misspelt(name: str) -> str:
    meant = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.7)
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
    return image.model_copy(update={"cut_from": known["cut_from"]}) if "cut_from" in known else image


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


class _Said(NamedTuple):
    """A turn of the user with the images that it shows, as rows name them, and the reply to it."""

    asked: str
    images: list[Any]
    reply: str


def _messages(row: Row, context: ConversionContext, spec: FrameSpec) -> Sample:
    contents = _turns(row.value["messages"])
    asked = [_content(content) for content in contents[::2]]
    beside = [path for path in _entries(row.value, "images", list, []) if isinstance(path, str)]
    shown = _placed(beside, [question for question, _ in asked])
    replies = [_content(content)[0] for content in contents[1::2]]
    said = [
        _Said(question, [*inside, *more], reply)
        for (question, inside), more, reply in zip(asked, shown, replies, strict=True)
    ]
    found = [context.images.of(one) for turn in said for one in turn.images]
    return _answered(row, context, said, found, spec, learned=True)


def _conversation(row: Row, context: ConversionContext, spec: FrameSpec) -> Sample:
    spoken = round_of(row)
    reply = spoken.reply if spoken.thought is None else f"{spoken.thought}\nAnswer: {spoken.reply}"
    until = [*spoken.before, spoken]
    # Where the images of the whole row belong, later rounds say, too.
    every = [*until, *spoken.after]
    shown = _placed(images_beside(row.value), [one.question for one in every])[: len(until)]
    replies = [*(one.reply for one in spoken.before), reply]
    said = [_Said(one.question, seen, text) for one, seen, text in zip(until, shown, replies, strict=True)]
    found = [image_of(row, context, one) for turn in said for one in turn.images]
    return _answered(row, context, said, found, spec, learned=False)


def _placed(images: Sequence[Any], texts: Sequence[str]) -> list[list[Any]]:
    """Images beside a conversation, by the texts of the user in which they stand: by their places in these, or all in
    the first."""
    counts = [text.count("<image>") for text in texts]
    if sum(counts) != len(images):
        counts = [len(images), *(0 for _ in texts[1:])]
    left = iter(images)
    return [[next(left) for _ in range(count)] for count in counts]


def _answered(
    row: Row, context: ConversionContext, said: Sequence[_Said], images: Sequence[Image], spec: FrameSpec, *,
    learned: bool,
) -> Sample:  # fmt: skip
    """learned: whether replies before the last are, because no other row learns them."""
    if not images:
        raise Refused(Reason.WRONG_SHAPE, "a row has an image or several; none is shown up to this question")
    image = images[0]
    trace, answer = read_reply(said[-1].reply, image, spec, said[-1].asked)
    turns: list[Turn] = []
    for turn in said[:-1]:
        asked = read_question(turn.asked.replace("<image>", "") if turn.images else asked_in(turn.asked))
        replied = read_trace("\n".join(filter(None, map(str.strip, split_thought(turn.reply)))), image, spec)
        if not replied.parts:
            raise Refused(Reason.NO_ANSWER, f"nothing is replied to {asked!r:.80}")
        turns.append(Turn(role="user", said=Trace((asked,)), images=len(turn.images)))
        turns.append(Turn(role="assistant", said=replied, learned=learned))
    reasoned = bool(trace.parts) or (learned and bool(turns))  # a place, then the answer, is reasoning by turns
    return Sample(
        id=context.id_of(row),
        images=tuple(images),
        turns=tuple(turns),
        question=read_question(asked_in(said[-1].asked)),
        answers=(answer,),
        reasoning=(trace,) if reasoned else (),
        evidence=_gathered(trace),
        metadata=_entries(row.value, "metadata", dict, {}),
        origin=context.origin(row, image, context.file_of(row), others=images[1:]),
    )


def _turns(said: Any) -> list[Any]:
    turns = [t for t in said if isinstance(t, dict) and t.get("role") != "system"] if isinstance(said, list) else []
    if not turns or [turn.get("role") for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        roles = ", ".join(str(turn.get("role")) for turn in turns)[:80]
        raise Refused(
            Reason.WRONG_SHAPE, f"messages are one of the user, then one of the assistant, and so on; got {roles!r}"
        )
    return [turn.get("content") for turn in turns]


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


def _gathered(trace: Trace) -> tuple[Mention, ...] | None:
    """The places of a reasoning, one mention for each label; None where it has none."""
    places: dict[str, list[Box]] = {}
    for mention in trace.mentions:
        places.setdefault(mention.label, []).extend(mention.boxes)
    return tuple(Mention(label, tuple(dict.fromkeys(boxes))) for label, boxes in places.items()) or None
