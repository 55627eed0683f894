"""The key of the teacher's endpoint: it leaves this process for its endpoint, and nowhere else."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from jobs.distill import DistillSettings
from tests.fakes.distilling import ROOT, converted
from tests.fakes.teacher import Answer, Asked, Refuse, Say, scripted_teacher
from vcot.errors import SettingsError

pytestmark = pytest.mark.usefixtures("clean")

KEY = "sk-proj/Hush+4f9a01c2b7de&do=not*tell"
ALONE = ["--no-self-consistency", "--no-crop-check", "--no-answer-from-evidence", "--no-propose"]
"""One question for each row."""


def distilled(where: Path, *argv: str, **environment: str) -> tuple[int, str]:
    """Exit code, and all that left the process but for requests: what it said, and every file that it wrote."""
    said = where.parent / "last-word.json"
    command = [sys.executable, "-m", "jobs.distill", "--run-uri", str(where), "--teacher", "openai", "--model", "m"]
    answer = subprocess.run(
        [*command, "--termination-log", str(said), *ALONE, *argv], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    files = [path for path in where.parent.rglob("*") if path.is_file() and "convert" not in path.parts]
    written = b"\n".join(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files
    )
    return answer.returncode, answer.stdout + answer.stderr + written.decode(errors="replace")


def html(asked: Asked) -> Answer:
    return Answer(200, f"<html><body>Bad token: {KEY.replace('&', '&amp;')}</body></html>".encode())


def basic(asked: Asked) -> Answer:
    return Refuse(500, "Authorization: Basic " + base64.b64encode(f"user:{KEY}".encode()).decode())


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda asked: Refuse(401, f"Incorrect API key provided: {KEY}"), 78),
        (lambda asked: Refuse(403, "x" * 180 + KEY), 78),  # what is told of it ends within the key
        (html, 78),
        (basic, None),
    ],
    ids=["401", "cut", "HTML", "base64"],
)
def test_a_key_that_an_endpoint_echoes_is_told_nowhere(
    tmp_path: Path, script: Callable[[Asked], Answer], code: int | None
) -> None:
    with scripted_teacher(script) as teacher:
        ended, left = distilled(
            converted(tmp_path, 2, shards=1), "--retries", "0", OPENAI_BASE_URL=teacher.address, OPENAI_API_KEY=KEY
        )
    assert ended == code or (code is None and ended != 0)
    assert teacher.asked[0].authorization == f"Bearer {KEY}"
    assert "[redacted]" in left
    for form in (KEY, KEY[:12], json.dumps(KEY), quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()[:-4]):
        assert form not in left
    assert base64.b64encode(f"user:{KEY}".encode()).decode()[8:-4] not in left


def test_a_key_inside_a_reply_reaches_neither_cache_nor_rows(tmp_path: Path) -> None:
    def leaky(asked: Asked) -> Answer:
        if asked.question == "Where is disc 0?":
            words = f"I see the [1] beside the key {KEY}. So the answer is {asked.answer}."
            return Say(f"{words}\nAnswer: {asked.answer}")  # which is kept
        return Say(f"nothing, {KEY}")  # which is refused

    with scripted_teacher(leaky) as teacher:
        ended, left = distilled(
            converted(tmp_path, 2, shards=1),
            "--max-rejected-share",
            "0.5",
            OPENAI_BASE_URL=teacher.address,
            OPENAI_API_KEY=KEY,
        )
    assert ended == 0
    assert left.count("[redacted]") >= 4  # cache, kept row, rejection, page
    assert KEY not in left
    assert KEY[:12] not in left


@pytest.mark.parametrize(
    "argv",
    [
        ["--cache-uri", "s3://AKIAEXAMPLE:hunter2secret@bucket/cache"],
        ["--prices", "s3://AKIAEXAMPLE:hunter2secret@bucket/prices.toml"],
        ["--prompts", "look=s3://AKIAEXAMPLE:hunter2secret@bucket/look.v2.md"],
    ],
)
def test_credentials_in_addresses_are_refused_and_not_repeated(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"^{argv[0]}=.*: it holds credentials") as told:
        DistillSettings.load(["--run-uri", "/runs/x", "--teacher", "openai", "--model", "m", *argv])
    assert "hunter2secret" not in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("OPENAI_BASE_URL", "http://user:hunter2secret@127.0.0.1:9/v1"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1?token=hunter2secret"),
        ("AZURE_OPENAI_ENDPOINT", "https://user:hunter2secret@127.0.0.1:9"),
    ],
)
def test_credentials_in_the_clients_own_addresses_are_refused_too(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    monkeypatch.setenv(name, written)
    with pytest.raises(SettingsError, match=f"{name}=.*it holds credentials") as told:
        DistillSettings.load(["--run-uri", "/runs/x", "--teacher", "openai", "--model", "m"])
    assert "hunter2secret" not in str(told.value)
