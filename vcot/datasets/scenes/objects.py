"""Scenes of coloured shapes: what is in them, and questions about where things are, how many, and whether at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vcot.datasets.base import QuestionKind

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

BoxXYXY = tuple[float, float, float, float]
COLOURS: tuple[str, ...] = ("red", "yellow", "green", "blue", "violet", "white", "black")
SHAPES: tuple[str, ...] = ("disc", "square", "triangle", "star", "ring", "blob")

PLACES: tuple[tuple[str, str, str], ...] = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)

# Things that are never drawn. A question about one of them has the true answer "I see none",
# so that a model does not learn to point at whatever stands out, no matter what was asked.
NEVER_DRAWN: tuple[str, ...] = (
    "dog", "brown horse", "cup", "old wooden chair", "tall man", "tree", "blue car", "small bird",
    "kitchen table", "street sign", "apple", "left hand", "green bottle", "grey cat", "clock",
    "book on the shelf", "window", "woman with a hat", "bicycle", "white cloud", "traffic light",
    "bowl", "red umbrella", "laptop", "front door", "train", "boat", "shoe", "orange slice", "lamp",
    "white house", "black dog", "yellow bus", "small key", "large stone wall", "face", "lever",
    "plate of rice", "sheep", "white bread", "phone", "gear", "violet flower", "leaf", "bone",
    "muscle", "tooth", "bear", "wheel", "glove", "button", "spoon", "fish", "snow", "egg", "moon",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A labelled object and its tight visible extent, in float pixels of the scene's image.

    `box` is (x1, y1, x2, y2), x to the right, y down, inside the image.
    """

    colour: str
    shape: str
    box: BoxXYXY

    @property
    def label(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """An RGB image and the objects that can be asked about, in drawing order."""

    image: Image.Image
    objects: tuple[SceneObject, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(o.label for o in self.objects)

    def boxes(self, label: str) -> tuple[BoxXYXY, ...]:
        """The boxes of every object with this label, from left to right."""
        return tuple(sorted(o.box for o in self.objects if o.label == label))


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What kind of scene to draw.

    `width` and `height` are pixels of the image. `rough` in [0, 1] is how untidy the scenes
    are: 0 draws flat shapes on plain ground, 1 the full range. `repeats` is the share of scenes
    in which one label stands for two or three objects.
    """

    width: int = 160
    height: int = 120
    least: int = 1
    most: int = 3
    rough: float = 1.0
    repeats: float = 0.12
    smallest: float = 0.09
    largest: float = 0.5


@dataclass(frozen=True, slots=True)
class Pointing:
    """A label and the boxes it points at, float pixels of the scene's image."""

    label: str
    boxes: tuple[BoxXYXY, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene with its true reasoning (text and pointings) and answer."""

    kind: QuestionKind
    text: str
    reasoning: tuple[str | Pointing, ...]
    answer: str


# ----------------------------------------------------------------------------------------------------- questions


def place(box: BoxXYXY, width: int, height: int) -> str:
    """Which ninth of the image the box's centre lies in."""
    col = min(2, int((box[0] + box[2]) / 2 / width * 3))
    row = min(2, int((box[1] + box[3]) / 2 / height * 3))
    return PLACES[row][col]


WHERE = ("Where is the {0}?", "Where is the {0}?", "Where do you see the {0}?", "Find the {0}.",
         "Locate the {0}.", "Point at the {0}.", "Show me the {0}.")  # fmt: skip
COUNT = ("How many {0}s are there?", "How many {0}s do you see?", "Count the {0}s.")
POINT = ("Point at every {0}.", "Where are the {0}s?", "Find every {0}.")
PRESENCE = ("Is there a {0}?", "Do you see a {0}?", "Is a {0} in the picture?")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def ask_where(rng: np.random.Generator, scene: Scene, label: str) -> Question:
    """Where is the one object of this label? Answered "no" where there is none."""
    text = _pick(rng, WHERE).format(label)
    boxes = scene.boxes(label)
    if not boxes:
        return Question("where", text, (f"I see no {label}.",), "no")
    if len(boxes) > 1:
        raise ValueError(f"{len(boxes)} objects are called {label!r}; 'where' needs one")
    spot = place(boxes[0], scene.image.width, scene.image.height)
    reasoning = ("The ", Pointing(label, boxes), f" is at the {spot}.")
    return Question("where", text, reasoning, spot)


def ask_count(
    rng: np.random.Generator, scene: Scene, label: str, kind: Literal["count", "point"] = "count"
) -> Question:
    """How many are there, and where is each?"""
    text = _pick(rng, COUNT if kind == "count" else POINT).format(label)
    boxes = scene.boxes(label)
    count = str(len(boxes))
    seen: tuple[str | Pointing, ...] = (
        ("I see ", Pointing(label, boxes), f". That makes {count}.") if boxes else (f"I see no {label}. That makes 0.",)
    )
    return Question(kind, text, seen, count)


def ask_presence(rng: np.random.Generator, scene: Scene, label: str) -> Question:
    """Is there one at all?"""
    text = _pick(rng, PRESENCE).format(label)
    boxes = scene.boxes(label)
    if not boxes:
        return Question("presence", text, (f"I see no {label}.",), "no")
    return Question("presence", text, ("I see ", Pointing(label, boxes), "."), "yes")


def absent_label(rng: np.random.Generator, scene: Scene) -> str:
    """A label that nothing in the scene has: of what is never drawn, or of what might be (`undrawn_label`)."""
    return _pick(rng, NEVER_DRAWN) if rng.random() < 0.3 else undrawn_label(rng, scene)


def undrawn_label(rng: np.random.Generator, scene: Scene) -> str:
    """Of a colour and a shape that could be there; it often shares a word with something that is."""
    present = set(scene.labels)
    while True:
        colour, shape = _pick(rng, COLOURS), _pick(rng, SHAPES)
        if scene.objects and rng.random() < 0.6:
            near = scene.objects[int(rng.integers(len(scene.objects)))]
            if rng.random() < 0.5:
                colour = near.colour
            else:
                shape = near.shape
        if f"{colour} {shape}" not in present:
            return f"{colour} {shape}"


def ask(rng: np.random.Generator, scene: Scene, kind: QuestionKind) -> Question:
    """One question of this kind, about something in the scene (mostly) or not in it."""
    present = list(dict.fromkeys(scene.labels))
    single = [x for x in present if len(scene.boxes(x)) == 1]
    if kind == "where":
        return ask_where(rng, scene, _pick(rng, single) if single else absent_label(rng, scene))
    if kind == "presence":
        there = bool(present) and rng.random() < 0.5
        return ask_presence(rng, scene, _pick(rng, present) if there else absent_label(rng, scene))
    there = bool(present) and rng.random() < 0.85
    several = [x for x in present if len(scene.boxes(x)) > 1]
    label = (
        _pick(rng, several)
        if there and several and rng.random() < 0.7
        else _pick(rng, present)
        if there
        else absent_label(rng, scene)
    )
    return ask_count(rng, scene, label, kind)
