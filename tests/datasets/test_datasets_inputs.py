"""Files of rows: JSON arrays and lines, gzipped or not, and Parquet; whose rows are whose; what becomes of each."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
import tracemalloc
from array import array
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from tests.fakes.broken_rows import broken
from tests.fakes.rows import (
    ASKED,
    IMAGE,
    SCIENCEQA_TYPES,
    Given,
    chat,
    informed,
    metadata,
    png,
    scienceqa_row,
    talk,
    write_parquet,
)
from vcot.datasets import read, rows_of_shard
from vcot.datasets.inputs import find, found_in, parquet_rows, row_of, rows_of
from vcot.datasets.parallel import in_order
from vcot.datasets.reading import rows_in_blocks
from vcot.errors import InputError
from vcot.records import Folder, Rejection
from vcot.records.shards import CONVERT
from vcot.storage import Changed, Store, join, local, s3

ROWS = [{"n": 1, "x": 0.1}, {"n": 2, "x": [1.5, 2]}, {"n": 3, "x": "ü"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, data: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return str(path)


def said(*uris: str) -> list[tuple[str, object]]:
    """(id, what the row says or why it could not be read)."""
    store = Store()
    return [
        (row.id, row.fault.reason.value if row.fault else dict(row.value))
        for file in find(store, uris)
        for row in rows_of(store, file)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("form", ["lines", "array", "pretty array"])
def test_lines_and_arrays_whatever_the_name_says(tmp_path: Path, name: str, form: str) -> None:
    text = LINES if form == "lines" else json.dumps(ROWS, indent=2 if form == "pretty array" else None)
    assert said(write(tmp_path / name, text)) == [(f"{name}:{n}", row) for n, row in enumerate(ROWS, 1)]


def test_a_byte_order_mark_and_empty_lines_are_nothing(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode()
    assert [value for _, value in said(write(tmp_path / "a.jsonl", text))] == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_of_another_encoding_is_refused_as_a_whole(tmp_path: Path, encoding: str) -> None:
    """Cut into lines where UTF-8 has them, it would have other rows than it has."""
    for text in (LINES, json.dumps(ROWS)):
        with pytest.raises(InputError, match=r"a\.jsonl is written in UTF-16 or UTF-32; JSON is UTF-8"):
            said(write(tmp_path / "a.jsonl", text.encode(encoding)))


def test_lines_that_are_not_json_are_named_by_their_number_and_cost_nobody_else(tmp_path: Path) -> None:
    bad = ['{"n": 1}', '{"n": 2', "[1, 2]", '"text"', "\udcff", '{"n": ' + "[" * 100_000, '{"n": NaN}']
    data = "\n".join(bad).encode(errors="surrogateescape")
    reasons = ["not-json", "wrong-shape", "wrong-shape", "not-json", "not-json"]
    found = said(write(tmp_path / "a.jsonl", data))
    assert [name for name, _ in found] == [f"a.jsonl:{n}" for n in range(1, 8)]
    assert [value for _, value in found[:6]] == [{"n": 1}, *reasons]


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("", "not one row"),
        ("[ ]", "not one row"),
        (json.dumps(ROWS)[:-1], "is it cut off"),
        ('[{"n": 1} {"n": 2}]', "the end of entry 1: ',' should follow, not '{\"n\": 2}]'"),
        ('[{"n": 1}, {"n": oops}]', "entry 2: Expecting value"),
        ("[", "entry 1: the file ends"),
        ('[{"n": 1}] [', "its end: more follows, '['"),
        ('[{"n": 1},]', "entry 2: Expecting value"),
    ],
)
def test_files_without_rows_and_arrays_that_are_not_whole(tmp_path: Path, text: str, said_of_it: str) -> None:
    with pytest.raises(InputError) as refused:
        said(write(tmp_path / "a.json", text))
    assert said_of_it in str(refused.value)


def test_a_gzip_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl.gz", LINES * 1000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole gzip"):
        said(str(path))
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match="not a whole gzip"):
        said(str(path))


def test_a_folder_stands_for_the_files_below_it_and_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "deep/c.jsonl.gz", "readme.txt"):
        write(tmp_path / "in" / name, LINES)
    assert [row_id for row_id, _ in said(str(tmp_path / "in"))][::3] == ["a.json:1", "b.jsonl:1", "deep/c.jsonl.gz:1"]
    uris = [write(tmp_path / side / "rows.jsonl", LINES) for side in ("train", "val", "more/train")]
    assert said(*uris[:2])[0][0] == "train/rows.jsonl:1"
    assert len({row_id for row_id, _ in said(*uris)}) == 9
    (tmp_path / "empty").mkdir()
    for uri in (tmp_path / "nothing.json", tmp_path / "empty"):
        with pytest.raises(InputError, match="no such file"):
            said(str(uri))


@pytest.mark.parametrize("named", ["the file", "its folder"])
def test_a_fifo_among_the_files_of_rows_is_refused_by_its_name(tmp_path: Path, named: str) -> None:
    write(tmp_path / "in" / "a.jsonl", LINES)
    os.mkfifo(tmp_path / "in" / "b.jsonl")
    uri = tmp_path / "in" / "b.jsonl" if named == "the file" else tmp_path / "in"
    with pytest.raises(InputError, match=r"in/b\.jsonl: a FIFO, not a regular file"):
        find(Store(), [str(uri)])


ODD = [
    '{"n": 1}', "17", '"text"', "null", '{"ü": "日本 😀", "n": [1, {"m": "]},["}]}', "[]", '{"n": NaN}',
    '{"big": ' + "9" * 5000 + "}", "[" * 100_000 + "]" * 100_000, '{"half": "\udcff\udc80"}', '{"n": -Infinity}',
    '{"last": "é"}',
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("between", [",", " ,\r\n\t "])
@pytest.mark.parametrize("buffer", [7, 1 << 20])
@pytest.mark.parametrize("beginning", ["", "\ufeff", "\ufeff\n"])
def test_entries_whose_places_are_noted_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, between: str, buffer: int, beginning: str
) -> None:
    monkeypatch.setattr("vcot.datasets.jsontext._BUFFER", buffer)
    data = f"{beginning}[ {between.join(ODD)} ] \n".encode("utf-8", "surrogateescape")
    store, uri = Store(), write(tmp_path / name, data)
    (file,) = find(store, [uri])
    starts = array("Q")
    whole = [repr(row_of(file, *found)) for found in found_in(store, file, (), starts)]
    assert len(whole) == len(ODD) == len(starts) - 1
    assert [repr(row_of(file, *found)) for found in found_in(store, file, (), starts)] == whole
    some = [repr(row_of(file, *found)) for found in islice(found_in(store, file, (), starts), 1, None, 3)]
    assert some == whole[1::3]
    for entry, start in zip(ODD, starts[:-1], strict=True):
        assert data[start:].startswith(entry.encode("utf-8", "surrogateescape"))


def test_of_a_file_whose_places_are_noted_only_what_is_wanted_is_fetched(
    moto_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uri = Store(), join(moto_place, "a.json")
    store.write(uri, json.dumps([{"n": n, "text": "x" * (3 << 20)} for n in range(10)]).encode())
    (file,) = find(store, [uri])
    starts = array("Q")
    assert len(list(found_in(store, file, (), starts))) == 10
    fetched = 0
    for kind in (local._Raw, s3._Download):
        plain = kind.readinto

        def counted(self: Any, buffer: Any, plain: Any = plain) -> int:
            nonlocal fetched
            fetched += (got := plain(self, buffer))
            return int(got)

        monkeypatch.setattr(kind, "readinto", counted)
    found = islice(found_in(store, file, (), starts), 2, None, 5)
    assert [row_of(file, *each).value["n"] for each in found] == [2, 7]
    assert 6 << 20 < fetched < 9 << 20


def test_an_array_that_was_replaced_by_one_as_long_is_not_read_at_the_old_places(tmp_path: Path) -> None:
    store, uri = Store(), write(tmp_path / "a.json", json.dumps([{"n": n, "m": "x" * n} for n in range(9)]))
    (file,) = find(store, [uri])
    starts = array("Q")
    list(found_in(store, file, (), starts))
    write(tmp_path / "a.json", json.dumps([{"m": "x" * n, "n": n} for n in range(8, -1, -1)]))
    os.utime(uri, ns=(int(file.state), int(file.state)))  # nothing but its content tells
    with pytest.raises(Changed, match="has changed since this stage began"):
        [row_of(file, *found) for found in found_in(store, file, (), starts)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 1000})

    def most(rows: int) -> int:
        store, uri = Store(), write(tmp_path / f"{rows}.json", f"[{','.join([row] * rows)}]")
        (file,) = find(store, [uri])
        tracemalloc.start()
        for _ in rows_of(store, file):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(20_000) < most(2_000) + 2_000_000  # ten times the rows, 18 MB more of them


# ------------------------------------------------------------------------------------------------------- Parquet


def columns_of(uri: str, columns: tuple[str, ...] = ("n",)) -> list[dict[str, object]]:
    with Store().open_read(uri) as file:
        return [value for _, value in parquet_rows(file, uri, columns)]


@pytest.mark.parametrize(
    ("name", "row", "found"),
    [
        ("train-00000-of-00001-1028f23e353fbe3e.parquet", {"n": 1}, {"n": 1, "split": "train"}),
        ("validation-00001-of-00002.parquet", {"n": 1}, {"n": 1, "split": "validation"}),
        ("training.parquet", {"n": 1}, {"n": 1}),
        ("test-00000-of-00001.parquet", {"n": 1, "split": "train"}, {"n": 1, "split": "train"}),  # a column goes first
    ],
)
def test_the_name_of_a_file_says_its_split(tmp_path: Path, name: str, row: Any, found: Any) -> None:
    uri = write_parquet(tmp_path / name, [row], {"n": pa.int64(), **({"split": pa.string()} if "split" in row else {})})
    assert columns_of(uri, ("n", "split")) == [found]


def test_only_the_named_columns_are_read_over_all_groups_also_from_a_bucket(moto_place: str, tmp_path: Path) -> None:
    rows, types = [{"n": n, "other": "x"} for n in range(95)], {"n": pa.int64(), "other": pa.string()}
    uri = write_parquet(tmp_path / "a.parquet", rows, types, group=10)
    assert columns_of(uri, ("n", "absent")) == [{"n": n} for n in range(95)]
    Store().upload(Path(uri), f"{moto_place}/a.parquet")
    assert columns_of(f"{moto_place}/a.parquet") == columns_of(uri)
    with pytest.raises(InputError, match=r"has the columns n, other; none of question, image"):
        columns_of(uri, ("question", "image"))


@pytest.mark.parametrize("kept", [0, 3, 300, "overwritten"])
def test_parquet_that_is_not_whole(tmp_path: Path, kept: Any) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", [{"n": n} for n in range(1000)], {"n": pa.int64()}))
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(36) + data[40:] if kept == "overwritten" else data[:kept])
    with pytest.raises(InputError, match=r"a\.parquet is not whole Parquet"):
        columns_of(str(path))


def test_parquet_as_input(given: Given) -> None:
    same = {"bytes": png(50, 40), "path": "image.png"}
    rows = [scienceqa_row(0, image=same), scienceqa_row(1, image=same),
            scienceqa_row(2, image={"bytes": b"<html>", "path": "1.png"})]  # fmt: skip
    for split in ("train", "test"):
        write_parquet(given.folder / f"data/{split}-00000-of-00001.parquet", rows, SCIENCEQA_TYPES)
    found = given.outcomes("scienceqa", str(given.folder / "data"))
    assert [r.reason.value if isinstance(r, Rejection) else r.origin.split for r in found] == [
        "test", "test", "image-not-an-image", "train", "train", "image-not-an-image",
    ]  # fmt: skip
    assert len(list((given.folder / "made").iterdir())) == 1  # one image of several rows is stored once
    with pytest.raises(InputError, match=r"is Parquet; this source reads \.json"):
        given.outcomes("viscot", str(given.folder / "data"))


def test_memory_does_not_grow_with_parquet(tmp_path: Path) -> None:
    """Images of 100 kB, groups of 100 rows as the hub writes them: ten times the rows, the same peak."""
    dice = random.Random(1)

    def peak(groups: int) -> int:
        rows = [{"image": {"bytes": dice.randbytes(100_000), "path": None}} for _ in range(100 * groups)]
        uri = write_parquet(tmp_path / f"{groups}.parquet", rows, {"image": IMAGE})
        del rows
        before = pa.total_allocated_bytes()
        pool = pa.default_memory_pool()
        tracemalloc.start()
        most = 0
        with Store().open_read(uri) as file:
            for _ in parquet_rows(file, uri, ("image",)):
                most = max(most, pool.bytes_allocated() - before)
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most + python

    small, large = peak(1), peak(10)
    assert large < 1.25 * small, (small, large)
    assert large < 40e6


# --------------------------------------------------------------------------------------- rows and their shards


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("samples", chat("[0, 0, 1, 1]", None), "VisCoT's chat rows; --source viscot reads it"),
        ("samples", metadata([[1, 2, 3, 4]]), "VisCoT's metadata; --source viscot reads it"),
        ("viscot", {"info": {}, "images": [], "annotations": []}, "--source coco"),
        ("viscot", {"messages": []}, "OpenAI chat messages; --source samples reads it"),
        ("viscot", {"image": "a", "question": "?", "answers": ["x"]}, "Samples; --source samples reads it"),
    ],
)
def test_rows_of_another_source_name_the_right_one(given: Given, source: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        given.outcomes(source, given.rows([row]))


def test_results_come_in_order_and_nobody_runs_far_ahead() -> None:
    taken = []

    def items() -> Any:
        for n in range(100):
            taken.append(n)
            yield n

    def slow_when_even(n: int) -> int:
        time.sleep(0.002 * (n % 2 == 0))
        return n

    results = in_order(slow_when_even, items(), 4)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4 * 4
    assert list(results) == list(range(10, 100))
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // (n - 5), range(100), 3))


def test_the_side_of_an_image_is_a_fair_draw_by_seed(given: Given) -> None:
    def sides(**options: Any) -> list[str]:
        return [given.context("scenes", **options).draw(f"{n:064x}") for n in range(4000)]

    one = sides(validation_share=0.1)
    assert 320 <= one.count("validation") <= 480
    assert one == sides(validation_share=0.1) != sides(validation_share=0.1, seed=1)
    assert set(sides(validation_share=0)) == {"train"}


def is_json(line: bytes) -> bool:
    """Of an array, which is UTF-8; of a single line json.loads would take other encodings, too."""
    try:
        json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return False
    return True


def test_places_that_were_damaged_are_an_error_and_without_any_the_rows_are_the_same(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    context = given.context("viscot", given.rows([metadata([[1, 2, 30, 40]])] * 9, "rows.json"))
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    informed(context, folder, look=True)
    (left,) = (given.folder / "run/convert/offsets").iterdir()
    left.write_bytes(left.read_bytes()[:-1] + b"!")
    (given.folder / "new").mkdir()
    elsewhere = replace(context, scratch=given.folder / "new")
    with pytest.raises(InputError, match=f"{left} is damaged"):
        informed(elsewhere, folder, look=False)
    left.unlink()
    knowing = informed(elsewhere, folder, look=False)
    found = [row.id for row in rows_of_shard(knowing, 1, 3)]
    assert found == ["rows.json:2", "rows.json:5", "rows.json:8"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@generated(
    shards=st.integers(1, 60), limit=st.none() | st.integers(1, 60), seed=st.integers(0, 9),
    source=st.sampled_from(["viscot", "llava-cot"]), array=st.booleans(),
)  # fmt: skip
def test_any_number_of_shards(
    given: Given, shards: int, limit: int | None, seed: int, source: str, array: bool
) -> None:
    given.image("vsr/a.jpg", 640, 480)
    given.image("chartqa/1.png", 200, 100)
    said = ("gpt", "<think>so</think>21")
    row = metadata([[1, 2, 30, 40]]) if source == "viscot" else talk(ASKED, said, ("human", "And?"), said)
    dice = random.Random(seed)
    files = []
    for name in ("one.json", "two.json") if array else ("one.jsonl", "two.jsonl"):
        lines = [json.dumps(row).encode()]
        lines += [broken(dice, row).replace(b"\n", b" ") for _ in range(20)]
        lines = [line for line in lines if is_json(line)] if array else lines
        (given.folder / name).write_bytes(b"[" + b", ".join(lines) + b"]" if array else b"\n".join((*lines, b"")))
        files.append(str(given.folder / name))
    context = replace(given.context(source, *files), limit=limit)

    def lines_of(index: int, shards: int) -> list[bytes]:
        rows = rows_of_shard(context, index, shards)
        return [result.line() for _, result in read(rows, context)]

    whole = lines_of(0, 1)
    dealt = [lines_of(index, shards) for index in range(shards)]
    assert [dealt[number % shards][number // shards] for number in range(len(whole))] == whole
    assert sum(map(len, dealt)) == len(whole)
    blocks = {}
    for index in range(shards):
        blocks |= {place: row.id for place, row in rows_in_blocks(context, index, shards, bytes([0, 1, 1] * 100))}
    assert blocks == {place: row.id for place, row in enumerate(rows_of_shard(context)) if place % 3 > 0}
