"""Breaks rows of JSON at random, by a seed: types, missing fields, numbers that are none, nesting, bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

HUGE = 10**30
JUNK: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: -1, lambda: 0.5, lambda: HUGE, lambda: -HUGE,
    lambda: float("nan"), lambda: float("inf"), lambda: float("-inf"), lambda: 1e308, lambda: 5e-324, lambda: "",
    lambda: " ", lambda: "\x00", lambda: "\ud800", lambda: "no such thing", lambda: "../../up", lambda: "[1, 2, 3, 4]",
    lambda: "[1, 2, 1e999, NaN]", lambda: "x" * 5000, lambda: "s3://", lambda: "https://example.org/a.png",
    lambda: "data:image/png;base64,AAAA", lambda: "\u202e\u0301", list, dict, lambda: [[]], lambda: [None],
    lambda: [1, 2, 3, 4], lambda: [[1, 2, 3, 4]], lambda: [[5, 5, 1, 1]], lambda: [[1, 2, float("nan"), 4]],
    lambda: [[HUGE] * 4], lambda: {"": {"": []}}, lambda: {"uri": []}, lambda: _nested(60), lambda: _nested(400),
)  # fmt: skip
"""What stands where something else should."""
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 6000


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def broken(dice: random.Random, row: dict[str, Any]) -> bytes:
    """One line; it may be whole by chance."""
    row = copy.deepcopy(row)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        _change(dice, row)
    line = json.dumps(row, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass")
    return dice.choice(_OF_BYTES)(dice, line) if dice.random() < 0.2 else line


def _change(dice: random.Random, row: dict[str, Any]) -> None:
    """At a random place of the row."""
    where, key = dice.choice(_places(row) or [(row, "new")])
    value = where[key] if key != "new" else None
    match dice.randrange(7):
        case 0 if isinstance(where, dict):
            where.pop(key, None)
        case 1:
            where[key] = [value]
        case 2:
            where[key] = value[0] if isinstance(value, list) and value else str(value)
        case 3 if isinstance(value, int | float) and abs(value) < HUGE:
            where[key] = dice.choice((-value, value * 1e6, value + 1e-9, int(value), str(value)))
        case 4 if isinstance(value, list):
            where[key] = dice.choice((value * 2, value[:-1], value[::-1]))
        case 5 if isinstance(value, str):
            cut = dice.randrange(len(value) + 1)
            where[key] = value[:cut] + dice.choice(("", "<box>", "]", "###[1,2", "\ud83d", "<image>")) + value[cut:]
        case _:
            where[key] = dice.choice(JUNK)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key]) if len(found) < 200 else []
    return found


def _cut(dice: random.Random, line: bytes) -> bytes:
    return line[: dice.randrange(len(line)) or 1]


def _spoilt(dice: random.Random, line: bytes) -> bytes:
    at = dice.randrange(len(line))
    return line[:at] + bytes([dice.choice((0x00, 0xC0, 0xFF, 0x80, 0xED, 0x22, 0x5C, 0x7B))]) + line[at + 1 :]


def _replaced(dice: random.Random, line: bytes) -> bytes:
    return dice.choice(
        (b"null", b"7", b"[]", b'"row"', b"NaN", b"{", b"{}", b"\xff\xfe{\x00}\x00", b"\x00", line + line)
    )


def _with_number(dice: random.Random, line: bytes) -> bytes:
    return line[:-1] + b', "more": ' + dice.choice((LONG, DEEP, "1e999", "-" + LONG, "NaN")).encode() + b"}"


_OF_BYTES = (_cut, _spoilt, _replaced, _with_number)
