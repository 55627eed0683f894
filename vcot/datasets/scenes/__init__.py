"""Drawn images as Samples: one image, one question, exact boxes; needs no files at all.

    objects    coloured shapes on untidy ground, with questions about single things (objects.py, drawing.py)
    the rest   boards of cells, with questions that take several looks (puzzles.py, boards.py)

Row n is a pure function of the seed and n. Its image is stored below the stage's own folder, so that it has a URI
like any other; drawing it again gives the same bytes (on any x86 processor with AVX2). The models of examples/ learn
from the same questions, and the tests of the chain use them where a dataset is wanted that needs no download.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from vcot.datasets.base import ConversionContext, QuestionOptions, comma_separated, dataset
from vcot.datasets.inputs import Row
from vcot.datasets.scenes.objects import Pointing, SceneSpec, ask
from vcot.errors import SettingsError
from vcot.grounding import Box, Mention, Trace
from vcot.records import Image as ImageRecord
from vcot.records import Sample
from vcot.records.sample import Turn
from vcot.settings import flag, setting

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

World = Literal["objects", "following", "permuting", "counting", "comparing", "routes", "reading"]
Numbers = Annotated[tuple[int, ...], BeforeValidator(comma_separated)]


class SceneOptions(QuestionOptions):
    scenes: int = setting(200, "scenes: how many are drawn", unit="scenes", ge=1)
    world: World = setting(
        "objects", "scenes: what is drawn and asked: single objects, or boards on which one look leads to the next"
    )
    steps: Numbers = setting(
        (1, 2, 4, 8), "scenes: how many looks a question about a board takes, by turns; comma-separated",
        unit="steps", min_length=1,
    )  # fmt: skip
    side: int = setting(
        6, "scenes: squares along each side of a board (permuting: half the rows below the five cups)",
        unit="squares", ge=3, le=12,
    )  # fmt: skip
    held_out: int = setting(
        0, "scenes: how many more of these boards are drawn for the test split, with layouts that are nowhere else",
        unit="scenes", ge=0,
    )  # fmt: skip
    held_out_steps: Numbers = setting((), "scenes: steps of those; default: the same", unit="steps")
    reasoning_steps: Numbers = setting(
        (), "scenes: boards of so many steps have their reasoning written; the others come with question, answer and "
        "boxes alone, to be learned from by rewards; default: all", unit="steps",
    )  # fmt: skip
    min_routes: int = setting(
        2, "scenes: with --world=routes, so many ways lead to each answer, at least", unit="routes", ge=2, le=12
    )
    written: Literal["boxes", "places", "filler"] = setting(
        "boxes", "scenes: reasoning about a board: each look with its box, or with row and column in words, or as many "
        "meaningless dots (the control of thinking longer)"
    )  # fmt: skip

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.held_out_steps and not self.held_out:
            yield "--held-out-steps is of boards for the test split; say how many with --held-out"
        if unknown := sorted({*self.reasoning_steps} - {*self.steps}):
            yield (
                f"--reasoning-steps: no board takes {', '.join(map(str, unknown))} steps; --steps has "
                f"{', '.join(map(str, self.steps))}"
            )
        if (
            self.world == "routes"
            and (few := min((*self.steps, *self.held_out_steps))) < 12
            and self.min_routes > 2**few
        ):
            yield f"--min-routes={self.min_routes}: {few} arrows, each of two ways, make {2**few} routes at most"
        if self.world == "objects":
            if self.held_out:
                yield "--held-out: scenes of --world=objects have no layout to hold out; name another world"
            return
        from vcot.datasets.scenes.puzzles import most_steps

        most = most_steps(self.world, self.side)
        for name, several in (("steps", self.steps), ("held_out_steps", self.held_out_steps)):
            for steps in several:
                if not 1 <= steps <= most:
                    room = f"on boards with --side={self.side} takes 1 to {most} steps"
                    yield f"{flag(name)}: {self.world} {room}; got {steps}"


def rows(context: ConversionContext[SceneOptions]) -> Iterator[Row]:
    """The kinds of questions take turns; so do the numbers of steps.

    Raises SettingsError: boards are held out, and --splits divides them by content.
    """
    own = context.own
    if own.held_out and context.options.splits == "by-content":
        raise SettingsError("--held-out puts boards into the test split, which --splits=by-content does not believe")
    for number in range(own.scenes + own.held_out):
        later = number - own.scenes
        said: dict[str, Any] = {"number": number, "kind": own.questions[number % len(own.questions)]}
        if own.world != "objects":
            several = own.steps if later < 0 else own.held_out_steps or own.steps
            rounds, at = divmod(number if later < 0 else later, len(several))
            # Counted among the questions of as many steps, whose answers are balanced by it.
            turn = rounds * several.count(several[at]) + several[:at].count(several[at])
            said |= {"dataset": own.world, "steps": several[at], "turn": turn}
            said |= {} if later < 0 else {"split": "test"}
        yield Row(f"scene:{number:06d}", said)


@dataset(
    "scenes",
    "drawn scenes with exact boxes; needs no input",
    "--scenes 2000",
    options=SceneOptions,
    rows=rows,
    needs_input=False,
    called="scenes",
    licence="Apache-2.0",
)
def sample(row: Row, context: ConversionContext[SceneOptions]) -> Sample:
    import numpy as np  # which --check need not wait for

    dice = np.random.default_rng([context.options.seed, row.value["number"]])
    return (_about_objects if context.own.world == "objects" else _about_a_board)(row, dice, context)


def _about_objects(row: Row, dice: np.random.Generator, context: ConversionContext[SceneOptions]) -> Sample:
    from vcot.datasets.scenes.drawing import draw_scene

    scene = draw_scene(dice, SceneSpec())
    question = ask(dice, scene, row.value["kind"])
    image = _kept(scene.image, row, context)
    edges = partial(Box.from_pixels, width=image.width, height=image.height, overhang=1e-3)
    return Sample(
        id=row.id,
        images=(image,),
        question=question.text,
        answers=(question.answer,),
        evidence=tuple(
            Mention(part.label, tuple(edges(*box) for box in part.boxes))
            for part in question.reasoning
            if isinstance(part, Pointing)
        ),
        origin=context.origin(row, image, "scenes"),
    )


def _kept(drawn: Image.Image, row: Row, context: ConversionContext[SceneOptions]) -> ImageRecord:
    png = io.BytesIO()
    # Runs of one byte alone: what else zlib-ng finds depends on the processor, and the same scene is the same bytes.
    drawn.save(png, "PNG", compress_type=zlib.Z_RLE)
    return context.images.keep(context.called(f"{row.value['number']:06d}.png"), png.getvalue())


# --- boards ------------------------------------------------------------------------------------------------


def _about_a_board(row: Row, dice: np.random.Generator, context: ConversionContext[SceneOptions]) -> Sample:
    from vcot.datasets.scenes.boards import draw_board
    from vcot.datasets.scenes.puzzles import asked_about, mention, puzzle, written

    own, steps = context.own, row.value["steps"]
    assert own.world != "objects"
    while True:
        drawn = puzzle(dice, own.world, steps, own.side, row.value["turn"])
        enough = own.world != "routes" or len(drawn.routes) >= own.min_routes
        if enough and drawn.held_out == (row.value.get("split") == "test"):
            break
    image = _kept(draw_board(dice, drawn.board), row, context)
    size = image.width, image.height
    only = drawn.routes[0] if len(drawn.routes) == 1 else None
    shown = drawn.routes if steps in (own.reasoning_steps or (steps,)) else ()
    turns = tuple(
        turn
        for place, what in drawn.before
        for turn in (
            Turn(role="user", said=asked_about(place, *size)),
            Turn(role="assistant", said=Trace((f"Answer: {what}",))),
        )
    )
    if turns:
        turns = (turns[0].model_copy(update={"images": 1}), *turns[1:])
    return Sample(
        id=row.id,
        images=(image,),
        turns=turns,
        question=drawn.question,
        answers=(drawn.answer,),
        reasoning=tuple(written(route, own.written, *size) for route in shown),
        # Of several ways to the answer none is the one that a reply must go.
        evidence=None if only is None else tuple(mention(seen.called, seen.places, *size) for seen in only),
        metadata={"world": own.world, "steps": steps},
        origin=context.origin(row, image, own.world),
    )
