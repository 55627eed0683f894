"""The chain's command, as a process: in which order it judges, starts and stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pipeline(folder: Path, *flags: str, **variables: str) -> tuple[int, str]:
    """Exit code and what was said. The S3 server is a program that leaves a note when it is started, and fails."""
    server = folder / "minio"
    server.write_text(f"#!/bin/sh\ntouch {folder}/started\nexit 1\n")
    server.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    answer = subprocess.run(
        [
            sys.executable, "-m", "jobs.pipeline", "--example", "examples/blood-cells", "--base", "examples/rehearsal",
            "--local-folder", str(folder / "local"), *flags,
        ],
        cwd=ROOT, env=clean | {"MINIO": str(server)} | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.returncode, answer.stderr


def test_wrong_settings_of_a_late_stage_end_the_run_before_a_server_is_started(tmp_path: Path) -> None:
    code, said = pipeline(tmp_path, VCOT_EVALUATE_MAX_SAMPLES="0", VCOT_TRAIN_NUM_TRAIN_EPOCHS="-1")
    assert code == 78, said
    assert "VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: input should be greater than 0" in said
    assert "VCOT_EVALUATE_MAX_SAMPLES=0: input should be greater than or equal to 1" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minio"]


def test_with_settings_in_order_the_server_is_started(tmp_path: Path) -> None:
    """What the test above must not see can be seen."""
    code, said = pipeline(tmp_path)
    assert code != 0, said
    assert (tmp_path / "started").exists(), said


def test_wrong_settings_end_the_run_before_anything_is_put_into_storage(tmp_path: Path) -> None:
    storage = ("--server", "none", "--runs-uri", str(tmp_path / "storage" / "runs"))
    code, said = pipeline(tmp_path, *storage, VCOT_TRAIN_NUM_TRAIN_EPOCHS="-1")
    assert code == 78, said
    assert not (tmp_path / "storage").exists()
    code, said = pipeline(tmp_path, *storage, "--until", "convert", VCOT_CONVERT_INPUT_URI="/no/such/file.json")
    assert code == 3, said  # convert was started: what it reads had been stored before
    assert (tmp_path / "storage" / "examples" / "blood-cells" / "instances.json").exists()
