"""Files of rows: every form, and every way in which a file is not what it should be."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from array import array
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vcot.datasets.inputs import find, found_in, row_of, rows_of
from vcot.errors import InputError
from vcot.storage import Changed, Store, join, local, s3

ROWS = [{"n": 1, "x": 0.1}, {"n": 2, "x": [1.5, 2]}, {"n": 3, "x": "ü"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, data: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return str(path)


def read(*uris: str) -> list[tuple[str, object]]:
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
    assert read(write(tmp_path / name, text)) == [(f"{name}:{n}", row) for n, row in enumerate(ROWS, 1)]


def test_a_byte_order_mark_and_empty_lines_are_nothing(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode()
    assert [value for _, value in read(write(tmp_path / "a.jsonl", text))] == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_of_another_encoding_is_refused_as_a_whole(tmp_path: Path, encoding: str) -> None:
    """Cut into lines where UTF-8 has them, it would have other rows than it has."""
    for text in (LINES, json.dumps(ROWS)):
        with pytest.raises(InputError, match=r"a\.jsonl is written in UTF-16 or UTF-32; JSON is UTF-8"):
            read(write(tmp_path / "a.jsonl", text.encode(encoding)))


def test_a_line_that_is_not_json_is_named_by_its_number_and_costs_nobody_else(tmp_path: Path) -> None:
    bad = ['{"n": 1}', '{"n": 2', "[1, 2]", '"text"', "\udcff", '{"n": 6}']
    data = "\n".join(bad).encode(errors="surrogateescape")
    assert read(write(tmp_path / "a.jsonl", data)) == [
        ("a.jsonl:1", {"n": 1}),
        ("a.jsonl:2", "not-json"),
        ("a.jsonl:3", "wrong-shape"),
        ("a.jsonl:4", "wrong-shape"),
        ("a.jsonl:5", "not-json"),
        ("a.jsonl:6", {"n": 6}),
    ]


def test_nesting_without_end_is_one_bad_line(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", '{"n": ' + "[" * 100_000 + "\n" + '{"n": 2}')) == [
        ("a.jsonl:1", "not-json"),
        ("a.jsonl:2", {"n": 2}),
    ]


@pytest.mark.parametrize("data", ["", "\n\n", "[]", "[ ]"])
def test_a_file_without_a_row_is_an_error(tmp_path: Path, data: str) -> None:
    with pytest.raises(InputError, match="not one row"):
        read(write(tmp_path / "a.json", data))


@pytest.mark.parametrize("cut", [-1, -20, 30])
def test_an_array_that_is_cut_off_is_an_error_that_says_where(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InputError, match=r"not whole JSON at .*entry \d.*is it cut off"):
        read(write(tmp_path / "a.json", json.dumps(ROWS)[:cut]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"n": 1} {"n": 2}]', "the end of entry 1: ',' should follow, not '{\"n\": 2}]'"),
        ('[{"n": 1}, {"n": oops}]', "entry 2: Expecting value"),
        ("[", "entry 1: the file ends"),
        ('[{"n": 1}] [', "its end: more follows, '['"),
        ('[{"n": 1},]', "entry 2: Expecting value"),
        ('[{"n": 1},', "entry 2: the file ends"),
    ],
)
def test_an_array_that_is_not_json(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read(write(tmp_path / "a.json", text))
    assert said in str(refused.value)


def test_entries_may_lie_across_every_border_of_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcot.datasets.jsontext._BUFFER", 7)
    rows = [{"n": n, "text": "ü" * n, "list": [[n, 1e-3, None, "]["]]} for n in range(30)]
    for indent in (None, 1):
        uri = write(tmp_path / f"{indent}.json", json.dumps(rows, indent=indent, ensure_ascii=indent is None))
        assert [value for _, value in read(uri)] == rows


def test_the_numbers_that_python_writes_and_json_has_not_cost_one_row_only(tmp_path: Path) -> None:
    text = '[{"n": NaN}, {"n": [Infinity, -Infinity, 1e999]}, {"n": 1}]'
    ids = [row_id for row_id, _ in read(write(tmp_path / "a.json", text))]
    assert len(ids) == 3


def test_a_gzip_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl.gz", LINES * 1000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole gzip"):
        read(str(path))
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match="not a whole gzip"):
        read(str(path))


def test_a_file_that_changes_under_a_running_stage_is_an_error(tmp_path: Path) -> None:
    store, uri = Store(), write(tmp_path / "a.jsonl", LINES)
    (file,) = find(store, [uri])
    write(tmp_path / "a.jsonl", LINES.replace("2", "7"))
    with pytest.raises(InputError, match="has changed since this stage began"):
        list(rows_of(store, file))


def test_a_folder_stands_for_the_files_below_it(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "deep/c.jsonl.gz", "readme.txt"):
        write(tmp_path / "in" / name, LINES)
    assert [row_id for row_id, _ in read(str(tmp_path / "in"))][::3] == ["a.json:1", "b.jsonl:1", "deep/c.jsonl.gz:1"]


def test_rows_of_files_with_one_name_are_told_apart(tmp_path: Path) -> None:
    uris = [write(tmp_path / side / "rows.jsonl", LINES) for side in ("train", "val")]
    ids = [row_id for row_id, _ in read(*uris)]
    assert ids[0] == "train/rows.jsonl:1"
    assert len(set(ids)) == 6
    uris += [write(tmp_path / "more" / "train" / "rows.jsonl", LINES)]
    assert len({row_id for row_id, _ in read(*uris)}) == 9


def test_a_file_that_is_not_there_and_a_folder_without_rows(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for uri in (tmp_path / "nothing.json", tmp_path / "in"):
        with pytest.raises(InputError, match="no such file"):
            read(str(uri))


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
    any_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, uri = Store(), join(any_place, "a.json")
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
