"""Boards: what is asked of them is answered again by a reader who knows nothing but the pixels of the image."""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from jobs import tokenize
from jobs.convert import ConvertSettings
from tests.fakes.convert import convert, flags, made, samples
from tests.fakes.rows import Given
from tests.fakes.stages import stage
from vcot.datasets.scenes.puzzles import WORLDS, World, most_steps, puzzle
from vcot.errors import SettingsError
from vcot.grounding import Box, Mention, Trace
from vcot.records import Sample

SIDE = 28  # pixels of a cell
BASE = Path(__file__).parents[2] / "examples" / "rehearsal"
WAYS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
Place = tuple[int, int]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VCOT_CONVERT_SEED", raising=False)


# --- the reader


class Shown(NamedTuple):
    """What is in a cell: its colour, where its arrows point, whether it is framed."""

    colour: str
    arrows: tuple[str, ...]
    framed: bool


def _colour(rgb: Any) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(one) for one in rgb))
    if value < 0.25:
        return "black"
    hues = {"red": 0, "yellow": 54, "green": 122, "blue": 222, "violet": 280}
    if saturation < 0.25:
        return "white"
    return min(hues, key=lambda name: abs((hue * 360 - hues[name] + 180) % 360 - 180))


@cache
def board(uri: str) -> dict[Place, Shown]:
    """Every cell, by row and column, from the pixels."""
    pixels = np.asarray(Image.open(uri).convert("RGB"), np.float32) / 255
    assert pixels.shape[0] % SIDE == pixels.shape[1] % SIDE == 0
    heads = {"right": (13, 18), "left": (13, 8), "up": (8, 13), "down": (18, 13)}
    found = {}
    for row in range(pixels.shape[0] // SIDE):
        for column in range(pixels.shape[1] // SIDE):
            cell = pixels[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            ground = cell[5:8, 5:8].mean((0, 1))  # no ink is ever in a corner

            def inked(patch: Any, ground: Any = ground) -> bool:
                return bool(np.abs(patch.mean((0, 1)) - ground).max() > 0.3)

            arrows = tuple(way for way, (y, x) in heads.items() if inked(cell[y : y + 2, x : x + 2]))
            found[row, column] = Shown(_colour(ground), arrows, inked(cell[2:3, 10:18]))
    return found


NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "twenty-one",
    "twenty-two", "twenty-three", "twenty-four", "twenty-five", "twenty-six", "twenty-seven", "twenty-eight",
]  # fmt: skip


def cell(box: Box) -> Place:
    """The one cell that a box is of; a box that is not exactly a cell is wrong."""
    row, column = round(box.y1) // SIDE, round(box.x1) // SIDE
    assert box.as_list() == [column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE]
    return row, column


def start(cells: dict[Place, Shown]) -> Place:
    (framed,) = (place for place, shown in cells.items() if shown.framed)
    return framed


def go(place: Place, way: str) -> Place:
    return place[0] + WAYS[way][0], place[1] + WAYS[way][1]


def number(question: str) -> int:
    return next(NUMBERS.index(word) for word in re.findall(r"[a-z-]+", question) if word in NUMBERS)


def looks(trace: Trace) -> list[tuple[str, list[Place], str]]:
    """Label, cells and words of every look, a line each, which begins with how many are left."""
    mentions = [part for part in trace.parts if isinstance(part, Mention)]
    lines = "".join("@" if isinstance(part, Mention) else part for part in trace.parts).split("\n")
    assert len(lines) == len(mentions)
    said = []
    for at, (line, mention) in enumerate(zip(lines, mentions, strict=True)):
        before, after = line.split("@")
        assert before == f"{NUMBERS[len(lines) - 1 - at]}: "
        said.append((mention.label, [cell(box) for box in mention.boxes], after.strip()))
    return said


def drawn(folder: Path, **options: Any) -> list[Sample]:
    results = Given(folder).outcomes("scenes", **options)
    assert all(isinstance(one, Sample) for one in results)
    return [one for one in results if isinstance(one, Sample)]


def only(sample: Sample) -> list[tuple[str, list[Place], str]]:
    """The looks of the one reasoning; the evidence is the same places."""
    (trace,) = sample.reasoning
    assert [(m.label, [cell(box) for box in m.boxes]) for m in sample.evidence or ()] == [
        look[:2] for look in looks(trace)
    ]
    return looks(trace)


def arrowed(cells: dict[Place, Shown], place: Place) -> str:
    (way,) = cells[place].arrows
    return way


# --- the worlds


@pytest.mark.parametrize(("side", "steps"), [(3, "1,3"), (4, "2,6"), (6, "1,2,4,8,16"), (8, "28")])
def test_following_the_arrows_of_the_image_visits_the_boxes_and_ends_on_the_answer(
    tmp_path: Path, side: int, steps: str
) -> None:
    for sample in drawn(tmp_path, world="following", scenes=20, side=side, steps=steps):
        assert sample.image is not None
        cells, count = board(sample.image.uri), number(sample.question)
        assert (len(cells), count) == (side * side, sample.metadata["steps"])
        walk = [start(cells)]
        while len(walk) == 1 or walk[-1] != walk[0]:  # once round: would go on for ever if it were not closed
            walk.append(go(walk[-1], arrowed(cells, walk[-1])))
            assert len(set(walk[1:])) == len(walk) - 1  # no square twice
        assert len(walk) - 1 >= 2 * count + 1
        walk = walk[: count + 1]
        assert [places for _, places, _ in only(sample)] == [[place] for place in walk]
        said = [f"{cells[place].colour}, {arrowed(cells, place)}" for place in walk]
        said[-1] = cells[walk[-1]].colour
        assert [what for _, _, what in only(sample)] == said
        assert sample.answers == (cells[walk[-1]].colour,)


def test_swapping_the_cups_of_the_image_takes_the_ball_along_the_boxes(tmp_path: Path) -> None:
    for sample in drawn(tmp_path, world="permuting", scenes=60, steps="1,2,5,12"):
        assert sample.image is not None
        cells = board(sample.image.uri)
        row, cup = start(cells)
        assert (row, len(cells)) == (0, 5 * 13)
        assert len(cells[0, cup].arrows) == 4  # the ball, which lies under all places where arrows have their heads
        assert number(sample.question) == sample.metadata["steps"]
        said = [("ball", [(0, cup)], f"in cup {cup + 1}")]
        for row in range(1, number(sample.question) + 1):
            for at in range(5):  # an arrow points at a neighbour whose arrow points back
                if cells[row, at].arrows:
                    back = {"left": "right", "right": "left"}[arrowed(cells, (row, at))]
                    assert cells[go((row, at), arrowed(cells, (row, at)))].arrows == (back,)
            there, arrow = (row, cup), "".join(cells[row, cup].arrows)
            cup = go(there, arrow)[1] if arrow else cup
            said.append(("cup", [there], f"{arrow or 'stays'}, in cup {cup + 1}"))
        assert only(sample) == said
        assert sample.answers == (str(cup + 1),)


@pytest.mark.parametrize("side", [3, 6])
def test_counting_the_squares_of_the_image_gives_boxes_and_answer(tmp_path: Path, side: int) -> None:
    most = most_steps("counting", side)
    for sample in drawn(tmp_path, world="counting", scenes=40, side=side, steps=f"1,2,{most}"):
        assert sample.image is not None
        asked = re.fullmatch(r"How many (\w+) squares point (\w+)\?", sample.question)
        assert asked is not None
        there = [at for at, shown in board(sample.image.uri).items() if shown[:2] == (asked[1], (asked[2],))]
        assert only(sample) == [(f"{asked[1]} square", there, str(len(there)))]
        assert sample.answers == (str(len(there)),)


@pytest.mark.parametrize("side", [3, 6])
def test_comparing_the_squares_of_the_image_gives_boxes_and_answer_and_no_label_tells_it(
    tmp_path: Path, side: int
) -> None:
    most = most_steps("comparing", side)
    for sample in drawn(tmp_path, world="comparing", scenes=40, side=side, steps=f"1,2,{most}"):
        assert sample.image is not None
        cells = board(sample.image.uri)
        asked = re.fullmatch(r"Are there more (\w+) or more (\w+) squares\?", sample.question)
        assert asked is not None
        groups = [[at for at, shown in cells.items() if shown.colour == colour] for colour in asked.groups()]
        assert only(sample) == [
            ("square", group, f"{len(group)} {colour}") for group, colour in zip(groups, asked.groups(), strict=True)
        ]
        assert 1 <= abs(len(groups[0]) - len(groups[1])) <= 2
        assert sample.answers == (asked[1] if len(groups[0]) > len(groups[1]) else asked[2],)


@pytest.mark.parametrize(("side", "steps"), [(3, "1,4"), (6, "2,6,10"), (8, "14")])
def test_the_reasonings_are_all_routes_of_the_image_and_all_end_on_the_answer(
    tmp_path: Path, side: int, steps: str
) -> None:
    for sample in drawn(tmp_path, world="routes", scenes=20, side=side, steps=steps):
        assert sample.image is not None
        assert sample.evidence is None
        cells = board(sample.image.uri)
        routes = [(start(cells),)]
        for _ in range(number(sample.question)):
            routes = [(*route, go(route[-1], way)) for route in routes for way in cells[route[-1]].arrows]
        assert 2 <= len(routes) <= 12
        assert {cells[route[-1]].colour for route in routes} == set(sample.answers)
        said = []
        for trace in sample.reasoning:
            (*before, last) = looks(trace)
            route = tuple(place for _, (place,), _ in (*before, last))
            for (a, b), (_, _, what) in zip(pairwise(route), before, strict=True):
                colour, _, way = what.partition(", ")
                assert (colour, go(a, way)) == (cells[a].colour, b)
            assert last[2] == sample.answers[0]
            said.append(route)
        assert sorted(said) == sorted(routes)


def test_reading_says_what_is_in_the_squares_that_are_asked_for(tmp_path: Path) -> None:
    for sample in drawn(tmp_path, world="reading", scenes=30, side=4, steps="1,3,5"):
        assert sample.image is not None
        cells = board(sample.image.uri)
        what = {place: f"{shown.colour}, {', '.join(shown.arrows)}" for place, shown in cells.items()}
        assert only(sample) == [("square", [start(cells)], what[start(cells)])]
        assert sample.answers == (what[start(cells)],)
        asked = [cell(box) for turn in sample.turns[::2] for box in turn.said.mentions[0].boxes]
        assert [turn.said.text for turn in sample.turns[1::2]] == [f"Answer: {what[place]}" for place in asked]
        assert len({*asked, start(cells)}) == len(asked) + 1 == int(str(sample.metadata["steps"])) + 1
        assert [turn.images for turn in sample.turns] == [1] + [0] * (len(sample.turns) - 1)


def test_reasoning_in_words_names_the_same_places_and_filler_names_none(tmp_path: Path) -> None:
    options = {"world": "following", "scenes": 6, "steps": "3"}
    boxes, places, filler = (drawn(tmp_path, written=how, **options) for how in ("boxes", "places", "filler"))
    for one, two, three in zip(boxes, places, filler, strict=True):
        assert one.question == two.question == three.question
        assert one.image == two.image == three.image
        lines = [
            f"{NUMBERS[3 - at]}: square, row {row + 1}, column {column + 1}, {what}"
            for at, (_, ((row, column),), what) in enumerate(only(one))
        ]
        assert "".join(map(str, two.reasoning[0].parts)) == "\n".join(lines)
        assert re.fullmatch(r"([a-z]+: [. ]+\n?){4}", "".join(map(str, three.reasoning[0].parts)))


# --- what holds of all of them


@pytest.mark.parametrize("world", WORLDS)
def test_the_answers_of_one_number_of_steps_are_balanced(tmp_path: Path, world: World) -> None:
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    wanted = {"permuting": 5, "counting": None, "comparing": 2}.get(world, 7)
    steps = (1, 3, 3)  # twice as many of three as of one
    options: dict[str, Any] = {"scenes": 50, "held_out": 47, "steps": steps, "side": 4}
    for sample in drawn(tmp_path, world=world, **options):
        (answer,) = sample.answers
        if world == "comparing":
            answer = str(sample.question.find(answer) < len("Are there more violet"))  # the first, or the second?
        counts[sample.origin.split == "test", sample.metadata["steps"]][answer.partition(",")[0]] += 1
    assert len(counts) == 4
    for (_, step), found in counts.items():
        assert max(found.values()) - min(found.values()) <= 1
        assert len(found) == (wanted or step)


def layout(world: World, sample: Sample) -> Any:
    """What of the image makes the question one and no other, without the colours."""
    assert sample.image is not None
    cells = board(sample.image.uri)
    if world in ("counting", "comparing"):
        groups = sorted(sorted(cell(box) for box in mention.boxes) for mention in sample.evidence or ())
        return groups, sample.question.split()[-1] if world == "counting" else ""
    return start(cells), [cells[place].arrows for place in sorted(cells)]


# On the smallest boards, where the same layout is soon drawn again.
@pytest.mark.parametrize(
    ("world", "scenes", "steps"),
    [("following", 1500, "1,2"), ("permuting", 300, "1"), ("counting", 300, "1,2"), ("comparing", 300, "1"),
     ("routes", 300, "1,2")],
)  # fmt: skip
def test_no_layout_is_on_both_sides(tmp_path: Path, world: World, scenes: int, steps: str) -> None:
    sides: dict[bool, list[str]] = {True: [], False: []}
    options: dict[str, Any] = {"scenes": scenes, "held_out": scenes // 3, "side": 3, "steps": steps}
    for sample in drawn(tmp_path, world=world, **options):
        sides[sample.origin.split == "test"].append(str(layout(world, sample)))
    assert (len(sides[False]), len(sides[True])) == (scenes, scenes // 3)
    assert not set(sides[False]) & set(sides[True])
    assert len(set(sides[False])) < len(sides[False])  # else nobody would have noticed


def test_held_out_boards_may_take_other_steps(tmp_path: Path) -> None:
    found = drawn(tmp_path, world="following", scenes=4, steps="1,2", held_out=4, held_out_steps="5,16")
    assert [sample.metadata["steps"] for sample in found] == [1, 2, 1, 2, 5, 16, 5, 16]
    assert [sample.origin.split == "test" for sample in found] == [False] * 4 + [True] * 4


def test_boards_of_other_steps_come_without_their_reasoning(tmp_path: Path) -> None:
    options: dict[str, Any] = {"world": "following", "scenes": 6, "steps": "1,2,3", "held_out": 3}
    whole, found = drawn(tmp_path / "a", **options), drawn(tmp_path / "b", **options, reasoning_steps="1,3")
    assert [len(sample.reasoning) for sample in found] == [1, 0, 1, 1, 0, 1, 1, 0, 1]
    assert [(one.question, one.answers, one.evidence) for one in found] == [
        (one.question, one.answers, one.evidence) for one in whole
    ]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("side", [3, 4, 5, 6, 7, 8, 12])
def test_all_steps_that_a_board_has_room_for_can_be_drawn(world: World, side: int) -> None:
    most = most_steps(world, side)
    assert most is None or most >= side
    several = range(1, 2 * side - 1) if world == "routes" else (1, 2, (most or 20) - 1, most or 20)
    for steps in several:
        for answer in range(7):
            found = puzzle(np.random.default_rng([side, steps, answer]), world, steps, side, answer)
            assert (2 <= len(found.routes) <= 12) if world == "routes" else len(found.routes) == 1
            assert found.answer


def test_one_seed_gives_the_same_bytes_in_any_number_of_shards_and_another_seed_others(tmp_path: Path) -> None:
    found, images = [], tmp_path / "images"
    for name, seed, shards in (("one", 3, 1), ("again", 3, 1), ("many", 3, 3), ("other", 4, 1)):
        convert(
            tmp_path / name, source="scenes", world="routes", scenes=9, held_out=3, seed=seed, num_shards=shards,
            stored_images_uri=images,
        )  # fmt: skip
        lines = [sample.line() for sample in samples(tmp_path / name)]
        found.append((lines, [path.read_bytes() for path in sorted(images.glob("*.png"))]))
    one, again, many, other = found
    assert len(one[0]) == len(one[1]) == 12
    assert one == again == many
    assert not set(one[1]) & set(other[1])
    assert made(tmp_path / "one") == made(tmp_path / "again")


def test_all_worlds_together_become_examples_in_every_way_and_none_is_lost(tmp_path: Path) -> None:
    parts = [
        {"source": "scenes", "name": world, "world": world, "scenes": 8, "held_out": 2, "steps": "1,2,8"}
        for world in WORLDS
    ]
    (tmp_path / "mix.yaml").write_text(json.dumps(parts))
    told = convert(tmp_path / "run", mix=tmp_path / "mix.yaml", validation_share=0.2)
    assert told["row_counts"] == {"rows": 60, "kept": 60, "written": 60, "rejected": {}}
    assert {name: counts["kept"]["test"] for name, counts in told["datasets"].items()} == dict.fromkeys(WORLDS, 2)
    kept = samples(tmp_path / "run")
    assert len({sample.image.uri for sample in kept if sample.image}) == 60  # no part draws over another's images
    learned = [sample for sample in kept if sample.origin.split != "test"]
    told = stage(
        tokenize.TokenizeSettings, tokenize.run, tmp_path / "run", input_uri=tmp_path / "run/convert", base_uri=BASE,
        learn="direct,reason,ground", min_pixels=3136, max_pixels=65536, max_length=1024,
    )  # fmt: skip
    routes = sum(len(sample.reasoning) for sample in learned)
    assert (told["row_counts"]["rejected"], told["refused_alternatives"], told["test_rows_left_out"]) == ({}, {}, 12)
    assert told["ways"] == {"direct": len(learned), "ground": routes, "reason": routes}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"world": "following", "steps": "1,17"},
         "--steps: following on boards with --side=6 takes 1 to 16 steps; got 17"),
        ({"world": "routes", "side": 3, "steps": "5"},
         "--steps: routes on boards with --side=3 takes 1 to 4 steps; got 5"),
        ({"world": "permuting", "steps": "0"},
         "--steps: permuting on boards with --side=6 takes 1 to 12 steps; got 0"),
        ({"world": "counting", "side": 4, "steps": "1", "held_out": 3, "held_out_steps": "2,6"},
         "--held-out-steps: counting on boards with --side=4 takes 1 to 5 steps; got 6"),
        ({"world": "routes", "held_out_steps": "2"},
         "--held-out-steps is of boards for the test split; say how many with --held-out"),
        ({"world": "following", "steps": "1,2", "reasoning_steps": "2,3"},
         "--reasoning-steps: no board takes 3 steps; --steps has 1, 2"),
        ({"held_out": 5}, "--held-out: scenes of --world=objects have no layout to hold out; name another world"),
    ],
)  # fmt: skip
def test_what_a_board_has_no_room_for_is_refused_in_a_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ConvertSettings.load(flags(run_uri="r", source="scenes", **settings))
    assert str(refused.value) == said


def test_boards_are_not_held_out_where_splits_go_by_content(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--splits=by-content does not believe"):
        drawn(tmp_path, world="following", scenes=2, held_out=2, splits="by-content")
