"""What rows would ask next and nobody has replied to, as files of requests for batches."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcot.records import Completion
from vcot.teacher import batch
from vcot.teacher.amount import NOTHING, Amount
from vcot.teacher.body import body_of
from vcot.teacher.dryrun import NotKept
from vcot.teacher.estimate import prompt_tokens
from vcot.teacher.model import ModelTeacher
from vcot.teacher.request import Request


@dataclass
class File:
    """One file of requests under way to a batch."""

    path: Path
    models: dict[str, str] = field(default_factory=dict)
    size: int = 0
    worst: Amount = NOTHING


class Collector:
    """An Asker that has what is kept, and puts what is not into files, as far as there is money."""

    def __init__(self, teacher: ModelTeacher, scratch: Path, tried: frozenset[str], left: Amount | None) -> None:
        self.files: list[File] = []
        self._desk, self._scratch, self._tried, self._left = teacher.desk, scratch, tried, left
        self._seen: set[str] = set()

    async def ask(self, request: Request, *, source: str) -> Completion:
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
        price = self._desk.prices.of(request.model)
        prompt = prompt_tokens(request, price).most
        cost = price.cost(prompt, request.reply_tokens, batch=True) if price else 0
        worst = Amount(cost, prompt + request.reply_tokens, 1)
        if self._left is not None:
            if not worst.within(self._left):
                return
            self._left = self._left.minus(worst)
        line = json.dumps({"custom_id": key, "method": "POST", "url": batch.URL, "body": body}).encode() + b"\n"
        file = self._file(len(line))
        with file.path.open("ab") as out:
            out.write(line)
        file.models[key] = request.model
        file.size += len(line)
        file.worst = file.worst.plus(worst)

    def _file(self, size: int) -> File:
        """The last one, or a new one where that is full."""
        last = self.files[-1] if self.files else None
        if last is None or len(last.models) >= batch.MOST_LINES or last.size + size > batch.MOST_BYTES:
            last = File(self._scratch / f"{len(self.files)}-{len(self._tried)}.jsonl")
            self.files.append(last)
        return last
