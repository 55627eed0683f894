"""Every command of docs/distill.md, as it is written there and in its order, with a teacher that sees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.distill import DistillSettings, run
from tests.distill.asking import DISC, LEVER, row, see
from tests.fakes.batches import Batches
from tests.fakes.distilling import convert, distilled
from tests.fakes.teacher import Teacher, scripted_teacher
from tests.fakes.wise import Known, Wise
from vcot.distill import prompts
from vcot.distill.budget import FLAGS
from vcot.records import Sample
from vcot.settings import flag

pytestmark = pytest.mark.usefixtures("clean")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/distill.md").read_text()
EXPORTS = dict(
    pair.split("=", 1) for line in re.findall(r"^    export (.*)$", PAGE, re.M) for pair in shlex.split(line)
)
COMMANDS = re.findall(r"^    python -m jobs\.distill (.*)$", PAGE, re.M)
QUESTIONS = {f"What touches lever {n}?": Known("gear", needs="red disc") for n in range(4)}


def converted() -> None:
    """Rows of which half have boxes."""
    Path("images").mkdir()
    rows: list[Sample] = []
    for n, question in enumerate(QUESTIONS):
        evidence = (see("red disc", DISC), see("blue lever", LEVER)) if n % 2 else None
        rows.append(row(Path("images"), question, name=f"row-{n}", evidence=evidence))
    convert("runs/first", rows[:2], rows[2:])


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Teacher]:
    with scripted_teacher(Wise(QUESTIONS)) as found:
        monkeypatch.chdir(tmp_path)
        for name, value in EXPORTS.items():
            monkeypatch.setenv(name, value.replace("…", "x"))
        monkeypatch.setenv("OPENAI_BASE_URL", found.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("vcot.distill.batch.POLL", 0.01)
        yield found


def test_every_command_of_the_page_does_what_it_says(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted()
    Path("strict.v2.md").write_text(choose_prompts()["verdict"].text + "\nBe strict.\n")
    there = Batches(teacher)
    asked: dict[str, int] = {}
    for command in COMMANDS:
        before = len(teacher.asked)
        afresh = "--batch" in command  # or all replies would be kept already
        monkeypatch.setenv("VCOT_DISTILL_CACHE_URI", f"cache-{len(asked)}" if afresh else "runs/_cache/distill")
        settings, _ = DistillSettings.load(shlex.split(command))
        run(settings)
        asked[command] = len(teacher.asked) - before
        said = capsys.readouterr().out
        if settings.dry_run:
            assert re.search(r"^cost +about \$0\.\d+$", said, re.M), said
        elif settings.show_prompt:
            assert "--- caption, version 1" in said
        else:
            _, rows = distilled(settings.run_uri)
            assert all(one.reasoning and one.reasoning[0].boxes for one in rows)
            assert (Path(settings.run_uri) / "distill/report.html").stat().st_size > 10_000
    free, first, again, more, once_more, batched, levels, other, prompt = asked.values()
    assert (free, again, more, once_more, prompt) == (0, 0, 0, 0, 0)  # nothing that is kept is asked again
    assert first == len(there.lines) > 0
    assert batched == 0  # all of it was asked in batches
    assert 0 < other < levels  # the steps before the verdict are taken over


def test_the_page_names_flags_that_the_stage_has() -> None:
    known = {flag(name) for name in DistillSettings.model_fields} | {"--limit"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) - known == set()
    assert set(FLAGS) <= set(re.findall(r"--[a-z][a-z-]+", PAGE))


def test_the_page_is_found_from_the_others() -> None:
    for page in ("README.md", "docs/stages.md", "docs/kubernetes.md"):
        assert re.search(r"\]\((?:docs/)?distill\.md\)", (ROOT / page).read_text()), page
    for link in re.findall(r"\]\(([a-z]+\.md)(?:#[a-z-]+)?\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
