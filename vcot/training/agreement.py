"""Does another model say what base and adapter say? One into whose weights the adapter was merged, or one behind a
server, which may have taken the adapter and apply nothing of it.

    tuned = TunedModel(base, folder, tune)
    check_merged(tuned, merged, questions, encoder)                     logits and greedy replies
    check_served(tuned, served_replies(url, name, questions, encoder))  log-probabilities of what the server said

Both hold the other model against ours and against the base alone, on tokens of greedy replies to questions of the run:
it must be close to the one and, by several times that, away from the other. The base is the unquantised one, whatever
the adapter was trained on, because that is what a server has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vcot.models.decoding import Decoding
from vcot.models.device import DtypeName
from vcot.models.generation import generate, reply_logits
from vcot.models.loading import load_adapter, load_base
from vcot.tokens import Encoder
from vcot.training.asking import REPLY_TOKENS, Question, Said

CLOSE = 0.05
"""Nats: mean difference of log-probabilities up to which two ways of computing one model agree. Merged weights and
arithmetic in bfloat16 came to 0.003 with the rehearsal model; other kernels and larger models need room."""
APART = 4.0
"""So many times further away must the one be from which a model is told apart."""

Reply = tuple[Question, Sequence[int]]
"""A question, and the token ids of a reply to it."""


@dataclass(frozen=True)
class Difference:
    """Of numbers that should be the same: mean and largest absolute difference."""

    mean: float
    largest: float

    @classmethod
    def of(cls, some: Iterable[Tensor], others: Iterable[Tensor]) -> Difference:
        pairs = [(one - other).abs() for one, other in zip(some, others, strict=True)]
        count = sum(each.numel() for each in pairs)
        return cls(sum(float(each.sum()) for each in pairs) / count, max(float(each.max()) for each in pairs))


class TunedModel:
    """A base with its adapter, or (`tune` full) a model by itself and the base that it was; unquantised."""

    def __init__(self, base: Path, tuned: Path, tune: str, dtype: DtypeName = "auto") -> None:
        self._base, self._tuned, self._full, self.dtype = base, tuned, tune == "full", dtype
        self._held: tuple[str, Any] = ("", None)

    @contextmanager
    def ours(self) -> Iterator[Any]:
        if self._full:
            yield self._load("tuned", lambda: load_base(self._tuned, dtype=self.dtype))
        else:
            yield self._load("adapted", lambda: load_adapter(load_base(self._base, dtype=self.dtype), self._tuned))

    @contextmanager
    def base(self) -> Iterator[Any]:
        if self._full:
            yield self._load("base", lambda: load_base(self._base, dtype=self.dtype))
        else:
            with self.ours() as model, model.disable_adapter():
                yield model

    def drop(self) -> None:
        """Leaves the memory to another model."""
        self._held = ("", None)

    def _load(self, name: str, load: Any) -> Any:
        if self._held[0] != name:
            self.drop()
            self._held = (name, load())
        return self._held[1]


def greedy(model: Any, questions: Sequence[Question], encoder: Encoder) -> list[list[int]]:
    decoding = Decoding(REPLY_TOKENS, 0.0, 1, 0)
    ends = encoder.eos_token_ids
    return [generate(model, each.batch, decoding, eos_token_ids=ends)[0][0].ids for each in questions]


def logits_of(model: Any, replies: Sequence[Reply]) -> list[Tensor]:
    """Per reply float32 [tokens, vocabulary]: some 40 MB each, of 64 tokens in a vocabulary of 152,000."""
    return [reply_logits(model, question.batch, ids) for question, ids in replies]


def logprobs(logits: Tensor, reply: Reply) -> Tensor:
    """float32 [tokens]: of its own tokens, in nats."""
    return logits.log_softmax(-1).gather(1, torch.tensor(list(reply[1]))[:, None])[:, 0]


def logprobs_of(model: Any, replies: Sequence[Reply]) -> list[Tensor]:
    return [logprobs(reply_logits(model, reply[0].batch, reply[1]), reply) for reply in replies]


# --- verdicts ----------------------------------------------------------------------------------------------

Verdict = Literal["ours", "base", "neither", "cannot tell"]


def verdict(to_ours: Difference, to_base: Difference) -> Verdict:
    """Which of the two a model is, by log-probabilities; cannot tell: it is close to ours, and not clearly away from
    the base."""
    if to_ours.mean <= CLOSE:
        return "ours" if APART * to_ours.mean <= to_base.mean else "cannot tell"
    return "base" if APART * to_base.mean <= to_ours.mean else "neither"


@dataclass(frozen=True)
class Agreement:
    """Of log-probabilities of `tokens` tokens in `replies` replies; `logits`: of all logits there, merged weights only.
    same: greedy replies that are the same, token for token."""

    verdict: Verdict
    replies: int
    tokens: int
    to_ours: Difference
    to_base: Difference
    apart: Difference
    logits: Difference | None = None
    same: int | None = None

    @classmethod
    def between(
        cls, found: Sequence[Tensor], ours: Sequence[Tensor], base: Sequence[Tensor], **more: Any
    ) -> Agreement:  # fmt: skip
        """Of log-probabilities."""
        to_ours, to_base, apart = Difference.of(found, ours), Difference.of(found, base), Difference.of(ours, base)
        told, tokens = verdict(to_ours, to_base), sum(len(each) for each in found)
        return cls(told, len(found), tokens, to_ours, to_base, apart, **more)

    def rows(self, what: str) -> list[tuple[str, Difference]]:
        """What stands in a table, in nats but for the logits."""
        rows = [
            (f"{what} to the tuned model", self.to_ours), (f"{what} to the base alone", self.to_base),
            ("tuned model to the base alone", self.apart),
        ]  # fmt: skip
        return rows if self.logits is None else [*rows, ("all logits, to the tuned model", self.logits)]


def check_merged(tuned: TunedModel, merged: Path, questions: Sequence[Question], encoder: Encoder) -> Agreement:
    """Loads one model after the other, by the real classes. Raises InputError: the folder is no whole model."""
    with tuned.ours() as model:
        replies = list(zip(questions, greedy(model, questions, encoder), strict=True))
        wanted = logits_of(model, replies)
    with tuned.base() as model:
        base = logprobs_of(model, replies)
    del model  # or two would be in memory at once
    tuned.drop()
    model = load_base(merged, dtype=tuned.dtype)
    found, said = logits_of(model, replies), greedy(model, questions, encoder)
    same = sum(own == ids for own, (_, ids) in zip(said, replies, strict=True))
    theirs, ours = ([*map(logprobs, each, replies)] for each in (found, wanted))
    return Agreement.between(theirs, ours, base, logits=Difference.of(found, wanted), same=same)


def check_served(tuned: TunedModel, said: Sequence[Said]) -> Agreement:
    replies = [(one.question, one.ids) for one in said]
    with tuned.ours() as model:
        ours = logprobs_of(model, replies)
    del model
    with tuned.base() as model:
        base = logprobs_of(model, replies)
    return Agreement.between([torch.tensor(one.logprobs) for one in said], ours, base)
