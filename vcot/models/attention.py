"""Attention that works on tokens of many segments laid end to end, each segment apart from the others.

    use_varlen_attention(model)                    the vision tower and the language model of a loaded base
    model(…, row_bounds=…, longest_row=…)          rows packed end to end into a batch of one row

Vision tower: all windows and images of a layer in one call (transformers' other implementations loop over them).
Language model: packed rows do not see each other; no mask of the size of the rows' tokens squared is ever made.

Where the numbers are bfloat16 or float16 on a GPU that has the kernel, torch's own variable-length attention computes
it; elsewhere the segments are padded to the longest and torch's ordinary attention does.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vcot import logging

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch before 2.10, or one built without it
    varlen_attn = None  # type: ignore[assignment]

_OPTIONS = set() if varlen_attn is None else set(inspect.signature(varlen_attn).parameters)

NAME = "varlen_flash"
"""Qwen's vision towers look for "flash" in the name: only then do they hand over all segments in one call."""

OLDEST_GPU = (8, 0)
"""The compute capability from which on torch's kernel runs."""


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, *, causal: bool, scale: float | None = None
) -> Tensor:
    """Attention within each of the segments that lie end to end.

    Args:
        query: [T, heads, size]; key, value: [T, key heads, size], where key heads divides heads.
        bounds: int32 [segments + 1], where each segment begins; the first is 0 and the last T.
        longest: tokens of the longest segment.

    Returns:
        [T, heads, size], in the dtype of `value`, or of autocast where that is on.
    """
    # Rotary positions in float32 leave queries and keys wider than values; autocast does not know this kernel.
    dtype = _dtype(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    grouped = query.shape[1] != key.shape[1]
    if has_kernel(value):
        window = (-1, 0) if causal else (-1, -1)
        bounds = bounds.to(torch.int32)
        options: dict[str, Any] = {"scale": scale, "window_size": window}
        if grouped and "enable_gqa" in _OPTIONS:
            options["enable_gqa"] = True
        elif grouped:  # torch 2.11
            times = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        out = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
        assert isinstance(out, Tensor)
        return out
    return _padded_attention(query, key, value, bounds, longest, causal=causal, scale=scale)


def has_kernel(values: Tensor) -> bool:
    """Whether torch's variable-length attention runs on numbers of this kind where they are."""
    narrow = values.dtype in (torch.bfloat16, torch.float16)
    if not (values.is_cuda and narrow and {"scale", "window_size"} <= _OPTIONS):
        return False
    return torch.cuda.get_device_capability(values.device) >= OLDEST_GPU


def _dtype(values: Tensor) -> torch.dtype:
    """What to compute in: autocast's where it is on."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def _padded_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, *, causal: bool, scale: float | None
) -> Tensor:
    """The same by padding: [T, …] → [segments, longest, …] and back."""
    lengths = (bounds[1:] - bounds[:-1]).long()
    lengths = lengths[lengths > 0]
    there = torch.arange(longest, device=lengths.device) < lengths[:, None]  # [segments, longest]
    full = there.numel() == len(query)
    places = None if full else there.flatten().nonzero().squeeze(1)

    def padded(values: Tensor) -> Tensor:  # [T, heads, size] → [segments, heads, longest, size]
        if places is not None:
            values = values.new_zeros(there.numel(), *values.shape[1:]).index_copy(0, places, values)
        return values.reshape(*there.shape, *values.shape[1:]).transpose(1, 2)

    # Causal attention needs no mask: padding comes after all that may look at it.
    mask = None if causal or full else there[:, None, None, :]
    out = _sdpa(padded(query), padded(key), padded(value), mask, causal=causal, scale=scale)
    out = out.transpose(1, 2).flatten(0, 1)
    return out if places is None else out.index_select(0, places)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None,
    row_bounds: Tensor | None = None, longest_row: int | None = None, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What the models call in each layer, by the name `varlen_flash`.

    Args:
        query, key, value: [1, heads, T, size] with segments; [B, heads, T, size] without.
        attention_mask: of rows with a cache or padded on the left; None beside segments.
        cu_seq_lens_q, max_length_q: the segments that a vision tower hands over.
        row_bounds, longest_row: the packed rows of the language model, as `segment_attention`'s bounds and longest.
            A vision tower is handed them too, and does not use them.

    Returns:
        [B, T, heads, size].
    """
    if value.device.type == "cpu" and torch.is_grad_enabled() and (dtype := _dtype(value)) == torch.bfloat16:
        # Forward and backward in float32 take a quarter of the time that they take in bfloat16 on a CPU.
        with torch.autocast("cpu", enabled=False):
            out, _ = attention(
                module, query.float(), key.float(), value.float(), attention_mask, scaling=scaling, dropout=dropout,
                is_causal=is_causal, cu_seq_lens_q=cu_seq_lens_q, max_length_q=max_length_q, row_bounds=row_bounds,
                longest_row=longest_row, **rest,
            )  # fmt: skip
        return out.to(dtype), None
    bounds, longest, causal = cu_seq_lens_q, max_length_q, bool(is_causal)
    if bounds is None:
        bounds, longest, causal = row_bounds, longest_row, True
    if bounds is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
        return out, None
    if dropout or rest.get("sliding_window") is not None or query.shape[2] != key.shape[2] or len(query) != 1:
        raise NotImplementedError("packed rows beside a cache or other rows, with dropout, or with a sliding window")
    assert longest is not None
    out = segment_attention(
        query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), bounds, int(longest),
        causal=causal, scale=scaling,
    )  # fmt: skip
    return out[None], None


def _drop_packed_positions(language_model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Remove the positions from which transformers would find packed rows and build a mask of T × T numbers.

    `row_bounds` already keeps the rows apart. Of the four rows of mRoPE positions only the first, of text, is read for
    a mask. One-dimensional positions [B, T] are dropped: rotary embeddings depend on distances only, so counting
    through all rows gives the same attention. A batch longer than the context keeps them, because some types of RoPE
    scaling (dynamic, longrope) change with the largest position.
    """
    positions = named.get("position_ids")
    if named.get("row_bounds") is None or positions is None:
        return arguments, named
    if positions.ndim == 3:
        named["position_ids"] = positions[-3:]
    elif positions.shape[-1] <= language_model.config.max_position_embeddings:
        named["position_ids"] = None
    return arguments, named


def use_varlen_attention(model: Any, dtype: torch.dtype) -> None:
    """Sets it for both parts of a loaded base (not while loading, which the library does not allow).

    Args:
        dtype: what it will compute in, under autocast or by its weights.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME, "vision_config": NAME})
    model.model.language_model.register_forward_pre_hook(_drop_packed_positions, with_kwargs=True)
    where = model.lm_head.weight.device
    backend = "torch varlen" if has_kernel(torch.empty(0, dtype=dtype, device=where)) else "padded sdpa"
    if where.type == "cuda" and not {"scale", "window_size"} <= _OPTIONS:
        logging.get().warning(
            "this torch has no torch.nn.attention.varlen as in 2.11 and later; slower", torch=torch.__version__
        )
    logging.get().info("attention", text=f"{backend} where packed, else sdpa", vision=backend)
