"""The loss as part of a model's own forward pass, with logits only where something is learned.

    add_loss(model)
    total = model(**batch, want="loss")        a sum over the learned tokens, float32

Vision tower, language model, head and loss are one call of the model, so a wrapper around it (DistributedDataParallel,
FSDP2) sees all that is used, once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vcot.models.families import family_of
from vcot.records.example import IGNORED

CHUNK = 1 << 26
"""Logits that exist at once: 256 MiB in float32."""


def add_loss(model: Any) -> None:
    """Gives `model.forward` the argument want; without it, the model answers as before.

    `model(input_ids=…, labels=…, …, want="loss")` takes labels int64 [B, T], where IGNORED is not learned, and
    returns the cross entropy summed over the learned tokens: a scalar, float32. A token is predicted from the one
    before it. So of rows packed end to end, each row's first token has to be IGNORED: the one before it belongs
    to another row. Where nothing is learned the sum is 0, with a gradient of 0 for every weight.

    want may also be a function: `want(model, …)` then runs within this one call of the model, as a wrapper needs it.
    """
    plain = model.forward

    @functools.wraps(plain)  # the library reads from its signature what a model takes
    def forward(*arguments: Any, want: str | Callable[..., Any] | None = None, **named: Any) -> Any:
        if want is None:
            return plain(*arguments, **named)
        if callable(want):  # an adapter hands over many a None
            return want(model, **{name: value for name, value in named.items() if value is not None})
        if want != "loss" or arguments:
            raise TypeError(f'want is "loss" or nothing, and the rest is given by name; got {want!r}')
        return _loss(model, **named)

    model.forward = forward


def _loss(model: Any, *, labels: Tensor, input_ids: Tensor, pixel_values: Tensor | None = None, **named: Any) -> Tensor:
    if pixel_values is not None:
        named |= {"input_ids": input_ids, "pixel_values": pixel_values}
    else:
        named = {name: value for name, value in named.items() if name != "image_grid_thw"}
        if needs_vision(model):
            named["inputs_embeds"] = _embeddings_beside_vision(model, input_ids)
        else:
            named["input_ids"] = input_ids
    named = {name: value for name, value in named.items() if value is not None}  # an adapter hands over many a None
    states = model.model(**named | {"use_cache": False, "return_dict": True}).last_hidden_state  # [B, T, hidden]
    targets = labels[:, 1:]
    learned = (targets != IGNORED).flatten().nonzero().squeeze(1)
    before = states[:, :-1].flatten(0, 1).index_select(0, learned)  # [learned, hidden]
    return head_loss(model.lm_head, before, targets.flatten()[learned])


def head_loss(head: nn.Module, states: Tensor, targets: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Sum of the cross entropy of head(states) [N, hidden] with targets int64 [N].

    The head makes a vector of the vocabulary's size (152,064 numbers) for each state. At most `chunk` of these
    numbers exist at once, forward and backward: they are made again in the backward pass (for Qwen2.5-VL-7B 2 % of a
    step's work at most). In bfloat16 that is 2 + 4 bytes each, and as much again for their gradients beside 4 for
    the softmax: 1 GiB, however long the batch.
    """
    weight = head.weight
    assert isinstance(weight, Tensor)

    def total(some: Tensor, of: Tensor) -> Tensor:
        return functional.cross_entropy(head(some.to(weight.dtype)).float(), of, reduction="sum")

    rows = max(1, chunk // weight.shape[0])
    if len(states) <= rows:
        return total(states, targets)
    parts = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
    return torch.stack([checkpoint(total, some, of, use_reentrant=False) for some, of in parts]).sum()


def needs_vision(model: Any) -> bool:
    """Whether the other ranks would wait for the weights or gradients of what sees images."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return False
    part = family_of(model.config).part
    return any(
        weight.requires_grad or isinstance(weight, DTensor)
        for name, weight in model.named_parameters()
        if part(name) != "language"
    )


def _embeddings_beside_vision(model: Any, input_ids: Tensor) -> Tensor:
    """The tokens' embeddings [B, T, hidden] of a batch without images, and for the other ranks' sake a vision pass.

    The smallest image of zeros goes through the vision tower and counts nothing. Embeddings come first and the
    vision tower second, as with images: each rank must ask for sharded weights in the same order.
    """
    embeddings: Tensor = model.get_input_embeddings()(input_ids)
    nothing = family_of(model.config).smallest_image(model)
    nothing = {name: value.to(input_ids.device) for name, value in nothing.items()}
    nothing["pixel_values"] = nothing["pixel_values"].to(embeddings.dtype)
    seen = model.model.get_image_features(**nothing, return_dict=True)
    parts = [*seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
    return embeddings + torch.stack([part.sum() for part in parts]).sum().to(embeddings.dtype) * 0
