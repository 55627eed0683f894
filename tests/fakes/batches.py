"""The files and batches of an OpenAI endpoint, beside a scripted teacher.

with scripted_teacher() as teacher:
    batches = Batches(teacher, looks=2)      each batch is done at the second look
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from tests.fakes.teacher import Answer, Asked, Refuse, Teacher


def _json(value: object) -> Answer:
    return Answer(body=json.dumps(value).encode())


class Batches:
    """Args: the teacher whose script answers each line; how often a batch is looked at before it is done; which
    lines fail there; why every batch is refused as a whole (None: it is not); what becomes of a file of replies; the
    status in which a batch ends; what is not found any more ("batch", "output")."""

    def __init__(
        self, teacher: Teacher, *, looks: int = 2, fails: Callable[[Asked], bool] = lambda _: False,
        refuses: str | None = None, damages: Callable[[bytes], bytes] = bytes, ends: str = "completed", gone: str = "",
    ) -> None:  # fmt: skip
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lines: list[Asked] = []
        self.lose_next_answer = False  # of a creation: the batch is made, and nobody is told
        self.lists_before_shown = 0  # how often the batches are listed before a new one is among them
        self.keeps_metadata = True
        self._teacher, self._looks, self._fails = teacher, looks, fails
        self._refuses, self._damages = refuses, damages
        self._ends, self._gone = ends, gone
        self._lock = threading.Lock()
        teacher.elsewhere = self.answer

    def answer(self, method: str, path: str, headers: Mapping[str, str], data: bytes) -> Answer:
        path = path.split("?")[0].removeprefix("/v1")
        with self._lock:
            if (method, path) == ("POST", "/files"):
                return self._upload(headers, data)
            if (method, path) == ("POST", "/batches"):
                return self._create(json.loads(data))
            if (method, path) == ("GET", "/batches"):
                shown = [] if self.lists_before_shown > 0 else list(self.batches.values())[::-1]
                self.lists_before_shown -= 1
                return _json({"object": "list", "data": shown, "has_more": False})
            if (method, self._gone) == ("GET", "batch") or (self._gone == "output" and path.endswith("/content")):
                return Refuse(404, "No such object")
            if found := re.fullmatch(r"/batches/([^/]+)", path):
                return self._look(found[1])
            if found := re.fullmatch(r"/files/([^/]+)/content", path):
                return Answer(body=self.files[found[1]])
        return Refuse(404, f"no such path: {path}")

    def _upload(self, headers: Mapping[str, str], data: bytes) -> Answer:
        head = f"Content-Type: {headers['Content-Type']}\n\n".encode()
        parsed = BytesParser(policy=HTTP).parsebytes(head + data)
        parts = {part.get_param("name", header="content-disposition"): part for part in parsed.iter_parts()}  # type: ignore[attr-defined]
        assert isinstance(parts["file"], EmailMessage)
        assert parts["purpose"].get_content().strip() == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = parts["file"].get_payload(decode=True)  # type: ignore[assignment]
        file = {"id": name, "object": "file", "bytes": len(data), "created_at": 1, "filename": "x"}
        return _json(file | {"purpose": "batch", "status": "processed"})

    def _create(self, asked: dict[str, Any]) -> Answer:
        assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "completion_window": "24h", "status": "validating", "created_at": 1,
            "metadata": asked["metadata"] if self.keeps_metadata else None, "looks": 0,
        }  # fmt: skip
        if self.lose_next_answer:
            self.lose_next_answer = False
            return Answer(body=None)
        return _json(self.batches[name])

    def _look(self, name: str) -> Answer:
        batch = self.batches[name]
        batch["looks"] += 1
        batch["status"] = "in_progress"
        if self._refuses is not None:
            said = {"code": "refused", "message": self._refuses, "line": None, "param": None}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [said]}}
            return _json(batch)
        if batch["looks"] >= self._looks and "output_file_id" not in batch:
            self._answer_all(batch)
        if "output_file_id" in batch:
            batch["status"] = self._ends
        return _json(batch)

    def _answer_all(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in map(json.loads, self.files[batch["input_file_id"]].splitlines()):
            asked = Asked(len(self.lines), line["url"], "", line["body"])
            self.lines.append(asked)
            answer = self._teacher.script(asked)
            failed = self._fails(asked) or answer.status != 200
            response = {"status_code": 200, "body": json.loads(answer.body or b"{}")}
            if failed:
                response = {"status_code": 500, "body": {"error": {"message": "no", "code": None}}}
            else:
                self._teacher.pay(answer)
            (bad if failed else good).append({"custom_id": line["custom_id"], "response": response, "error": None})
        batch["request_counts"] = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
        for kind, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):  # in no particular order
            batch[kind] = f"file-{len(self.files)}" if lines or kind == "output_file_id" else None
            if batch[kind]:
                self.files[batch[kind]] = self._damages(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
