"""Killed or asked to stop at any write, with everything that convert writes, and started again: the same bytes.

An archive is indexed, images are copied and compared, near-duplicates and a benchmark are kept apart.
"""

from __future__ import annotations

import io
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as Pillow

from jobs.convert import ConvertSettings, run
from tests.fakes.convert import ROOT, flags, made
from tests.fakes.rows import Given
from tests.storage.tars import in_chunks, tar
from vcot.datasets.images import DatasetImages
from vcot.errors import Interrupted
from vcot.records.shards import read_marker
from vcot.stage import stop
from vcot.storage import Store

DIES = """
import os, signal, sys, threading
from jobs.convert import ConvertSettings, run
from vcot.stage import launch
from vcot.storage import Store

left, lock = int(sys.argv.pop(1)), threading.Lock()
how = signal.Signals[sys.argv.pop(1)]

def mortal(verb):
    def write(self, *given):
        global left
        with lock:
            left -= 1
            if left == -1:
                os.kill(os.getpid(), how)
        return verb(self, *given)
    return write

for name in ("write", "write_once", "upload"):
    setattr(Store, name, mortal(getattr(Store, name)))
launch(ConvertSettings, run)
"""


def photograph(seed: int, quality: int) -> bytes:
    """Blots; with another quality, nearly the same ones."""
    rough = Pillow.frombytes("RGB", (6, 4), random.Random(seed).randbytes(72))
    buffer = io.BytesIO()
    rough.resize((300, 200), Pillow.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Two rows of each of 16 images, which are pairs of nearly the same; some are kept from training."""
    given = Given(tmp_path / "data")
    files = {f"images/{n}.jpg": photograph(n // 2, 95 - 10 * (n % 2)) for n in range(16)}
    in_chunks(Store(), str(tmp_path / "tar"), tar(files), 40_000)
    rows = [
        {"image": f"images/{n // 2}.jpg", "question": f"Where is {n % 3}?", "answers": ["there"]} for n in range(32)
    ]
    benchmark = given.rows([{"img_path": "images/3.jpg"}, {"img_path": "images/8.jpg"}], "benchmark.jsonl")
    settings = {
        "run_uri": tmp_path / "run", "source": "samples", "input_uri": given.rows(rows), "images_uri": tmp_path / "tar",
        "num_shards": 3, "exclude_benchmarks": benchmark, "ingest_pixels": 40_000, "validation_share": 0.3,
        "max_rejected_share": 0.5,
    }  # fmt: skip
    return [*flags(**settings), "--ingest"]


def ends(words: list[str], writes: int, how: signal.Signals) -> int:
    """The exit code of a process that has so many writes left."""
    return subprocess.run(
        [sys.executable, "-c", DIES, str(writes), how.name, *words], cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    ).returncode


def test_the_same_bytes(words: list[str], tmp_path: Path) -> None:
    stormy_run = tmp_path / "run"
    assert ends(words, 1_000, signal.SIGKILL) == 0
    stormy_run.rename(tmp_path / "calm")
    codes = []
    while not codes or codes[-1] != 0:
        codes.append(ends(words, 1 + 5 * len(codes), (signal.SIGKILL, signal.SIGTERM)[len(codes) % 2]))
        assert codes[-1] in (0, 143, -signal.SIGKILL), codes
    assert {143, -signal.SIGKILL} <= set(codes)
    calm, stormy = made(tmp_path / "calm"), made(stormy_run)
    marker, _ = read_marker(Store(), f"{stormy_run}/convert")
    named = {file.name for shard in marker.shards for file in (*shard.files, shard.rejections)}
    assert named == calm.keys()
    assert {name: stormy[name] for name in named} == calm
    assert copies(stormy_run) == copies(tmp_path / "calm")
    assert len(copies(stormy_run)) == 16
    for name in ("survey.json", "report.html"):
        assert (stormy_run / "convert" / name).read_bytes() == (tmp_path / "calm/convert" / name).read_bytes()
    assert b"held-out" in b"".join(calm.values())


def test_a_look_at_all_rows_that_is_asked_to_stop_is_gone_on_with(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends soon, and what it has looked at is not opened again."""
    looked: list[str] = []
    look = DatasetImages._look
    monkeypatch.setattr(DatasetImages, "_look", lambda self, uri: looked.append(uri) or look(self, uri))
    monkeypatch.setattr(type(stop), "requested", property(lambda _: len(looked) >= 5))
    settings, _ = ConvertSettings.load([*words, "--part", "prepare", "--readers", "1"])
    with pytest.raises(Interrupted):
        run(settings)
    assert len(looked) == 5
    monkeypatch.setattr(type(stop), "requested", False)
    run(settings)
    assert len(set(looked[:16])) == 16, "16 images, each once"
    assert (tmp_path / "run/convert/survey.json").exists()


def copies(run: Path) -> dict[str, bytes]:
    folder = run / "convert/images"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}
