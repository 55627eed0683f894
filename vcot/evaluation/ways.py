"""Ways to ask the same question, the form in which a model points, and the prompt that a model of any kind is given.

    direct       the answer alone
    reason       reasoning in words, then the answer
    ground       reasoning with boxes, then the answer: in the form that the subject was tuned in, or its family's own
    look-again   a box, then the question again with what is in it as a second image (VisCoT, Shao et al. 2024)

Asked only in the form that a model is tuned in, which it never saw, a base cannot point, and "before tuning" flatters
whatever comes after. So it is asked in its own form as well (docs/stages.md): the frame, the notation and the words
that its family was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image

from vcot.evaluation.config import Way
from vcot.grounding import Box, Frame, FrameName, FrameSpec, Mention, Trace
from vcot.grounding.tags import parse, reasoning_end, split_answer
from vcot.grounding.ways import ANSWER, DIRECT, asked
from vcot.models import families
from vcot.records import Completion, Contract, Sample
from vcot.records import Image as ImageRecord
from vcot.records.sample import Turn
from vcot.tokens import prompt_text

_JSON = (
    "Locate what the answer rests on and output its bbox coordinates in JSON format, "
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]; if it is not in the image, output []. '
)
LOOK_AGAIN = "Please answer the question based on the original image and local detail image."
"""Stands before the question of the second turn, as in VisCoT's evaluation."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, whatever runs it.

    Attributes:
        sample: the question with its context, choices and earlier turns.
        images: upright RGB, those that the turns and the question show, in their order; none of a question by text.
        instruction: stands below the question.
        frame: in which boxes of the earlier turns are written.
        prefix: how the reply begins; the model goes on from there.
        dialect: in which boxes of the earlier turns are written.
        rationale: the reply begins with a rationale that is a turn of its own.
    """

    sample: Sample
    images: tuple[Image.Image, ...]
    instruction: str | None
    frame: FrameSpec
    prefix: str = ""
    dialect: str = "vcot"
    rationale: bool = False


# --- forms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How a model points. `instruction` stands below a question about an image that is asked by way of `ground`,
    `by_text` below one without; None: nothing does.

    `dialect` (one of vcot.grounding.DIALECTS) is what the model is expected to write; to read it needs no telling.
    `roles`: what is a turn of its own in the conversation, as in a contract.
    """

    family: str
    frame: FrameName
    dialect: str
    instruction: str | None
    by_text: str | None
    roles: tuple[str, ...] = ()

    @classmethod
    def tuned(cls, contract: Contract) -> Form:
        """The one that a model was tuned in."""
        below = contract.instruction
        return cls("as tuned", contract.frame_spec.name, "vcot", below, below, contract.roles)

    def below(self, sample: Sample, way: Way = "ground") -> str | None:
        """What stands below the question. Of `look-again`: in its first turn."""
        return asked(way, self.by_text if sample.image is None else self.instruction)

    def spec(self, contract: Contract) -> FrameSpec:
        """The frame, with the limits of the pixels that the model is shown."""
        return FrameSpec(self.frame, contract.min_pixels, contract.max_pixels, contract.factor)


_FRAMES = {family.name: family.frame for family in families.FAMILIES.values()}

#: By the names of `--native-form`. Frames and notations: QwenLM/Qwen3-VL, issues 721, 866, 1161, and its cookbooks;
#: InternVL's documentation of grounding.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "qwen2-vl": Form(
            "Qwen2-VL", _FRAMES["qwen2-vl"], "qwen-special",
            f"Please provide the bounding box coordinates of what the answer rests on, each after its name. {ANSWER}",
            ANSWER,
        ),
        "qwen2.5-vl": Form("Qwen2.5-VL", _FRAMES["qwen2.5-vl"], "qwen-json", _JSON + ANSWER, ANSWER),
        "qwen3-vl": Form("Qwen3-VL", _FRAMES["qwen3-vl"], "qwen-json", _JSON + ANSWER, ANSWER),
        "internvl": Form(
            "InternVL", _FRAMES["internvl"], "vcot",
            "Please provide the bounding box coordinates of what the answer rests on, each as "
            f"<ref>name</ref><box>[[x1, y1, x2, y2]]</box>. {ANSWER}",
            ANSWER,
        ),
    }
)  # fmt: skip


