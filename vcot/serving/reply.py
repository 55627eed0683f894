"""The JSON of a reply: whole, or chunk by chunk as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vcot.serving.engine import Job, Piece, TokenSaid

DONE = b"data: [DONE]\n\n"


@dataclass
class ReplyWriter:
    """Of one request.

    model: name and digest of what replies. choices: how many are asked for; of greedy replies one alone is computed,
    and each choice is it.
    """

    model: str
    digest: str
    choices: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, job: Job, pieces: Iterable[Piece]) -> dict[str, Any]:
        """A chat.completion of all pieces of a job."""
        by_index: dict[int, list[Piece]] = {}
        for piece in pieces:
            by_index.setdefault(piece.index, []).append(piece)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(piece.text for piece in several), "refusal": None},
                "finish_reason": several[-1].finish,
                "logprobs": _logprobs([piece.token for piece in several if piece.token is not None], job),
            }
            for own, several in sorted(by_index.items())
            for index in self._indexes(own, job)
        ]
        return self._about("chat.completion") | {"choices": choices, "usage": self.usage(job)}

    def opening(self) -> bytes:
        """The first chunk: whose turn it is."""
        delta = {"role": "assistant", "content": ""}
        choices = [{"index": index, "delta": delta, "finish_reason": None} for index in range(self.choices)]
        return event(self._about("chat.completion.chunk") | {"choices": choices})

    def chunk(self, job: Job, pieces: Sequence[Piece]) -> bytes:
        """One event of the next pieces; empty where none of them says anything yet."""
        choices = [
            {
                "index": index,
                "delta": {"content": piece.text} if piece.text else {},
                "finish_reason": piece.finish,
                "logprobs": _logprobs([piece.token] if piece.token else [], job),
            }
            for piece in pieces
            if piece.text or piece.finish or piece.token
            for index in self._indexes(piece.index, job)
        ]
        return event(self._about("chat.completion.chunk") | {"choices": choices}) if choices else b""

    def usage_chunk(self, job: Job) -> bytes:
        return event(self._about("chat.completion.chunk") | {"choices": [], "usage": self.usage(job)})

    def usage(self, job: Job) -> dict[str, int]:
        """Tokens of the prompt, with those of its images, and of all choices, the end tokens among them."""
        said = job.reply_tokens * (self.choices // job.samples)
        return {
            "prompt_tokens": job.prompt_tokens,
            "completion_tokens": said,
            "total_tokens": job.prompt_tokens + said,
        }

    def _about(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.digest[:12],
        }  # fmt: skip

    def _indexes(self, own: int, job: Job) -> Sequence[int]:
        return range(self.choices) if job.samples < self.choices else (own,)


def event(said: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _logprobs(tokens: Sequence[TokenSaid], job: Job) -> dict[str, Any] | None:
    """Log-probabilities of the model itself, at temperature 1, whatever temperature a token was drawn at."""
    if job.top is None:
        return None
    return {
        "content": [
            _token(token.text, token.logprob) | {"top_logprobs": [_token(*each) for each in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    """bytes: null of a token that is a part of a character."""
    whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}
