"""A teacher that really looks: behind the endpoint the rehearsal model answers about the image that was sent.

    scripted_teacher(Seeing(Path("examples/rehearsal")))        reason, locate, look and reanswer, in thousandths

The model is asked in the words that it was taught (vcot/datasets/scenes), about the pixels of the request, and
greedily. Of a request it gets a question or a name, never the right answer that the request states: so it may
contradict that answer, or find nothing, and says so.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any, cast

from PIL import Image

from tests.fakes.teacher import Answer, Asked, Say
from tests.fakes.wise import named
from vcot.grounding import Box, FrameSpec, Trace, parse, split_answer
from vcot.models.decoding import Decoding
from vcot.models.generation import generate
from vcot.models.loading import load_base
from vcot.tokens import load_processor

THOUSANDTHS = FrameSpec("thousandths")
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
"""Of an image, as the model was trained."""

LONGEST_REPLY = 90
"""Tokens; three boxes and the words around them have some 70."""

ACROSS = 320
"""Pixels of an image that is put together."""


class Seeing:
    """Answers a request with what the rehearsal model sees, as the JSON that the prompts ask for. Threads take turns;
    the same question about the same pixels is answered once."""

    def __init__(self, base: Path) -> None:
        self._model = load_base(base, dtype="float32")
        self._processor = load_processor(base, **PIXELS)
        self._turn = threading.Lock()
        self._known: dict[tuple[str, bytes], str] = {}

    def __call__(self, asked: Asked) -> Answer:
        says = {"reason": self._reason, "locate": self._locate, "look": self._look, "reanswer": self._reanswer}
        return Say(json.dumps(says[asked.purpose](asked)))

    def ask(self, image: Image.Image, question: str) -> tuple[Trace, str]:
        """What the model says of an image; boxes in pixels of that image."""
        key = question, image.tobytes()
        with self._turn:
            if key not in self._known:
                self._known[key] = self._say(image, question)
        reasoning, answer = split_answer(self._known[key])
        return parse(reasoning, THOUSANDTHS.on(*image.size)).trace, answer or ""

    def _say(self, image: Image.Image, question: str) -> str:
        asked = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        batch = self._processor.apply_chat_template(
            [[asked]], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        words = self._processor.tokenizer
        ends = words.eos_token_id, words.pad_token_id
        ((reply,),) = generate(self._model, batch, Decoding(LONGEST_REPLY), eos_token_ids=ends)
        return cast(str, words.decode([token for token in reply.ids if token not in ends]))

    def _reason(self, asked: Asked) -> dict[str, Any]:
        """Its own reasoning about the question, with a number in the place of each box, and its own answer."""
        trace, answer = self.ask(asked.images[0], asked.question)
        text, objects = "", list[dict[str, Any]]()
        for part in trace.parts:
            if isinstance(part, str):
                text += part
                continue
            added = [
                {"number": n, "label": part.label, "box": written(box, asked.images[0])}
                for n, box in enumerate(part.boxes, len(objects) + 1)
            ]
            text, objects = text + " and ".join(f"[{one['number']}]" for one in added), objects + added
        said = [{"text": text, "objects": [one["number"] for one in objects]}]
        return {"objects": objects, "sentences": said, "answer": answer}

    def _locate(self, asked: Asked) -> dict[str, Any]:
        image, found = asked.images[0], []
        for name in asked.words.split("Names:\n")[1].splitlines():
            boxes = self.ask(image, f"Point at every {name}.")[0].boxes
            found.append({"label": name, "boxes": [written(box, image) for box in boxes]})
        return {"objects": found}

    def _look(self, asked: Asked) -> dict[str, Any]:
        return {"present": self.ask(asked.images[0], f"Is there a {named(asked)}?")[1] == "yes"}

    def _reanswer(self, asked: Asked) -> dict[str, Any]:
        """About what the cut-outs show where they lie; the rest of the image is grey."""
        cuts = asked.images
        lie = [
            tuple(int(n) / 100 for n in four)
            for four in re.findall(r"^Cut-out \d+ lies across (\d+)-(\d+) %, down (\d+)-(\d+) %\.$", asked.words, re.M)
        ]
        if not lie:
            return {"answer": self.ask(cuts[0], asked.question)[1]}
        x1, x2, y1, y2 = lie[0]
        shape = (cuts[0].height / (y2 - y1)) / (cuts[0].width / (x2 - x1))
        whole = Image.new("RGB", (ACROSS, round(ACROSS * shape)), (128, 128, 128))
        for cut, (x1, x2, y1, y2) in zip(cuts, lie, strict=True):
            left, right = round(x1 * whole.width), round(x2 * whole.width)
            top, bottom = round(y1 * whole.height), round(y2 * whole.height)
            whole.paste(cut.resize((right - left, bottom - top)), (left, top))
        return {"answer": self.ask(whole, asked.question)[1]}


def written(box: Box, image: Image.Image) -> list[float]:
    return list(THOUSANDTHS.on(*image.size).encode(box))
