"""GQA's programs, and how they bring boxes into VisCoT's written steps.

A program is a list of operations on objects of the scene: select("shirt (2)"), relate("person,wearing,s (1)") of what
step 0 found, query("name"). The box of a row is round the object at which the program ends. `thought`, steps that
GPT-4 wrote, names it in prose and without a place: where it first does, the place is inserted. What a box shows is thus
told by the scene graph, never by the answer (a program says "_" where the name is what is asked).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vcot.datasets.quality import gives_away
from vcot.grounding import Mention, Trace

_OBJECT = re.compile(r"\s*\((?:-|[\d,]+)\)\s*\Z")
"""The object's number at the end of an argument; "-" where the scene has none."""
_UNNAMED = "thing"


@dataclass(frozen=True)
class Step:
    """`on`: numbers of earlier steps whose objects it takes."""

    operation: str
    on: tuple[int, ...]
    argument: str


def program(said: Any) -> tuple[Step, ...]:
    """The steps of what a row calls `reasoning`; none where it is no whole program."""
    steps: list[Step] = []
    for entry in said if isinstance(said, list) else ():
        match entry:
            case {"operation": str(operation), "dependencies": [*on], "argument": str(argument)} if all(
                type(n) is int and 0 <= n < len(steps) for n in on
            ):
                steps.append(Step(operation.strip(), tuple(on), _OBJECT.sub("", argument).strip()))
            case _:
                return ()
    return tuple(steps)


def target(steps: Sequence[Step], answers: Sequence[str]) -> str | None:
    """The one object that a program ends at, by its name; None where there are several, or its name is the answer."""
    names = _names(steps)[-1] if steps else ()
    name = names[0] if len(names) == 1 else None
    return None if name is None or gives_away(name.casefold(), answers) else name


def grounded(thought: str, steps: Sequence[Step], named: str | None, evidence: Mention) -> Trace:
    """The written steps, or those of the program where there are none, with the evidence in its place.

    named: what the steps call the thing that the evidence shows. Where they do not, a sentence at their end points.
    """
    prose = thought or told(steps)
    found = _first(named, prose) if named else None
    if found is None:
        return Trace((f"{prose} The place to look at is the ".lstrip(), evidence, "."))
    return Trace((prose[: found.start()], Mention(found[0], evidence.boxes), prose[found.end() :]))


def _first(named: str, prose: str) -> re.Match[str] | None:
    """Where the thing is named first; where nobody says "white wall", the first "wall"."""
    words = named.split()
    tries = (" ".join(words[start:]) for start in range(len(words)))
    return next(filter(None, (re.search(rf"\b{re.escape(name)}\b", prose, re.IGNORECASE) for name in tries)), None)


def told(steps: Sequence[Step]) -> str:
    """A program in words."""
    names = _names(steps)
    sentences = (_sentence(step, [name or _UNNAMED for n in step.on for name in names[n]]) for step in steps)
    return " ".join(filter(None, sentences))


def _names(steps: Sequence[Step]) -> list[tuple[str | None, ...]]:
    """What the objects of each step are called, each once; None for one that the program does not name."""
    found: list[tuple[str | None, ...]] = []
    for step in steps:
        before = tuple(dict.fromkeys(name for n in step.on for name in found[n]))
        match step.operation.partition(" ")[0]:
            case "select":
                found.append((step.argument or None,))
            case "relate":
                name = step.argument.split(",")[0].strip()
                found.append((None if name in ("", "_") else name,))
            case "filter" if not step.argument.startswith("not("):
                found.append(tuple(name and f"{step.argument} {name}" for name in before))
            case _:
                found.append(before)
    return found


def _sentence(step: Step, earlier: Sequence[str]) -> str | None:
    others = " and the ".join(earlier) or _UNNAMED
    match step.operation.partition(" ")[0], step.argument.split(","):
        case "select", _:
            return f"Look for the {step.argument}."
        case "relate", [name, relation, "s"]:
            return f"Look for the {_named(name)} {relation.strip()} the {others}."
        case "relate", [name, relation, "o"]:
            return f"Look for the {_named(name)} that the {others} is {relation.strip()}."
        case "filter", _:
            negated = step.argument.startswith("not(")
            quality = f"not {step.argument[4:].rstrip(')')}" if negated else step.argument
            return f"Of the {others}, take the one that is {quality}."
        case "query", _:
            return f"Look at the {step.argument} of the {others}."
        case "exist", _:
            return f"See whether the {others} is there."
    return None


def _named(name: str) -> str:
    return _UNNAMED if name.strip() in ("", "_") else name.strip()
