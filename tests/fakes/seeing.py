"""A teacher that really looks: behind the endpoint the rehearsal model answers about the image that was sent.

    seeing = Seeing(Eyes(Path("examples/rehearsal")))
    scripted_teacher(seeing)        reason, locate, look and reanswer; refuses other purposes (400)

The model is asked in the words that it was taught (vcot/datasets/scenes.py), about the pixels of the request, and
greedily. Of a request it gets a question or a name, never the right answer that the request states: so it may
contradict that answer, or find nothing, and says so.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image

from tests.fakes.teacher import Answer, Asked, Refuse, Say
from tests.fakes.wise import PURPOSE, named
from vcot.grounding import Box, FrameName, FrameSpec, Trace, parse, split_answer
from vcot.models.loading import generate, load_base
from vcot.tokens import load_processor

MIN_PIXELS, MAX_PIXELS = 56 * 56, 112 * 112
"""Of an image, as the model was trained."""

LONGEST_REPLY = 90
"""Tokens; three boxes and the words around them have some 70."""


class Seen(NamedTuple):
    """What the model says of an image; boxes in pixels of that image."""

    trace: Trace
    answer: str


class Eyes:
    """The rehearsal model. Safe to share between threads; they take turns. The same question about the same pixels is
    answered once."""

    def __init__(self, base: Path) -> None:
        self._model = load_base(base, dtype="float32")
        self._processor = load_processor(base, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        self._turn = threading.Lock()
        self._known: dict[tuple[str, bytes], str] = {}

    def ask(self, image: Image.Image, question: str) -> Seen:
        image = image.convert("RGB")
        key = question, image.tobytes()
        with self._turn:
            if key not in self._known:
                self._known[key] = self._say(image, question)
        reasoning, answer = split_answer(self._known[key])
        return Seen(parse(reasoning, FrameSpec("thousandths").on(*image.size)).trace, answer or "")

    def _say(self, image: Image.Image, question: str) -> str:
        asked = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        batch = self._processor.apply_chat_template(
            [[asked]], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        words = self._processor.tokenizer
        ends = words.eos_token_id, words.pad_token_id
        (tokens,) = generate(
            self._model, batch, max_new_tokens=LONGEST_REPLY, eos_token_ids=ends, pad_token_id=words.pad_token_id
        )
        return cast(str, words.decode([token for token in tokens if token not in ends]))


class Seeing:
    """Answers a request with what its eyes see, as the JSON that the prompts ask for."""

    def __init__(self, eyes: Eyes) -> None:
        self.eyes = eyes

    def __call__(self, asked: Asked) -> Answer:
        purpose = asked.purpose or PURPOSE[asked.body["messages"][0]["content"]]
        says = {"reason": self._reason, "locate": self._locate, "look": self._look, "reanswer": self._reanswer}
        if purpose not in says:
            return Refuse(400, f"the rehearsal model understands nothing of {purpose!r}")
        return Say(json.dumps(says[purpose](asked)))

    def _reason(self, asked: Asked) -> Mapping[str, Any]:
        """Its own reasoning about the question, with a number in the place of each box, and its own answer."""
        image = asked.images[0]
        trace, answer = self.eyes.ask(image, asked.question)
        number, text, objects = first_free(asked.words), "", []
        for part in trace.parts:
            if isinstance(part, str):
                text += part
                continue
            numbers = range(number, number := number + len(part.boxes))
            text += " and ".join(f"[{n}]" for n in numbers)
            objects += [
                {"number": n, "label": part.label, "box": written(box, image, asked.words)}
                for n, box in zip(numbers, part.boxes, strict=True)
            ]
        return {
            "objects": objects,
            "sentences": [{"text": text, "objects": [one["number"] for one in objects]}],
            "answer": answer,
        }

    def _locate(self, asked: Asked) -> Mapping[str, Any]:
        image, found = asked.images[0], []
        for name in asked.words.split("Names:\n")[1].splitlines():
            boxes = self.eyes.ask(image, f"Point at every {name}.").trace.boxes
            found.append({"label": name, "boxes": [written(box, image, asked.words) for box in boxes]})
        return {"objects": found}

    def _look(self, asked: Asked) -> Mapping[str, Any]:
        return {"present": self.eyes.ask(asked.images[0], f"Is there a {named(asked)}?").answer == "yes"}

    def _reanswer(self, asked: Asked) -> Mapping[str, Any]:
        """About what the cut-outs show where they lie; the rest of the image is grey."""
        cuts = asked.images
        lie = [tuple(int(n) / 100 for n in four) for four in _LIES.findall(asked.words)]
        return {"answer": self.eyes.ask(put_together(cuts, lie) if lie else cuts[0], asked.question).answer}


_LIES = re.compile(r"^Cut-out \d+ lies across (\d+)-(\d+) %, down (\d+)-(\d+) %\.$", re.M)
_ACROSS = 320
"""Pixels of an image that is put together."""


def put_together(cuts: Sequence[Image.Image], lie: Sequence[tuple[float, ...]]) -> Image.Image:
    """An image of which only these cut-outs are known. `lie`: x1, x2, y1, y2 of each, as shares of the image."""
    x1, x2, y1, y2 = lie[0]
    shape = (cuts[0].height / (y2 - y1)) / (cuts[0].width / (x2 - x1))
    whole = Image.new("RGB", (_ACROSS, round(_ACROSS * shape)), (128, 128, 128))
    for cut, (x1, x2, y1, y2) in zip(cuts, lie, strict=True):
        left, right = round(x1 * whole.width), round(x2 * whole.width)
        top, bottom = round(y1 * whole.height), round(y2 * whole.height)
        whole.paste(cut.convert("RGB").resize((right - left, bottom - top)), (left, top))
    return whole


def first_free(words: str) -> int:
    """The number of the first object that may be added; 1 where nothing may be, and nothing is listed."""
    told = re.search(r"^You may add objects, from \[(\d+)\] on", words, re.M)
    return int(told[1]) if told else 1


def written(box: Box, image: Image.Image, words: str) -> list[float]:
    """A box of this image in the numbers that the words declare."""
    told = re.search(r"in ([a-z ]+) of the image .*? run over 0\.\.", words)
    assert told is not None, words
    return list(FrameSpec(cast(FrameName, told[1].replace(" ", "_"))).on(*image.size).encode(box))