# --- reading a reply ---------------------------------------------------------------------------------------


def as_reply(text: str, way: Way) -> str:
    """Return a reply in the shape that all are scored in.

    Asked for the answer only, a model marks none, and everything after a <think> block is the answer.
    """
    if way != "direct" or split_answer(text)[1] is not None or not text.strip():
        return text
    end = reasoning_end(text)
    line = f"Answer: {' '.join(text[end:].split())}"
    return f"{text[:end]}\n{line}" if end else line


# --- looking again -----------------------------------------------------------------------------------------


def look_again(first: Prompt, reply: str, form: Form, frame: Frame) -> Prompt | None:
    """The second turn: what is in the first box of the reply, enlarged, beside the image, and the question again.

    None where no box can be read: there is nothing to look at, and the first reply stands.
    """
    boxes = parse(reply, frame).trace.boxes
    if not boxes or not first.images:
        return None
    sample, box = first.sample, boxes[0]
    image = sample.shown
    seen = first.images[0]
    crop = viscot_crop(box, image.width, image.height)
    across, down = seen.width / image.width, seen.height / image.height
    cut = seen.crop(
        (round(crop.x1 * across), round(crop.y1 * down), round(crop.x2 * across), round(crop.y2 * down))
    )  # fmt: skip
    digest = hashlib.sha256(cut.tobytes()).hexdigest()
    detail = ImageRecord(uri="crop", width=cut.width, height=cut.height, sha256=digest, cut_from=image.sha256)
    said = Trace((Mention("", (box,)),)) if form.dialect == "vcot" else parse(reply.strip(), frame).trace
    turns = (
        *sample.turns,
        Turn(role="user", said=Trace((prompt_text(sample, first.instruction),)), images=sample.images_asked),
        Turn(role="assistant", said=said),
    )
    again = sample.model_copy(
        update={
            "images": (*sample.images, detail), "turns": turns, "question": f"{LOOK_AGAIN}\n{sample.question}",
        }
    )  # fmt: skip
    return Prompt(again, (*first.images, cut), DIRECT, first.frame, dialect=form.dialect)


def both_turns(first: Completion, second: Completion) -> Completion:
    """One reply of the two: the box, and the answer that was given after looking at it."""
    text = f"{first_turn(first.text)}\n{as_reply(second.text, 'direct')}"
    return second.model_copy(
        update={
            "text": text, "tokens_in": first.tokens_in + second.tokens_in,
            "tokens_out": first.tokens_out + second.tokens_out, "seconds": first.seconds + second.seconds,
            "cost": None if first.cost is None or second.cost is None else first.cost + second.cost,
            "finish_reason": first.finish_reason if first.finish_reason == "length" else second.finish_reason,
            "logprobs": None if first.logprobs is None or second.logprobs is None else first.logprobs + second.logprobs,
        }
    )  # fmt: skip


def first_turn(text: str) -> str:
    """What the first turn says before its answer."""
    return split_answer(text)[0].rstrip()


LEAST_HALF_SIDE = 112
"""Pixels of the original: VisCoT's encoder sees 224 x 224, and nothing smaller is cut out for it."""


def viscot_crop(box: Box, width: int, height: int) -> Box:
    """The square that VisCoT cuts out of an image of width x height for its second turn, in whole original pixels.

    Its centre is the box's, rounded down; its half side is the longer half side of the box, rounded down, and at least
    112 pixels. A square that leaves the image is moved inside, at the left and upper border first; of one that is
    larger than the image, what lies inside is left (VisCoT's evaluation code, Shao et al. 2024, arXiv 2403.16999).

    Raises BoxError: the box leaves the image.
    """
    box = Box.from_pixels(*box.as_list(), width=width, height=height)
    half = max(box.width // 2, box.height // 2, LEAST_HALF_SIDE)
    x1, x2 = _moved_inside((box.x1 + box.x2) // 2, half, width)
    y1, y2 = _moved_inside((box.y1 + box.y2) // 2, half, height)
    return Box(x1, y1, x2, y2)


def _moved_inside(middle: float, half: float, size: int) -> tuple[float, float]:
    """Both ends of 2 * half pixels round the middle, on an axis of `size` pixels."""
    middle = max(middle, half)
    middle = min(middle, size - half)
    return max(0.0, middle - half), min(float(size), middle + half)
