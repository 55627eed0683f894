"""Where models run: a GPU that cannot be used is an error, not a slow processor."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from ctypes import CDLL, byref, c_int
from pathlib import Path
from typing import Literal

import torch

from vcot.errors import SettingsError
from vcot.ranks import OLDEST_DRIVER, visible_gpus
from vcot.settings import Device

DtypeName = Literal["auto", "bfloat16", "float32"]

_MODULE = Path("/proc/driver/nvidia/version")


_processor_only = False
"""Whether this process was told so. Hiding GPUs from CUDA is not enough: a library may have counted them before."""


def device() -> torch.device:
    """Where models run: the first GPU, or the processor."""
    on_gpu = not _processor_only and torch.cuda.is_available()
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def use_device(choice: Device, *, compute: bool = True) -> None:
    """Settles for this process, and for those that it starts, whether models run on the GPU.

    Args:
        choice: auto is cuda wherever a GPU or its driver can be seen, and else cpu.
        compute: try it as well. Takes some hundred MiB of the GPU, so not in a process that only starts others.

    Raises:
        SettingsError: cuda it is, and torch cannot compute there; with the versions of driver and CUDA.
    """
    global _processor_only
    _processor_only = choice == "cpu" or (choice == "auto" and not _gpu_is_visible())
    if _processor_only:
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


def _gpu_is_visible() -> bool:
    """Judged without CUDA, which says the same of no GPU and of one that it cannot use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return bool(visible_gpus(os.environ))
    return bool(visible_gpus(os.environ)) or Path("/dev/nvidiactl").exists() or _driver_library() is not None


def _driver_library() -> CDLL | None:
    with suppress(OSError):
        return CDLL("libcuda.so.1")
    return None


def _unusable(choice: Device, reason: str) -> str:
    said = " ".join(reason.split())[:300].rstrip(".")
    built_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    needed = f"torch {torch.__version__} is {built_for}; the oldest driver for the pinned one is {OLDEST_DRIVER}."
    asked = "--device cuda" if choice == "cuda" else "--device auto found a GPU or its driver"
    return f"{asked}, and torch cannot use it: {said}. {_driver()}. {needed} --device cpu does without a GPU"


def _driver() -> str:
    """The driver of the machine's kernel, and whether its library can be loaded here."""
    said = _MODULE.read_text() if _MODULE.exists() else ""
    loaded = re.search(r"(?:Kernel Module|Module for \S+)\s+(\d+\.[\d.]+)", said)
    driver = f"Driver: {loaded.group(1)}" if loaded else "Driver: none is loaded on this machine"
    library = _driver_library()
    if library is None:
        return f"{driver}; its library libcuda.so.1 is not found (containers: the runtime must mount it)"
    version = c_int()
    if library.cuDriverGetVersion(byref(version)) != 0:
        return f"{driver}; its library does not answer"
    return f"{driver}, for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"
