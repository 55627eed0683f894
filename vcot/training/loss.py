"""The loss: cross entropy where something is learned, and logits nowhere else.

Of an example's tokens a quarter or less are learned. The head makes a vector of the size of the vocabulary
(152,064 numbers) for each token it is given, so it is given only those: the same loss, a fraction of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vcot.models import whole_model
from vcot.records.example import IGNORED


def learned_tokens(labels: Tensor) -> Tensor:
    """How many tokens of [B, T] labels count; the first of a row is predicted from nothing."""
    return (labels[:, 1:] != IGNORED).sum()


def loss_sum(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Cross entropy summed over the learned tokens of a batch; a scalar, float32.

    Args:
        model: with or without an adapter.
        batch: as `Collate` makes it.
    """
    inner = whole_model(model)
    states = inner.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        pixel_values=batch.get("pixel_values"),
        image_grid_thw=batch.get("image_grid_thw"),
        use_cache=False,
    ).last_hidden_state  # [B, T, hidden]
    targets = batch["labels"][:, 1:]
    learned = (targets != IGNORED).flatten().nonzero().squeeze(1)
    before = states[:, :-1].flatten(0, 1).index_select(0, learned)  # [learned, hidden]
    logits = inner.lm_head(before.to(inner.lm_head.weight.dtype)).float()
    return functional.cross_entropy(logits, targets.flatten()[learned], reduction="sum")


def narrow(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a model with float32 adapters or weights computes in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
