"""Rationales of a prompt and, at many stops of each, an answer: how likely a model finds all of them, computed once.

    prompt with its images ─┬─ rationale 1 ─┬─ end, answer        after 0 tokens of it
                            │               └─ end, answer        after 8
                            └─ rationale 2 …

The prompt is computed once for all its rationales, a rationale once for all its stops. The answers after one rationale
are laid end to end, each seeing the prompt, the rationale up to its stop, and itself. With 44 stops of a rationale of
700 tokens that is 2,900 tokens in the place of 73,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vcot.models.generation import Prefix, prompts_of
from vcot.models.loss import CHUNK


class Branch(NamedTuple):
    """A rationale. row: of its prompt. ids: without its end. stops: after how many of its tokens, in rising order, its
    answer is scored. answer: ids, its end included."""

    row: int
    ids: Sequence[int]
    stops: Sequence[int] = ()
    answer: Sequence[int] = ()


class Scored(NamedTuple):
    """Natural logarithms of probabilities, at temperature 1.

    tokens: float32 [R, L], of each token given those before it; 0 behind a rationale's length. ends: float32
    [R, L + 1], of its end after each number of tokens. entropies: float32 [R, L + 1], in nats, of what comes after.
    answers: of each rationale, at each stop, the sum over its answer's tokens.
    """

    tokens: Tensor
    ends: Tensor
    entropies: Tensor
    answers: list[list[float]]


def score_branches(
    inner: Any, branches: Sequence[Branch], *, end: int, between: Sequence[int] = (), branch_tokens: int = 4096,
    **batch: Tensor,
) -> Scored:  # fmt: skip
    """Of rationales, with gradients where they are asked for; answers always without.

    Args:
        inner: the model with its head. end: the token that ends a rationale. between: what stands between that and an
            answer. branch_tokens: of answers, of all rationales, that are computed together.
        batch: as `Encoder.prompts` makes it.
    """
    prefix = Prefix(inner, batch, prompts_of(inner, batch))
    device = prefix.logits.device
    prefix.select(torch.tensor([branch.row for branch in branches], device=device))
    lengths = torch.tensor([len(branch.ids) for branch in branches], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*branch.ids, *[0] * (longest - len(branch.ids))] for branch in branches], device=device)
    there = torch.arange(longest, device=device) < lengths[:, None]
    first = prefix.logits.log_softmax(-1)  # [R, vocabulary], of what comes after the prompt
    tokens, ends = ids.new_zeros(ids.shape, dtype=torch.float32), [first[:, end, None]]
    entropies = [-(first.detach().exp() * first.detach()).sum(-1, keepdim=True)]
    if longest:
        states = prefix.states(ids.long(), there)
        following = torch.cat([ids[:, 1:], ids.new_full((len(ids), 1), end)], dim=1).long()
        said, ended, spread = (
            column.view(ids.shape) for column in _columns(inner.lm_head, states.flatten(0, 1), following.flatten(), end)
        )
        tokens = torch.cat([first.gather(1, ids[:, :1].long()), said[:, :-1]], dim=1).where(there, 0)
        ends.append(ended)
        entropies.append(spread)
    with torch.no_grad():
        answers = _answers(inner.lm_head, prefix, branches, end, between, longest, branch_tokens)
    return Scored(tokens, torch.cat(ends, dim=1), torch.cat(entropies, dim=1), answers)


def _answers(
    head: nn.Module, prefix: Prefix, branches: Sequence[Branch], end: int, between: Sequence[int], longest: int,
    branch_tokens: int,
) -> list[list[float]]:  # fmt: skip
    """prefix: that has the prompts and, padded on the right to `longest`, the rationales."""
    device, rows = prefix.logits.device, len(branches)
    opened = [end, *between]
    most = max((len(branch.answer) for branch in branches), default=0)
    length = len(opened) + most - 1  # the answer's last token is not said to anybody
    found: list[list[float]] = [[] for _ in branches]
    count = max((len(branch.stops) for branch in branches), default=0)
    if not most:
        return found
    at_once = max(1, branch_tokens // (rows * length))
    said = torch.tensor(
        [[*opened, *branch.answer[:-1], *[0] * (most - len(branch.answer))] for branch in branches], device=device
    )
    targets = torch.tensor([[*branch.answer, *[0] * (most - len(branch.answer))] for branch in branches], device=device)
    real = torch.tensor([[place < len(branch.answer) for place in range(most)] for branch in branches], device=device)
    for begin in range(0, count, at_once):
        some = [list(branch.stops[begin : begin + at_once]) for branch in branches]
        copies = max(map(len, some))
        stops = torch.tensor([each + [0] * (copies - len(each)) for each in some], device=device)  # [R, copies]
        states = prefix.beside(said, stops, longest)  # [R, copies, length, hidden]
        before = states[:, :, len(opened) - 1 :]  # the token before each of the answer's
        wanted = targets[:, None].expand(-1, copies, -1)
        likely, _, _ = _columns(head, before.flatten(0, 2), wanted.flatten(), end)
        sums = likely.view(rows, copies, most).where(real[:, None], 0).sum(-1).tolist()
        for row, (each, values) in enumerate(zip(some, sums, strict=True)):
            found[row] += values[: len(each)]
    return found


def _columns(head: nn.Module, states: Tensor, targets: Tensor, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of head(states [N, hidden]): log-probability of targets [N] and of `end`, and entropy, each float32 [N].

    As in `vcot.models.loss`, at most CHUNK numbers of the vocabulary's size exist at once, forward and backward.
    """
    weight = head.weight
    assert isinstance(weight, Tensor)

    def some(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = head(part.to(weight.dtype)).float()
        total = logits.logsumexp(-1)
        with torch.no_grad():
            entropy = total - (logits.softmax(-1) * logits).sum(-1)
        return logits.gather(1, of[:, None])[:, 0] - total, logits[:, end] - total, entropy

    size = max(1, CHUNK // weight.shape[0])
    parts = list(zip(torch.split(states, size), torch.split(targets, size), strict=True))
    run = some if len(parts) == 1 or not torch.is_grad_enabled() else partial(checkpoint, some, use_reentrant=False)
    said, ended, spread = zip(*(run(part, of) for part, of in parts), strict=True)
    return torch.cat(said), torch.cat(ended), torch.cat(spread)


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """The model before its training: with the adapters that it began with (`REFERENCE`), or with none."""
    if REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(REFERENCE, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter("default")


REFERENCE = "reference"
"""Adapters that a training began with, beside those that it trains."""


def narrow(compute: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast where it is computed in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16) if compute == torch.bfloat16 else nullcontext()
