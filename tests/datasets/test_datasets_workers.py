"""Several processes find what one finds, and end when they should."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some

from tests.fakes.convert import ROOT, convert, flags, made, viscot_rows
from tests.fakes.rows import ALONE, ASKED, Given, metadata, scene, talk
from vcot.datasets import ConversionContext, parallel, prepare, reading
from vcot.datasets.base import Prepared
from vcot.datasets.image_index import ImageIndex
from vcot.datasets.images import DatasetImages
from vcot.datasets.parallel import Workers
from vcot.datasets.prepare import survey
from vcot.errors import TemporaryError
from vcot.storage import Store

ROWS = some.lists(
    some.tuples(
        some.sampled_from(["0", "0-copy", "1", "2"]),  # which image; 0-copy nearly is 0
        some.sampled_from([{}, {"split": "train"}, {"split": "val"}]),
        some.sampled_from(["Why?", "why", "Where is it?"]),
        some.sampled_from(
            [{}, {}, {}, {"bboxs": [[9, 2, 1, 4]]}, {"bboxs": []}, {"answer": ""}, {"width": 7}, {"split": "dev"}]
        ),
        some.sampled_from(["a thing", "yes"]),
    ),
    min_size=1,
    max_size=16,
)


def blocks_of_two() -> None:
    reading.BLOCK = 2


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """Even a few rows are worth a process, and dealt in blocks of two."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepare, "WORTH_A_PROCESS", 1)
        patched.setattr(reading, "BLOCK", 2)
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(2, tmp_path_factory.mktemp("scratch"), blocks_of_two) as found:
        yield found


def drawn_rows(given: Given, drawn: list[Any]) -> list[dict[str, Any]]:
    for name, seed, quality in (("0", 0, 90), ("0-copy", 0, 30), ("1", 1, 90), ("2", 2, 90)):
        given.image(f"vsr/{name}.jpg", data=scene(seed, quality))
    return [
        metadata([[1, 2, 30, 40]], image=f"{name}.jpg", question=asked, answer=answer, width=96, height=96)
        | split
        | fault
        for name, split, asked, fault, answer in drawn
    ]


@tuned(max_examples=2, deadline=None)
@for_all(ROWS, some.sampled_from([0, 24]), some.sampled_from(["exact", "near", "keep"]))
def test_processes_find_what_one_finds(two: Workers, drawn: list[Any], near: int, duplicates: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        rows = drawn_rows(given, drawn)
        shown = given.rows([metadata([[1, 2, 30, 40]], image="1.jpg", width=96, height=96)], "shown.json")
        files = given.rows(rows[::2], "a.jsonl"), given.rows(rows[1::2] or rows, "b.json")
        options = {"near_duplicates": near, "duplicates": duplicates, "validation_share": 0.5}
        found = []
        for people in (ALONE, two):
            index = ImageIndex(given.folder / f"known-{people.count}.sqlite")
            context = replace(
                given.context("viscot", *files, **options),
                images=DatasetImages(Store(), str(given.images), "made", index=index),
            )
            both = [
                replace(context, part="one"),
                replace(context, part="two", inputs=given.context("viscot", shown).inputs),
            ]
            facts = survey(both, people, 2)
            seen = [index.get(str(given.images / f"vsr/{name}.jpg")) for name in ("0", "0-copy", "1", "2")]
            found.append((facts, [image and image.sha256 for image in seen]))
        assert found[0] == found[1]


@tuned(max_examples=8, deadline=None)
@for_all(ROWS, some.sampled_from([0, 24]), some.sampled_from(["exact", "keep"]), some.booleans())
def test_a_glance_finds_what_reading_all_rows_whole_finds(
    drawn: list[Any], near: int, duplicates: Any, few: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        context = given.context(
            "viscot", given.rows(drawn_rows(given, drawn)), near_duplicates=near, duplicates=duplicates,
            validation_share=0.5, max_box_area=("0.01",) if few else (),
        )  # fmt: skip
        at_a_glance = survey([context], ALONE, 1)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(prepare, "_glance", partial(prepare._whole, rules=context.rules))
            whole = survey([context], ALONE, 1)
        for prepared in (at_a_glance, whole):  # an image of refused rows is compared, too
            prepared.counts["near_duplicates"].pop("images_compared", None)
        assert at_a_glance == whole


def of_coco(given: Given) -> ConversionContext:
    images = [{"id": n, "file_name": given.image(f"{n}.jpg", data=scene(n)), "width": 96, "height": 96}
              for n in range(6)]  # fmt: skip
    boxes = [{"image_id": n, "category_id": 1 + n % 2, "bbox": [3 * n, 4, 20, 30], "iscrowd": 0} for n in range(6)]
    names = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    uri = given.rows([], "instances.json")
    Path(uri).write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    return given.context("coco", uri)


def of_conversations(given: Given) -> ConversionContext:
    said = ("gpt", "<think>so</think>21")
    given.image("chartqa/1.png", 200, 100)
    rows = [talk(ASKED, said, ("human", f"And {n % 3}?"), said) for n in range(7)]
    return replace(given.context("llava-cot", given.rows(rows)), limit=11)


@pytest.mark.parametrize(("make", "share"), [(of_coco, 1), (of_conversations, 0.6)])
def test_all_kinds_of_sources(
    given: Given, two: Workers, make: Callable[[Given], ConversionContext], share: float
) -> None:
    part = replace(make(given), prepared=Prepared(shares={"": share}))
    ready = part.dataset.ready or (lambda _: None)
    ready(part)
    alone = survey([part], ALONE, 2)
    assert survey([part], two, 2) == alone


def test_an_error_in_one_process_is_told_and_ends_the_others(tmp_path: Path) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="sleep length must be non-negative"),
        Workers(3, tmp_path, os.getpid) as some_,
    ):
        some_.map(time.sleep, [(0,), (-1,), (60,)])
    assert time.monotonic() - begun < 59


