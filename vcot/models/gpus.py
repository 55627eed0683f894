"""GPUs of this pod, without torch: a launcher and `--check` must not wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the names of this pod's GPUs for CUDA_VISIBLE_DEVICES, without asking a library."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return [str(number) for number in range(len([name for name in found if name.isdecimal()]))]
