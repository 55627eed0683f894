"""A teacher that sees: it finds things by their colour in the images that it is sent, and answers for every purpose.

    draw_png(("red disc", (10, 20, 60, 70)), …)      → a drawn image
    scripted_teacher(Wise({"Where is it?": Known("top left", needs="red disc")}))

What it says is right until a test spoils it: `spoil={"look": lambda asked, said: {"present": True}}`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.fakes.teacher import Answer, Asked, Say
from vcot.distill.request import packaged_prompts

COLOURS = {
    "red disc": (220, 30, 30), "blue lever": (30, 30, 220), "green gear": (30, 200, 30), "yellow cup": (230, 220, 40),
    "violet dog": (170, 40, 200),
}  # fmt: skip
PURPOSE = {prompt.text: name for name, versions in packaged_prompts().items() for prompt in versions.values()}
"""Where no schema says why it is asked, the words do."""

BACKGROUND = (200, 200, 200)


def draw_png(*things: tuple[str, tuple[int, int, int, int]], size: tuple[int, int] = (320, 240)) -> bytes:
    """A PNG in which each thing is a filled rectangle of its colour."""
    drawn = Image.new("RGB", size, BACKGROUND)
    for label, (x1, y1, x2, y2) in things:
        ImageDraw.Draw(drawn).rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLOURS[label])
    data = io.BytesIO()
    drawn.save(data, "PNG")
    return data.getvalue()


@dataclass(frozen=True)
class Known:
    """Of a question: its answer, and the thing that must be seen to answer it; "" where none has to be."""

    answer: str
    needs: str = ""


@dataclass
class Wise:
    known: Mapping[str, Known]
    spoil: Mapping[str, Callable[[Asked, Any], Any]] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Answer:
        purpose = asked.purpose or PURPOSE[asked.body["messages"][0]["content"]]
        said = getattr(self, f"_{purpose}")(asked)
        said = self.spoil[purpose](asked, said) if purpose in self.spoil else said
        if isinstance(said, Answer):
            return said
        return Say(said if isinstance(said, str) else json.dumps(said))

    def _reason(self, asked: Asked) -> dict[str, Any]:
        """Every listed object, or else the thing that the question needs, with its box."""
        objects = []
        if not asked.objects and "You may add" in asked.words:
            label = self.known[asked.question].needs
            objects = [{"number": 1, "label": label, "box": found(asked)[label]}]
        numbers = [*asked.objects, *(one["number"] for one in objects)]
        return {"objects": objects, "sentences": sentences(numbers, asked.answer), "answer": asked.answer}

    def _anchor(self, asked: Asked) -> dict[str, Any]:
        """Each thing that a sentence names, by its number where it is listed."""
        numbers = {label: number for number, label in asked.objects.items()}
        anchors = []
        for number, sentence in re.findall(r"^\((\d+)\) (.*)$", asked.words, re.M):
            for label in COLOURS:
                if label in sentence and (label in numbers or label in found(asked)):
                    box = None if label in numbers else found(asked)[label]
                    anchors.append({"sentence": int(number), "words": label, "object": numbers.get(label), "box": box})
        return {"anchors": anchors}

    def _locate(self, asked: Asked) -> dict[str, Any]:
        names = asked.words.split("Names:\n")[1].splitlines()
        return {"objects": [{"label": n, "boxes": [found(asked)[n]] if n in found(asked) else []} for n in names]}

    def _look(self, asked: Asked) -> dict[str, Any]:
        return {"present": visible(asked)}

    def _reanswer(self, asked: Asked) -> dict[str, Any]:
        known = self.known.get(asked.question, Known("something coloured"))
        seen = not known.needs or any(known.needs in found(asked, n) for n in range(len(asked.images)))
        return {"answer": known.answer if seen else "cannot tell"}

    def _caption(self, asked: Asked) -> dict[str, Any]:
        return {"caption": f"The image shows {' and '.join(f'a {label}' for label in found(asked)) or 'nothing'}."}

    def _objects(self, asked: Asked) -> dict[str, Any]:
        return {"objects": [{"label": label, "box": box, "score": 0.9} for label, box in found(asked).items()]}

    def _branch(self, asked: Asked) -> dict[str, Any]:
        there = visible(asked)
        return {"visible": there, "caption": f"A {named(asked)} of one colour." if there else ""}

    def _verdict(self, asked: Asked) -> dict[str, Any]:
        there, text = visible(asked), asked.words.splitlines()[1].removeprefix("Text: ")
        claims = [{"text": text, "supported": there, "reason": "by its colour"}]
        return {"label_supported": there, "claims": claims, "verdict": "keep" if there else "reject"}

    def _synthesis(self, asked: Asked) -> dict[str, Any]:
        numbers = list(asked.objects)
        own = {"question": asked.question, "choices": [], "answer": asked.answer, "evidence": numbers,
               "rationale": sentences(numbers, asked.answer)}  # fmt: skip
        new = []
        wanted = re.search(r"^New pairs: (\d+)$", asked.words, re.M)
        for n, label in list(asked.objects.items())[: int(wanted[1]) if wanted else 0]:
            if label in COLOURS:
                question = f"What is shown, thing {n}?"
                new.append(own | {"question": question, "answer": "something coloured", "evidence": [n],
                                  "rationale": sentences([n], "something coloured")})  # fmt: skip
        related = [{"subject": numbers[0], "predicate": "beside", "object": numbers[1]}] if len(numbers) > 1 else []
        return {"relations": related, "pairs": [own, *new]}


def sentences(numbers: Sequence[int], answer: str) -> list[dict[str, Any]]:
    """What is seen, then what follows from it."""
    see = f"I see {' and '.join(f'the [{n}]' for n in numbers)}." if numbers else "I looked for it. It is not there."
    return [{"text": see, "objects": list(numbers)}, {"text": f"So the answer is {answer}.", "objects": []}]


def named(asked: Asked) -> str:
    return asked.words.splitlines()[0].removeprefix("Name: ")


def visible(asked: Asked) -> bool:
    """The thing that is named; of what has no colour it is believed."""
    return named(asked) not in COLOURS or named(asked) in found(asked)


def found(asked: Asked, number: int = 0) -> dict[str, list[int]]:
    """What is visible in an image of the request, with its box in thousandths."""
    pixels = np.asarray(asked.images[number].convert("RGB"), dtype=int)
    height, width, _ = pixels.shape
    boxes = {}
    for label, colour in COLOURS.items():
        rows, columns = np.nonzero(np.abs(pixels - colour).sum(axis=2) < 90)
        if len(rows) > 0.01 * height * width:
            x1, x2 = round(1000 * columns.min() / width), round(1000 * (columns.max() + 1) / width)
            y1, y2 = round(1000 * rows.min() / height), round(1000 * (rows.max() + 1) / height)
            boxes[label] = [x1, y1, x2, y2]
    return boxes
