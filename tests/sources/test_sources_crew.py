"""Several processes that look at the rows find what one finds, and end when they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some

from tests.jobs.test_convert import ROOT, flags, viscot_rows
from tests.sources import test_sources_llava_cot as llava_cot
from tests.sources import test_sources_scienceqa as scienceqa
from tests.sources.given import Given
from tests.sources.parquet import write
from tests.sources.test_sources_llava_cot import talk
from tests.sources.test_sources_notes import ROWS
from tests.sources.test_sources_survey import row, scene
from vcot.errors import InputError, TemporaryError
from vcot.sources import DATASETS, crew, parts
from vcot.sources.base import ConversionContext
from vcot.sources.crew import ALONE, Crew
from vcot.sources.known import Known
from vcot.sources.parts import Part
from vcot.sources.pictures import Pictures
from vcot.sources.survey import survey
from vcot.storage import Store


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    """Even a few rows are worth a process, and dealt in blocks of two."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(crew, "WORTH_A_PROCESS", 1)
        patched.setattr(parts, "BLOCK", 2)
        yield


@tuned(max_examples=25, deadline=None)
@for_all(ROWS, some.sampled_from([0, 24]), some.sampled_from(["exact", "near", "keep"]), some.integers(2, 4))
def test_processes_find_what_one_finds(drawn: list[Any], near: int, duplicates: Any, processes: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        for name, seed, quality in (("0", 0, 90), ("0-copy", 0, 30), ("1", 1, 90), ("2", 2, 90)):
            given.picture(f"vsr/{name}.jpg", data=scene(seed, quality))
        rows = [row(f"{name}.jpg", asked, answer=answer) | split | fault for name, split, asked, fault, answer in drawn]
        shown = given.rows([row("1.jpg")], "shown.json")
        found = []
        for people in (ALONE, Crew(processes, 2)):
            desk = given.desk("viscot", given.rows(rows[::2], "a.jsonl"), given.rows(rows[1::2] or rows, "b.json"),
                              near_duplicates=near, duplicates=duplicates, validation_share=0.5)  # fmt: skip
            known = Known(given.folder / f"known-{people.processes}.sqlite")
            desk = replace(desk, pictures=Pictures(Store(), str(given.images), "made", index=known))
            more = given.desk("viscot", shown)
            both = [Part(DATASETS["viscot"], replace(desk, part="one")), Part(DATASETS["viscot"], replace(
                desk, part="two", inputs=more.inputs))]  # fmt: skip
            found.append(survey(both, people))
            seen = [known.get(str(given.images / f"vsr/{name}.jpg")) for name in ("0", "0-copy", "1", "2")]
            found[-1]["known"] = [image and image.sha256 for image in seen]
        assert found[0] == found[1]


def part_of(given: Given, pictures: int = 12) -> Part:
    rows = []
    for number in range(pictures):
        given.picture(f"vsr/{number}.jpg", data=scene(number))
        rows.append(row(f"{number}.jpg"))
    desk = given.desk("viscot", given.rows(rows))
    index = Known(given.folder / "known.sqlite")
    return Part(DATASETS["viscot"], replace(desk, pictures=Pictures(Store(), str(given.images), "made", index=index)))


def test_what_is_known_already_every_process_knows(given: Given) -> None:
    part = part_of(given)
    survey([part], ALONE)
    for path in given.images.rglob("*.jpg"):
        path.write_bytes(b"nobody opens this")
    assert survey([part], Crew(3)) == survey([part], ALONE)


def glance(row: Any, desk: ConversionContext) -> Any:
    found = DATASETS["viscot"].glance
    assert found is not None
    return found(row, desk)


def with_look(given: Given, look: Callable[[Any, ConversionContext], Any]) -> Part:
    part = part_of(given)
    return replace(part, source=replace(part.source, glance=look))


def test_an_error_in_one_process_is_told_and_ends_the_others(given: Given) -> None:
    def look(row: Any, desk: ConversionContext) -> Any:
        if row.id.endswith(":7"):
            raise InputError("row 7 is not to be read")
        time.sleep(2)
        return glance(row, desk)

    begun = time.monotonic()
    with pytest.raises(InputError, match="row 7 is not to be read"):
        survey([with_look(given, look)], Crew(3))
    assert time.monotonic() - begun < 12


def test_a_process_that_is_killed_is_told(given: Given) -> None:
    def look(row: Any, desk: ConversionContext) -> Any:
        if row.id.endswith(":7"):
            os.kill(os.getpid(), signal.SIGKILL)
        return glance(row, desk)

    with pytest.raises(TemporaryError, match="was killed, perhaps for want of memory: --processes 1 needs less"):
        survey([with_look(given, look)], Crew(3))


SLOW = """
import time
from jobs.convert import ConvertSettings, run
from vcot.sources import crew, parts
from vcot.sources.pictures import Pictures
from vcot.stage import launch

crew.WORTH_A_PROCESS, parts.BLOCK = 1, 2
look = Pictures._look

def slowly(self, uri):
    time.sleep(1)
    return look(self, uri)

Pictures._look = slowly
launch(ConvertSettings, run)
"""


def of_coco(given: Given) -> Part:
    images = [{"id": n, "file_name": given.picture(f"{n}.jpg", data=scene(n)), "width": 96, "height": 96}
              for n in range(6)]  # fmt: skip
    boxes = [{"image_id": n, "category_id": 1 + n % 2, "bbox": [3 * n, 4, 20, 30], "iscrowd": 0} for n in range(6)]
    names = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    uri = given.rows([], "instances.json")
    Path(uri).write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    return Part(DATASETS["coco"], given.desk("coco", uri))


def of_scienceqa(given: Given) -> Part:
    rows = [scienceqa.row(n, question=f"Which {n % 2}?", image={"bytes": scene(n % 4), "path": "i"}) for n in range(9)]
    uri = write(given.folder / "train-00000-of-00001.parquet", rows, scienceqa.TYPES)
    return Part(DATASETS["scienceqa"], given.desk("scienceqa", uri))


def of_conversations(given: Given) -> Part:
    said = ("gpt", "<think>so</think>21")
    given.picture("chartqa/1.png", 200, 100)
    rows = [talk(llava_cot.ASKED, said, ("human", f"And {n % 3}?"), said) for n in range(7)]
    return Part(DATASETS["llava-cot"], given.desk("llava-cot", given.rows(rows)), limit=11)


@pytest.mark.parametrize("make", [of_coco, of_scienceqa, of_conversations])
@pytest.mark.parametrize("share", [1, 0.6])
def test_all_kinds_of_sources(given: Given, make: Callable[[Given], Part], share: float) -> None:
    part = replace(make(given), share=share)
    alone = survey([part], ALONE)
    for path in given.folder.glob("*.sqlite"):
        path.unlink()
    assert survey([part], Crew(3, 2)) == alone
    assert alone["duplicates"] or make is of_coco or share < 1


@pytest.mark.parametrize("whom", [subprocess.Popen.send_signal, lambda main, how: os.killpg(main.pid, how)])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_began_them(
    given: Given, tmp_path: Path, how: signal.Signals, whom: Callable[[Any, signal.Signals], None]
) -> None:
    """Asked to stop, they leave what they know; when it is killed, nobody goes on alone."""
    words = flags(run_uri=tmp_path / "run", **viscot_rows(given, bad=0), processes=2, readers=1)
    main = subprocess.Popen([sys.executable, "-c", SLOW, *words], cwd=ROOT, start_new_session=True)
    until(lambda: len(of_session(main.pid)) == 3)
    time.sleep(1)
    whom(main, how)
    ended = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert main.wait(timeout=30) == ended
    until(lambda: not of_session(main.pid))
    (tmp_path / "scratch").mkdir()
    known = Known(tmp_path / "scratch/pictures.sqlite")
    so_far = tmp_path / "run/convert/pictures-so-far.json"
    if how == signal.SIGKILL:
        assert not so_far.exists()
        return
    known.take(Store(), str(so_far))
    pictures = (given.images / "vsr").iterdir()
    assert any(known.get(str(path)) for path in pictures)


def of_session(session: int) -> list[int]:
    """The processes of it that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = stat.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(holds: Callable[[], bool], patience: float = 60) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_may_keep_fewer_cores_busy_than_there_are(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, said in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(said)
    assert crew._quota(tmp_path) == quota
    assert 1 <= crew.cores() <= 8


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")
