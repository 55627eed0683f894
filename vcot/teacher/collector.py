"""What rows would ask next and nobody has replied to, as files of requests for batches."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcot.records import Completion
from vcot.teacher import batch
from vcot.teacher.amount import Amount
from vcot.teacher.body import body_of
from vcot.teacher.costs import Worst
from vcot.teacher.dryrun import NotKept
from vcot.teacher.model import ModelTeacher
from vcot.teacher.request import Request


@dataclass
class File:
    """One file of requests under way to a batch."""

    path: Path
    asked: dict[str, Worst] = field(default_factory=dict)
    size: int = 0


class Collector:
    """An Asker that has what is kept, and puts what is not into files, as far as there is money."""

    def __init__(self, teacher: ModelTeacher, scratch: Path, tried: frozenset[str], left: Amount | None) -> None:
        self.files: list[File] = []
        self._desk, self._scratch, self._tried, self._left = teacher.desk, scratch, tried, left
        self._seen: set[str] = set()

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        key = request.key()
        kept = await asyncio.to_thread(self._desk.replies.get, key)
        if kept is not None:
            return kept
        if key not in self._seen and key not in self._tried:
            self._seen.add(key)
            body = await body_of(request, self._desk.pictures)
            self._add(key, request, body)
        raise NotKept

    def _add(self, key: str, request: Request, body: dict[str, Any]) -> None:
        worst = self._desk.costs.worst(request, batch=True)
        if self._left is not None:
            if not worst.amount.within(self._left):
                return
            self._left = self._left.minus(worst.amount)
        line = json.dumps({"custom_id": key, "method": "POST", "url": batch.URL, "body": body}).encode() + b"\n"
        file = self._file(len(line))
        with file.path.open("ab") as out:
            out.write(line)
        file.asked[key] = worst
        file.size += len(line)

    def _file(self, size: int) -> File:
        """The last one, or a new one where that is full."""
        last = self.files[-1] if self.files else None
        if last is None or len(last.asked) >= batch.MOST_LINES or last.size + size > batch.MOST_BYTES:
            last = File(self._scratch / f"{len(self.files)}-{len(self._tried)}.jsonl")
            self.files.append(last)
        return last
