"""distill as a stage over made rows: what it reads, a run of it in this process or its own, and what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from jobs.distill import DistillSettings, run
from tests.distill.made import draw_png, sample
from tests.fakes.teacher import Teacher
from vcot.records import Folder, Rejection, Sample, read_samples
from vcot.records.metadata import ConvertMetadata, ConvertShardMetadata, DistillMetadata, DistillShardMetadata
from vcot.records.shards import CONVERT, DISTILL, ShardWriter, StageMarker, read_marker, run_shards
from vcot.reports.distillation import SHOWN
from vcot.reports.examples import ShownExample, sampled
from vcot.settings import Settings
from vcot.storage import Store, join

ROOT = Path(__file__).parents[2]

ALONE = {"self_consistency": False, "crop_check": False, "answer_from_evidence": False, "propose": False}
"""One request for each row."""


class Converted(Settings):
    """What convert would have written."""

    stage: ClassVar[str] = "convert"


def convert(run_uri: str, *shards: Iterable[Sample]) -> None:
    def work(writer: ShardWriter) -> ConvertShardMetadata:
        for row in shards[writer.index]:
            writer.keep(row)
        return ConvertShardMetadata()

    folder, settings = Folder(Store(), run_uri, CONVERT), Converted(run_uri=run_uri)
    given: dict[str, Any] = {"inputs": {}, "max_rejected_share": 1.0, "metadata": ConvertMetadata()}
    run_shards(folder, settings, shards=len(shards), work=work, **given)


def illustrated(run_uri: str, count: int) -> list[Sample]:
    """Rows whose image lies in storage."""
    uri = join(run_uri, "images", "one.png")
    Store().write(uri, draw_png())
    return [sample(f"Where is disc {n}?", name=f"row-{n}", uri=uri) for n in range(count)]


def converted(folder: Path, number: int, shards: int = 2, name: str = "one") -> Path:
    """A run whose shards take turns in the rows."""
    where, rows = folder / "runs" / name, illustrated(str(folder), number)
    convert(str(where), *(rows[n::shards] for n in range(shards)))
    return where


def distill(where: Path | str, teacher: Teacher | None, **given: Any) -> None:
    """In this process, one request for each row; without a teacher nobody is at the address."""
    settings = {"teacher": "openai", "model": "gpt-4o", "reply_tokens": 64, "image_side": 64}
    address = "http://127.0.0.1:1/v1" if teacher is None else teacher.address
    with patch.dict(os.environ, OPENAI_BASE_URL=address):
        run(DistillSettings(run_uri=str(where), **(settings | ALONE | given)))


def start(run_uri: str, teacher: Teacher, *argv: str, key: str = "x") -> subprocess.Popen[str]:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "OPENAI_"))} | {
        "VCOT_DISTILL_TEACHER": "openai", "VCOT_DISTILL_MODEL": "scripted",
        "VCOT_DISTILL_ANSWER_FROM_EVIDENCE": "false", "OPENAI_BASE_URL": teacher.address, "OPENAI_API_KEY": key,
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-m", "jobs.distill", "--run-uri", run_uri, *argv]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def stored(runs: Path) -> int:
    """Replies in the cache that the runs of this folder share."""
    return len(list((runs / "_cache" / "distill").rglob("*.json")))


def wait_for(replies: int, runs: Path, process: subprocess.Popen[str]) -> None:
    """Until that many replies are stored: on a busy machine they are stored long after they were asked for."""
    until = time.monotonic() + 120
    while stored(runs) < replies:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def distilled(run_uri: str) -> tuple[StageMarker[DistillShardMetadata, DistillMetadata], list[Sample]]:
    marker, _ = read_marker(Store(), join(run_uri, "distill"), DISTILL)
    return marker, list(read_samples(Store(), join(run_uri, "distill"), marker))


def rejections(run_uri: str, marker: StageMarker | None = None) -> list[Rejection]:
    marker = marker or read_marker(Store(), join(run_uri, "distill"))[0]
    lines = [Store().read(join(run_uri, "distill", shard.rejections.name)) for shard in marker.shards]
    return [Rejection.model_validate_json(line) for line in b"".join(lines).splitlines()]


def report(run_uri: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Store().read(join(run_uri, "distill", "report.json")))
    return found


def shown(run_uri: str) -> list[ShownExample]:
    """Rows that the shards put aside for the page."""
    folder = Folder(Store(), run_uri, DISTILL)
    groups = sampled(folder, folder.shard_markers(), SHOWN).by_dataset().values()
    return [one for kinds in groups for rows in kinds.values() for one in rows]


def files(folder: Path) -> dict[str, str]:
    """Name → sha256 of shards and rejections."""
    found = [p for kind in ("shards", "rejections") for p in (folder / "distill" / kind).iterdir()]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
