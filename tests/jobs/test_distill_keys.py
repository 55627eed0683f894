"""Keys of the teacher's endpoints: they leave this process for their own endpoint, and nowhere else."""

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

from jobs.distill import DistillSettings, run
from tests.fakes.teacher import Answer, Asked, Refuse, Say, Teacher, grounded, scripted_teacher
from tests.teacher import storm
from vcot.errors import SettingsError

ROOT = Path(__file__).parents[2]
KEY, OTHER_KEY = "sk-proj/Hush+4f9a01c2b7de&do=not*tell", "another-key-1234567"
ALONE = ["--no-twice", "--no-look", "--no-reanswer", "--no-propose"]
"""One question for each row."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("VCOT_", "OPENAI_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")


def converted(folder: Path, number: int = 2) -> Path:
    where = folder / "runs" / "one"
    storm.convert(where, storm.rows(folder, number), 1)
    return where


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
        (lambda asked: Refuse(500, f"upstream said: {asked.authorization}"), None),
        (lambda asked: Refuse(403, "x" * 180 + KEY), 78),  # what is told of it ends within the key
        (lambda asked: Answer(body=b"x" * 60 + KEY.encode()), 78),
        (lambda asked: Refuse(500, f"GET /?api_key={quote(KEY, safe='')}"), None),
        (html, 78),
        (basic, None),
    ],
    ids=["401", "500", "cut", "no JSON", "in an address", "HTML", "base64"],
)
def test_a_key_that_an_endpoint_echoes_is_told_nowhere(
    tmp_path: Path, script: Callable[[Asked], Answer], code: int | None
) -> None:
    with scripted_teacher(script) as teacher:
        ended, left = distilled(
            converted(tmp_path), "--retries", "0", OPENAI_BASE_URL=teacher.address, OPENAI_API_KEY=KEY
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
            converted(tmp_path), "--max-rejected-share", "0.5", OPENAI_BASE_URL=teacher.address, OPENAI_API_KEY=KEY
        )
    assert ended == 0
    assert left.count("[redacted]") >= 4  # cache, kept row, rejection, page
    assert KEY not in left
    assert KEY[:12] not in left


def run_with(where: Path, *endpoints: str) -> None:
    settings = {"twice": False, "look": False, "reanswer": False, "propose": False, "teacher": "openai", "model": "m"}
    run(DistillSettings(run_uri=str(where), endpoints=endpoints, concurrency=2, **settings))  # type: ignore[arg-type]


def sent(teacher: Teacher) -> set[str]:
    return {asked.authorization for asked in teacher.asked}


def test_each_endpoint_gets_the_key_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MISTRAL_API_KEY", OTHER_KEY)
    with scripted_teacher() as one, scripted_teacher(host="127.0.0.2") as other:
        monkeypatch.setenv("OPENAI_BASE_URL", one.address)
        run_with(converted(tmp_path, 12), one.address, f"MISTRAL_API_KEY@{other.address}=2")
    assert sent(one) == {f"Bearer {KEY}"}
    assert sent(other) == {f"Bearer {OTHER_KEY}"}
    assert (len(one.asked), len(other.asked)) == (4, 8)


@pytest.mark.parametrize("base", [None, "https://api.openai.com/v1"])
def test_a_key_without_an_endpoint_of_its_own_goes_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if base is not None:
        monkeypatch.setenv("OPENAI_BASE_URL", base)
    where = converted(tmp_path)
    with scripted_teacher() as one, scripted_teacher(host="127.0.0.2") as other:
        with pytest.raises(SettingsError, match=rf"NAME@{one.address}.*OPENAI_API_KEY is for api\.openai\.com") as told:
            run_with(where, one.address, f"{other.address}=2")
        assert one.asked == other.asked == []
        run_with(where, one.address)  # but one that stands alone is whom it is for
    assert told.value.exit_code == 78
    assert sent(one) == {f"Bearer {KEY}"}


def test_the_variable_of_a_refused_or_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = converted(tmp_path)
    with scripted_teacher(lambda asked: Refuse(401, "no")) as teacher:
        with pytest.raises(SettingsError, match="MISTRAL_API_KEY is not set"):
            run_with(where, f"MISTRAL_API_KEY@{teacher.address}")
        monkeypatch.setenv("MISTRAL_API_KEY", OTHER_KEY)
        with pytest.raises(SettingsError, match="refuses the key in MISTRAL_API_KEY"):
            run_with(where, f"MISTRAL_API_KEY@{teacher.address}")


@pytest.mark.parametrize(
    "argv",
    [
        ["--endpoints", "http://user:hunter2secret@127.0.0.1:9/v1"],
        ["--endpoints", "https://hunter2secret@127.0.0.1:9/v1=2,https://b/v1"],
        ["--endpoints", "https://b/v1?api_key=hunter2secret"],
        ["--endpoints", "sk-hunter2secret@https://b/v1"],  # a key where the name of its variable belongs
        ["--cache-uri", "s3://AKIAEXAMPLE:hunter2secret@bucket/cache"],
        ["--prices", "s3://AKIAEXAMPLE:hunter2secret@bucket/prices.toml"],
        ["--prompts", "look=s3://AKIAEXAMPLE:hunter2secret@bucket/look.v2.md"],
    ],
)
def test_credentials_in_addresses_are_refused_and_not_repeated(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"^{argv[0]}=.*: (it holds credentials|before the @)") as told:
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
def test_credentials_in_the_clients_own_addresses_are_refused_too(tmp_path: Path, name: str, written: str) -> None:
    ended, left = distilled(converted(tmp_path), OPENAI_API_KEY=KEY, **{name: written})
    assert ended == 78
    assert name in left
    assert "hunter2secret" not in left
    assert "Traceback" not in left
    assert not (tmp_path / "runs" / "one" / "distill").exists()


def test_an_endpoint_without_a_name_keeps_to_the_key_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of one machine share its key: nobody else learns it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with scripted_teacher(grounded) as one, scripted_teacher(grounded) as other:
        run_with(converted(tmp_path, 6), one.address, other.address)
    assert sent(one) == sent(other) == {f"Bearer {KEY}"}
