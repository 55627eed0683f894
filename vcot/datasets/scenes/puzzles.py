"""Questions about boards that take one look after another: what the next step looks at depends on what this one saw.

    following   start at the framed square and follow k arrows: which colour?
    permuting   a ball under one of five cups, which change places k times: where is it?
    counting    how many squares of one colour point one way?
    comparing   of which of two colours are there more?
    routes      as following, where squares with two arrows give a choice: every route ends on the same colour
    reading     what is in this square? Nothing but seeing; the questions come by turns about one board

A model of few layers answers `following` and `permuting` at once only for small k (k steps need a depth of about log k:
Sanford et al. 2024, arXiv 2402.09268); with its steps written down it needs one look at a time. `counting` and
`comparing` are wide, not deep: they are here because boxes and answer must agree.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from vcot.datasets.scenes.boards import Board, Cell, Direction, Place
from vcot.datasets.scenes.objects import COLOURS
from vcot.grounding import Box, Mention, Trace

World = Literal["following", "permuting", "counting", "comparing", "routes", "reading"]
WORLDS: tuple[World, ...] = get_args(World)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
CUPS = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """One step of a way to the answer: the squares that are looked at, what they are called, what is seen there."""

    called: str
    places: tuple[Place, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A board and a question about it.

    Attributes:
        routes: all ways to the answer, each with its steps in order; one, but in `routes`.
        layout: what makes the question one and no other, whatever the colours; boards of the held-out split share none
            with the others.
        before: questions and answers about single squares that come first.
    """

    board: Board
    question: str
    answer: str
    routes: tuple[tuple[Seen, ...], ...]
    layout: str
    before: tuple[tuple[Place, str], ...] = ()

    @property
    def held_out(self) -> bool:
        """A quarter of all layouts is."""
        return hashlib.sha256(self.layout.encode()).digest()[0] < 64


def puzzle(rng: np.random.Generator, world: World, steps: int, side: int, colour: int) -> Puzzle:
    """One question of this world.

    Args:
        steps: how many looks it takes, one after another; of `counting` and `comparing`, how many squares of a kind
            there are at most; of `reading`, how many questions come before. 1 to `most_steps`.
        side: squares along each side of the board; of `permuting`, half the rows below the five cups.
        colour: number of the answer among those that are possible, so that whoever draws many can balance them.
    """
    return _MAKERS[world](rng, steps, side, colour)


