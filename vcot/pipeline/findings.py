"""What the doctor says: a line for each thing it looked at, and for what is missing the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`missing` has to be put right before a run can end well; a `note` is for a person to judge."""

    kind: Literal["ok", "missing", "note"]
    words: str
    fix: str = ""

    @property
    def line(self) -> str:
        mark = {"ok": "ok     ", "missing": "MISSING", "note": "note   "}[self.kind]
        return f"{mark} {self.words}" + (f"\n        → {self.fix}" if self.fix else "")


def ok(words: str) -> Finding:
    return Finding("ok", words)


def missing(words: str, fix: str) -> Finding:
    return Finding("missing", words, fix)


def note(words: str, fix: str = "") -> Finding:
    return Finding("note", words, fix)
