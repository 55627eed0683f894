"""Where models run: a GPU that cannot be used is an error, not a slow CPU. Of torch alone, so a launcher is quick."""

from __future__ import annotations

import os
import platform
import re
import warnings
from contextlib import suppress
from ctypes import CDLL, byref, c_int
from pathlib import Path
from typing import Literal

import torch

from vcot.errors import SettingsError
from vcot.models.gpus import visible_gpus
from vcot.settings import OLDEST_DRIVER, Device

DtypeName = Literal["auto", "bfloat16", "float32"]

_cpu_only = False
"""Whether this process was told so. Hiding GPUs from CUDA is not enough: a library may have counted them before."""


def device() -> torch.device:
    """Where models run: the first GPU, or the CPU."""
    on_gpu = not _cpu_only and torch.cuda.is_available()
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def use_device(choice: Device, *, compute: bool = True) -> None:
    """Settles for this process, and for those that it starts, whether models run on the GPU.

    Args:
        choice: auto is cuda wherever a GPU or its driver can be seen, and else cpu.
        compute: try it as well. Takes some hundred MiB of the GPU, so not in a process that only starts others.

    Raises:
        SettingsError: cuda it is, and torch cannot compute there; with the versions of driver and CUDA.
    """
    global _cpu_only
    _cpu_only = choice == "cpu"
    if choice == "auto" and not visible_gpus(os.environ):
        # CUDA is not asked: it says the same of no GPU and of one that it cannot use.
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ
        _cpu_only = hidden or not (Path("/dev/nvidiactl").exists() or _driver_library())
    if _cpu_only:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes that this one starts
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            raise SettingsError(_unusable(choice, str(warned[0].message) if warned else "no GPU is there for it"))
    if compute:
        try:
            # A GPU too old for this torch counts as available until something is computed.
            torch.ones(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            raise SettingsError(_unusable(choice, str(error))) from None


def compute_dtype(name: DtypeName) -> torch.dtype:
    """The numbers to compute with; auto: bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device().type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities()
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def free_bytes() -> int:
    """Memory that a model may still take: of the GPU where there is one, else of this machine or container."""
    if device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    free = [int(found[1]) << 10] if found else []
    with suppress(OSError, ValueError):  # of a container under cgroup 2; "max" where it has no limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(limit - used)
    return min(free)


def device_name() -> str:
    """Return the name of the GPU, or of this CPU with its number of cores."""
    if device().type == "cuda":
        return torch.cuda.get_device_name(0)
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def _driver_library() -> CDLL | None:
    with suppress(OSError):
        return CDLL("libcuda.so.1")
    return None


def _unusable(choice: Device, reason: str) -> str:
    """One line: what was asked, what torch says, the driver of the machine's kernel and of this container."""
    module = Path("/proc/driver/nvidia/version")
    loaded = re.search(
        r"(?:Kernel Module|Module for \S+)\s+(\d+\.[\d.]+)", module.read_text() if module.exists() else ""
    )
    driver = f"Driver: {loaded[1]}" if loaded else "Driver: none is loaded on this machine"
    library, version = _driver_library(), c_int()
    if library is None:
        driver += "; its library libcuda.so.1 is not found (containers: the runtime must mount it)"
    elif library.cuDriverGetVersion(byref(version)) != 0:
        driver += "; its library does not answer"
    else:
        driver += f", for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"
    said = " ".join(reason.split())[:300].rstrip(".")
    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    asked = "--device cuda" if choice == "cuda" else "--device auto found a GPU or its driver"
    return (
        f"{asked}, and torch cannot use it: {said}. {driver}. torch {torch.__version__} is "
        f"{built_for}; the oldest driver for the pinned one is {OLDEST_DRIVER}. --device cpu does without a GPU"
    )
