"""Nested Python values with tensors in them, as safetensors: what a pickle would keep, and nothing that runs.

Tensors are stored as tensors; the tree of dicts, lists, tuples, numbers and strings around them stands as JSON in
the file's metadata. A tensor that occurs several times (bitsandbytes shares its maps) is stored once and shared again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vcot.errors import InputError, TemporaryError
from vcot.models import device

_TREE = "tree"


def write_state(value: Any, path: Path) -> None:
    """Writes a value made of dicts, lists, tuples, strings, numbers, booleans, None and tensors.

    Raises:
        TypeError: something else is in it.
        TemporaryError: no room is left on the disk.
    """
    tensors: dict[str, Tensor] = {}
    tree = _strip(value, tensors, {})
    save_tensors(tensors, path, {_TREE: json.dumps(tree)})


def read_state(path: Path) -> Any:
    """The value that `write_state` wrote: types, numbers and shared tensors are those of the original.

    Raises:
        InputError: the file is truncated or was not written by `write_state`.
    """
    tensors, metadata = load_tensors(path)
    if _TREE not in metadata:
        raise InputError(f"{path.name}: not a state of ours; its metadata has no {_TREE}")
    return _dress(json.loads(metadata[_TREE]), tensors)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """safetensors.save_file for tensors on any device, with a full disk told from other faults."""
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise disk_error(error) from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name}: not a whole safetensors file: {error}") from None


def disk_error(error: SafetensorError) -> Exception:
    """safetensors hides the system's error number in its text (28: no space, 122: quota)."""
    if "os error 28" in str(error) or "os error 122" in str(error):
        return TemporaryError(f"no room left on the disk: {error}; free some or point TMPDIR elsewhere")
    return error


def _strip(value: Any, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    """The tree without tensors. Numbers, strings, None stand for themselves; all else is {kind: content}."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen[id(value)] = name = str(len(tensors))
            tensors[name] = value.clone()
        return {"tensor": seen[id(value)]}
    if isinstance(value, Mapping):
        return {"dict": [[_strip(k, tensors, seen), _strip(v, tensors, seen)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_strip(v, tensors, seen) for v in value]}
    raise TypeError(f"a {type(value).__name__} cannot be stored; only plain values and tensors can")


def _dress(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {_dress(k, tensors): _dress(v, tensors) for k, v in content}
        case "list":
            return [_dress(v, tensors) for v in content]
        case "tuple":
            return tuple(_dress(v, tensors) for v in content)
    raise InputError(f"a state of ours holds a {kind!r}, which this version does not know")


def random_state() -> dict[str, Any]:
    """Of every generator that a training step may draw from, in a form that `write_state` takes."""
    import random

    import numpy as np

    name, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device().type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    import random

    import numpy as np

    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device().type == "cuda" and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
