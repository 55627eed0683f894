"""Drawn scenes: the same bytes, whatever the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from numpy._core._multiarray_umath import __cpu_dispatch__

DRAWN = """
import hashlib
import numpy as np
from vcot.datasets.scenes.drawing import draw_scene
from vcot.datasets.scenes.objects import SceneSpec
for number in range(60):
    scene = draw_scene(np.random.default_rng([0, number]), SceneSpec())
    print(number, hashlib.sha256(scene.image.tobytes()).hexdigest(), scene.objects)
"""


def drawn(**env: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", DRAWN]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, env=os.environ | env, cwd=root, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_a_scene_is_the_same_bytes_with_and_without_avx512() -> None:
    """Where the processor has none, both are the same; tests/frozen holds what comes out."""
    without = " ".join(feature for feature in __cpu_dispatch__ if feature.startswith(("AVX512", "X86_V4")))
    assert drawn().splitlines() == drawn(NPY_DISABLE_CPU_FEATURES=without).splitlines()
