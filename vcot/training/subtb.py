"""What a GFlowNet of rationales learns by (sub-trajectory balance), as functions of tensors alone.

    residuals(log_reward, log_tokens, log_ends)     by how many nats each prefix is drawn too seldom, but for a constant
    balance_loss(residuals, lengths)                0 where that is the same for all prefixes of a rationale
    balance_across(residuals, questions, weights)   0 where it is the same for all whole rationales of a question

A rationale is z_1 … z_n and an end. Every prefix of it, the empty one included, could have been ended there, with the
reward R(z_1:t end). Its sampler q is right, that is draws each rationale in proportion to its reward, where
log R(z_1:t end) − log q(z_1:t end) is one number, log Σ R, for all of them (Hu et al., arXiv 2310.04363). A vanishing
loss says so of the prefixes that were seen, and nothing of whether R is what was wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def residuals(log_reward: Tensor, log_tokens: Tensor, log_ends: Tensor) -> Tensor:
    """log R(z_1:t end) − log q(z_1:t end).

    Args:
        log_reward: [R, L + 1], of each prefix, t = 0 … L. log_tokens: [R, L], log q(z_t+1 | z_1:t).
        log_ends: [R, L + 1], log q(end | z_1:t); 0 where a rationale has reached its limit, and can only end.

    Returns:
        [R, L + 1]; behind a rationale's own length it means nothing.
    """
    said = torch.nn.functional.pad(log_tokens.cumsum(dim=1), (1, 0))
    return log_reward - said - log_ends


def balance_loss(residuals: Tensor, lengths: Tensor, decay: float = 1.0) -> Tensor:
    """Mean of the squared differences between two prefixes of the same rationale.

    With decay 1 all pairs count alike, and their mean is twice the unbiased variance: no pair is formed. With decay d
    two prefixes that are k tokens apart count d^(k − 1); 0 leaves neighbours alone, which is detailed balance.

    Args:
        residuals: [R, L + 1]. lengths: int64 [R], of the rationales, end not counted; what is behind is not looked at.

    Returns:
        [R]; 0 for an empty rationale, which has one prefix alone.
    """
    places = torch.arange(residuals.shape[1], device=residuals.device)
    there = places <= lengths[:, None]
    if decay == 1:
        known = residuals.where(there, 0)
        count = lengths + 1
        mean = known.sum(dim=1) / count
        spread = ((known - mean[:, None]) ** 2).where(there, 0).sum(dim=1)
        return 2 * spread / lengths.clamp(min=1)
    apart = places[None, :] - places[:, None]  # [L + 1, L + 1]
    weight = torch.where(apart > 0, decay ** (apart - 1).clamp(min=0).double(), 0.0).to(residuals)
    pairs = (there[:, :, None] & there[:, None, :]) * weight
    squared = (residuals[:, None, :] - residuals[:, :, None]) ** 2
    return (squared.where(pairs > 0, 0) * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1e-30)


def balance_across(residuals: Tensor, questions: Tensor, weights: Tensor) -> Tensor:
    """Squared distances from the mean over the rationales of the same question (the log-variance loss, VarGrad; Richter
    et al., arXiv 2010.10436): what a whole rationale is drawn too seldom by, beside the others, in one difference and
    not along hundreds of its prefixes.

    Args:
        residuals: [R], of whole rationales. questions: int64 [R], which each is about. weights: [R], in that mean.

    Returns:
        [R].
    """
    among = (questions[:, None] == questions[None, :]) * weights.to(residuals)  # [R, R]
    # A mean without gradient: with these weights what it would bring adds up to nothing.
    mean = among @ residuals.detach() / among.sum(dim=1).clamp(min=1e-30)
    return (residuals - mean) ** 2


def stops(length: int, stride: int) -> list[int]:
    """Prefixes of a rationale at which its reward is worked out: every so many tokens, the empty and the whole one."""
    return sorted({*range(0, length, stride), length})


def interpolated(values: Sequence[float], at: Sequence[int]) -> list[float]:
    """Linearly between stops (equation 4 of LaCoT, arXiv 2510.23925): [at[-1] + 1] values from those at `at`.

    With second differences of at most M and a stride of s, no value is off by more than M s² / 8.
    """
    found = [values[0]]
    for (first, last), (before, after) in zip(pairwise(at), pairwise(values), strict=True):
        found += [before + (after - before) * step / (last - first) for step in range(1, last - first + 1)]
    return found


def falling(begin: float, end: float, step: int, steps: int) -> float:
    """From one value to another in equal steps, and then that one."""
    return begin + (end - begin) * min(1.0, step / steps if steps else 1.0)