def test_a_process_without_memory_ends_the_stage_for_now(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="not enough memory"), Workers(2, tmp_path, os.getpid) as some_:
        some_.map(bytearray, [(0,), (1 << 62,)])


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    said = "was killed, perhaps for want of memory: --processes 1 needs less"
    with pytest.raises(TemporaryError, match=said), Workers(2, tmp_path, os.getpid) as some_:
        some_.map(os.abort, [(), ()])


def test_shards_in_processes_are_those_of_one_process(given: Given, tmp_path: Path) -> None:
    """The whole stage: prepare and shards in a pool, and in one process."""
    settings = viscot_rows(given) | {"num_shards": 5}
    for processes in (1, 2):
        convert(tmp_path / f"run-{processes}", **settings, processes=processes)
    assert made(tmp_path / "run-1") == made(tmp_path / "run-2")


SLOW = """
import time
from vcot.datasets import prepare, reading
from vcot.datasets.images import DatasetImages

prepare.WORTH_A_PROCESS, reading.BLOCK = 1, 2
look = DatasetImages._look

def slowly(self, uri):
    time.sleep(1)
    return look(self, uri)

DatasetImages._look = slowly

if __name__ == "__main__":
    from jobs.convert import ConvertSettings, run
    from vcot.stage import launch

    launch(ConvertSettings, run)
"""


def main_alone(main: subprocess.Popen[bytes], how: signal.Signals) -> None:
    main.send_signal(how)


def all_of_the_terminal(main: subprocess.Popen[bytes], how: signal.Signals) -> None:
    os.killpg(main.pid, how)


@pytest.mark.parametrize(
    ("how", "whom"),
    [(signal.SIGTERM, main_alone), (signal.SIGINT, all_of_the_terminal), (signal.SIGKILL, main_alone)],
)
def test_processes_end_with_the_one_that_began_them(
    given: Given, tmp_path: Path, how: signal.Signals, whom: Callable[[Any, signal.Signals], None]
) -> None:
    """Asked to stop, they leave what they know; when it is killed, nobody goes on alone."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    words = flags(run_uri=tmp_path / "run", **viscot_rows(given, bad=0), processes=2, readers=1)
    clean = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    main = subprocess.Popen([sys.executable, str(script), *words], cwd=ROOT, start_new_session=True, env=clean)
    until(lambda: any(known_of(path) for path in tmp_path.glob("convert-*/images.sqlite")))
    whom(main, how)
    ended = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert main.wait(timeout=60) == ended
    until(lambda: not of_session(main.pid))
    so_far = tmp_path / "run/convert/images-so-far.json"
    if how == signal.SIGKILL:
        assert not so_far.exists()
        return
    assert not list(tmp_path.glob("convert-*"))
    known = ImageIndex(tmp_path / "later.sqlite")
    known.take(Store(), str(so_far))
    assert any(known.get(str(path)) for path in (given.images / "vsr").iterdir())


def known_of(path: Path) -> bool:
    import sqlite3

    try:
        return sqlite3.connect(path).execute("select count(*) from images").fetchone()[0] > 0
    except sqlite3.Error:
        return False


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
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_container_may_keep_fewer_cores_busy_than_there_are(
    tmp_path: Path, files: dict[str, str], quota: float
) -> None:
    for name, said in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(said)
    assert parallel._quota(tmp_path) == quota
    assert 1 <= parallel.cores() <= 8