def most_steps(world: World, side: int) -> int:
    """What a board of this side has room for."""
    if world == "following":
        # A cycle of 2k + 1 squares, in eleven of twelve squares: through nearly all of a large board few are found.
        return (11 * side * side // 12 - 1) // 2
    if world == "routes":
        return 2 * side - 2
    return 2 * side if world == "permuting" else side * side // 3


def _places(side: int) -> list[Place]:
    return [Place(r, c) for r in range(side) for c in range(side)]


def _colours(rng: np.random.Generator, side: int) -> dict[Place, str]:
    return {place: COLOURS[int(rng.integers(len(COLOURS)))] for place in _places(side)}


# --- in words and boxes ------------------------------------------------------------------------------------

FILLER = " ".join("." * 12)
"""About as many tokens as a box takes."""


def mention(label: str, places: Sequence[Place], width: int, height: int) -> Mention:
    """Squares of a board whose image is width × height pixels."""
    return Mention(label, tuple(Box.from_pixels(*at.box, width=width, height=height) for at in places))


_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_word(number: int) -> str:
    """0 to 99 in English."""
    if number < len(_SMALL):
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")


def counted(number: int, noun: str) -> str:
    """ "one arrow", "two arrows"."""
    return f"{number_word(number)} {noun}{'' if number == 1 else 's'}"


def written(route: Sequence[Seen], how: Literal["boxes", "places", "filler"], width: int, height: int) -> Trace:
    """A line for each step, with the number of those that are left: counting up, a model that followed every arrow
    went on past the last. The number is a word: a digit was confused with those of the boxes."""
    parts: list[str | Mention] = []
    for left, seen in zip(reversed(range(len(route))), route, strict=True):
        parts.append(f"\n{number_word(left)}: " if parts else f"{number_word(left)}: ")
        if how == "boxes":
            parts += [mention(seen.called, seen.places, width, height), f" {seen.what}"]
        elif how == "places":
            where = "; ".join(f"row {at.row + 1}, column {at.column + 1}" for at in seen.places)
            parts.append(f"{seen.called}, {where}, {seen.what}")
        else:
            parts.append(FILLER)
    return Trace(tuple(parts))


def asked_about(place: Place, width: int, height: int) -> Trace:
    """The question what is in one square, which it names by its box."""
    return Trace(("What is here? ", mention("square", (place,), width, height)))


# --- following ---------------------------------------------------------------------------------------------


def _following(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """The arrows are those of one long cycle: on a random field four of five walks soon go to and fro between two
    squares, and on a short cycle k steps forward are few steps back.
    """
    cycle = long_cycle(rng, side, max(2 * steps + 1, 2 * side * side // 3))
    start = int(rng.integers(len(cycle)))
    cycle = cycle[start:] + cycle[:start]
    colours = _colours(rng, side)
    arrows = {place: _random_arrow(rng, place, side) for place in colours}
    arrows |= {a: direction(a, b) for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
    colours[cycle[steps]] = COLOURS[colour % len(COLOURS)]
    board = {place: Cell(colours[place], (arrows[place],), framed=place == cycle[0]) for place in colours}
    walk = cycle[: steps + 1]
    return Puzzle(
        board, f"Start at the framed square. Follow {counted(steps, 'arrow')}. Which colour is there?",
        colours[walk[-1]], (_walked(board, walk),), f"{cycle[0]} {[arrows[place] for place in sorted(arrows)]}",
    )  # fmt: skip


def _walked(board: Board, walk: Sequence[Place]) -> tuple[Seen, ...]:
    """Colour and arrow of every square on the way; of the last one the colour, which is the answer."""
    arrows = [f", {direction(a, b)}" for a, b in pairwise(walk)]
    return tuple(
        Seen("square", (place,), board[place].colour + arrow) for place, arrow in zip(walk, [*arrows, ""], strict=True)
    )


def _random_arrow(rng: np.random.Generator, place: Place, side: int) -> Direction:
    inside = [d for d in DIRECTIONS if all(0 <= at < side for at in place.step(d))]
    return inside[int(rng.integers(len(inside)))]


def direction(a: Place, b: Place) -> Direction:
    """From a square to its neighbour."""
    return next(d for d in DIRECTIONS if a.step(d) == b)


def long_cycle(rng: np.random.Generator, side: int, least: int) -> list[Place]:
    """A closed walk through at least `least` squares, none twice, of a board of side × side, from any of them, either
    way round.

    It begins as a ring of four and is deformed at random: a piece of it goes round two more squares, a corner turns
    over, rarely a detour is left out.

    Raises ValueError: there is none so long.
    """
    if least > side * side - side % 2:
        raise ValueError(f"a board of {side}x{side} has no closed walk through {least} squares")
    dice = random.Random(int(rng.integers(1 << 62)))
    cycle = [Place(0, 0), Place(0, 1), Place(1, 1), Place(1, 0)]
    on = set(cycle)
    turns = 0
    while turns < 3 * side * side or len(cycle) < least:
        turns += 1
        at = dice.randrange(len(cycle))
        cycle = cycle[at:] + cycle[:at]
        a, b, c, d = cycle[:4]
        aside = dice.choice(DIRECTIONS)
        detour = (a.step(aside), b.step(aside))
        over = Place(a.row + c.row - b.row, a.column + c.column - b.column)
        if on.isdisjoint(detour) and all(0 <= x < side for place in detour for x in place):
            cycle[1:1] = detour
            on.update(detour)
        elif over not in on and abs(a.row - c.row) == 1 and all(0 <= x < side for x in over):
            cycle[1] = over
            on ^= {b, over}
        elif len(cycle) > 4 and abs(a.row - d.row) + abs(a.column - d.column) == 1 and dice.random() < 0.05:
            del cycle[1:3]
            on -= {b, c}
    start = dice.randrange(len(cycle))
    cycle = cycle[start:] + cycle[:start]
    return cycle if dice.random() < 0.5 else cycle[::-1]


# --- permuting ---------------------------------------------------------------------------------------------


def _permuting(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """Row 0 shows the cups, each row below which of them change places: those whose arrows point at each other. The
    colours say nothing, and neither do the rows below the last that is asked for.

    All orders of five cups can come of such exchanges, and which one is no matter of counting (Barrington 1989).
    """
    while True:  # in few rows a cup does not come everywhere
        start, exchanges = int(rng.integers(CUPS)), [_exchange(rng) for _ in range(2 * side)]
        cup, steps_seen = start, [Seen("ball", (Place(0, start),), f"in cup {start + 1}")]
        for row, arrows in enumerate(exchanges[:steps], start=1):
            at, arrow = Place(row, cup), arrows[cup]
            cup = at.step(arrow).column if arrow else cup
            steps_seen.append(Seen("cup", (at,), f"{arrow or 'stays'}, in cup {cup + 1}"))
        if cup == colour % CUPS:
            break
    board = {Place(0, c): Cell("black", framed=c == start, ball=c == start) for c in range(CUPS)}
    for row, arrows in enumerate(exchanges, start=1):
        for c, arrow in enumerate(arrows):
            board[Place(row, c)] = Cell(COLOURS[int(rng.integers(len(COLOURS)))], (arrow,) if arrow else ())
    rows = counted(steps, "row")
    return Puzzle(
        board, f"The ball is under the framed cup. In {rows} the cups with arrows swap. Where is it then?",
        str(cup + 1), (tuple(steps_seen),), f"{start} {exchanges}",
    )  # fmt: skip


def _exchange(rng: np.random.Generator) -> list[Direction | None]:
    """Where the arrow of each cup points: one or two pairs of neighbours change places."""
    arrows: list[Direction | None] = [None] * CUPS
    for left in rng.permutation(CUPS - 1):
        if arrows[left] is None and arrows[left + 1] is None and (arrows == [None] * CUPS or rng.random() < 0.8):
            arrows[left], arrows[left + 1] = "right", "left"
    return arrows


# --- counting, comparing -----------------------------------------------------------------------------------


def _counting(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """Some squares of that colour point elsewhere, and some of another colour point there."""
    wanted = 1 + colour % steps
    asked, way = COLOURS[int(rng.integers(len(COLOURS)))], DIRECTIONS[int(rng.integers(4))]
    places = _places(side)
    counted = sorted(places[int(i)] for i in rng.permutation(len(places))[:wanted])
    board: dict[Place, Cell] = {}
    for place in places:
        shown = asked, way
        while (place in counted) != (shown == (asked, way)):
            shown = COLOURS[int(rng.integers(len(COLOURS)))], DIRECTIONS[int(rng.integers(4))]
            if rng.random() < 0.3:
                shown = (asked, shown[1]) if rng.random() < 0.5 else (shown[0], way)
        board[place] = Cell(shown[0], (shown[1],))
    return Puzzle(
        board, f"How many {asked} squares point {way}?", str(wanted),
        ((Seen(f"{asked} square", tuple(counted), str(wanted)),),), f"{way} {counted}",
    )  # fmt: skip


def _comparing(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """The larger group has one or two squares more. All are called squares: a label that names a colour would tell the
    answer, and a label that does not, beside one that does, too."""
    first, second = (COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:2])
    more = 2 + int(rng.integers(max(steps - 1, 1)))
    fewer = max(more - 1 - int(rng.integers(2)), 1)
    counts = (more, fewer) if colour % 2 == 0 else (fewer, more)
    places = _places(side)
    order = [places[int(i)] for i in rng.permutation(len(places))]
    groups = (sorted(order[: counts[0]]), sorted(order[counts[0] : sum(counts)]))
    others = [c for c in COLOURS if c not in (first, second)]
    board = {place: Cell(others[int(rng.integers(len(others)))]) for place in places}
    board |= {place: Cell(name) for name, group in zip((first, second), groups, strict=True) for place in group}
    seen = tuple(
        Seen("square", tuple(group), f"{len(group)} {name}")
        for name, group in zip((first, second), groups, strict=True)
    )
    answer = first if counts[0] > counts[1] else second
    return Puzzle(
        board, f"Are there more {first} or more {second} squares?", answer, (seen,), f"{sorted(groups)}",
    )  # fmt: skip


# --- routes ------------------------------------------------------------------------------------------------

MOST_ROUTES = 12


def _routes(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """All arrows go two ways (right and down, say), so that every route of k steps ends on one diagonal, whose squares
    on some route have the same colour."""
    ways = (DIRECTIONS[int(rng.choice((0, 2)))], DIRECTIONS[int(rng.choice((1, 3)))])
    places = _places(side)
    ends = [side - 1 if "right" in ways else 0, side - 1 if "down" in ways else 0]
    starts = [place for place in places if abs(place.column - ends[0]) + abs(place.row - ends[1]) >= steps]
    while True:
        start = starts[int(rng.integers(len(starts)))]
        arrows: dict[Place, tuple[Direction, ...]] = {}
        for place in places:
            inside = [way for way in ways if all(0 <= at < side for at in place.step(way))]
            # The more steps, the fewer choices, so that there is mostly more than one route and seldom too many.
            both = len(inside) == 2 and rng.random() < min(0.5, 2 / steps)
            one = [inside[int(rng.integers(len(inside)))]] if inside else []
            arrows[place] = tuple(inside if both else one)
        walks = [[start]]
        for _ in range(steps):
            walks = [[*walk, walk[-1].step(way)] for walk in walks for way in arrows[walk[-1]]]
        if 2 <= len(walks) <= MOST_ROUTES:
            break
    colours = _colours(rng, side)
    colours |= dict.fromkeys((walk[-1] for walk in walks), COLOURS[colour % len(COLOURS)])
    board = {place: Cell(colours[place], arrows[place], framed=place == start) for place in colours}
    return Puzzle(
        board, f"Start at the framed square. Follow {counted(steps, 'arrow')}, any of them. Which colour is there?",
        colours[walks[0][-1]], tuple(_walked(board, walk) for walk in walks),
        f"{start} {[arrows[place] for place in sorted(arrows)]}",
    )  # fmt: skip


# --- reading -----------------------------------------------------------------------------------------------


def _reading(rng: np.random.Generator, steps: int, side: int, colour: int) -> Puzzle:
    """Of as many squares as `steps` says: their colours and where they point."""
    colours = _colours(rng, side)
    places = [list(colours)[int(i)] for i in rng.permutation(side * side)[: steps + 1]]
    framed = places.pop()
    colours[framed] = COLOURS[colour % len(COLOURS)]
    board = {
        place: Cell(colours[place], (_random_arrow(rng, place, side),), framed=place == framed) for place in colours
    }

    def what(place: Place) -> str:
        return f"{board[place].colour}, {board[place].arrows[0]}"

    return Puzzle(
        board, "What is in the framed square?", what(framed), ((Seen("square", (framed,), what(framed)),),),
        f"{framed} {[cell.arrows for cell in board.values()]}", tuple((place, what(place)) for place in places),
    )  # fmt: skip


_MAKERS: Mapping[World, Callable[[np.random.Generator, int, int, int], Puzzle]] = MappingProxyType(
    {
        "following": _following, "permuting": _permuting, "counting": _counting, "comparing": _comparing,
        "routes": _routes, "reading": _reading,
    }
)  # fmt: skip
