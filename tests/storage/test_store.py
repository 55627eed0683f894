"""What Store promises, of a folder, of moto and of a real MinIO alike."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcot.errors import InputError, UsageError
from vcot.storage import Changed, Entry, NotFound, Store, append, join, name, numbered
from vcot.uris import Piece, of_pieces, pieces, split

store = Store()

ODD = [
    "a b", "100%", "%20", "x?y=1", "row ### 3.png", "ü/é", "a+b", "a&b=c", "~t", "日本", "q'uote\"d",
    "b;c:d,e@f", "[1](2)", "bytes+x#1+2#y",
]  # fmt: skip


def test_what_is_written_is_read(any_place: str, tmp_path: Path) -> None:
    uri = join(any_place, "x")
    for data in (b"", bytes(range(100))):
        store.write(uri, data)
        assert store.read(uri) == data
    for start, length in [(0, 100), (0, 1), (99, 1), (99, 50), (100, 1), (500, 5), (10, 0), (0, 1000)]:
        assert store.read_range(uri, start, length) == data[start : start + length], (start, length)
    with store.open_read(uri) as source:
        assert source.read(3) + source.read() == data
    assert store.digest(uri) == hashlib.sha256(data).hexdigest()
    store.download(uri, tmp_path / "new" / "copy")
    store.upload(tmp_path / "new" / "copy", join(any_place, "y"))
    assert store.read(join(any_place, "y")) == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]


def test_odd_characters_are_ordinary(any_place: str) -> None:
    uris = [join(any_place, "odd", key) for key in ODD]
    for uri in uris:
        assert store.write_once(uri, uri.encode())
        assert store.read(uri) == uri.encode()
        assert store.stat(uri) == Entry(uri, len(uri.encode()))
    assert [entry.uri for entry in store.list(any_place)] == sorted(uris)


def test_a_stream_seeks(any_place: str) -> None:
    uri = join(any_place, "images.zip")
    with store.open_write(uri) as target, zipfile.ZipFile(target, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}.txt", f"image {number}" * 1000)
    with store.open_read(uri) as source, zipfile.ZipFile(source) as archive:
        assert archive.read("7.txt") == b"image 7" * 1000
        assert archive.testzip() is None


@pytest.mark.parametrize("megabytes", [0, 20])
def test_an_exception_leaves_what_was_there(any_place: str, megabytes: int) -> None:
    fresh, old = join(any_place, "fresh"), join(any_place, "old")
    store.write(old, b"before")
    for uri in (fresh, old):
        with suppress(ZeroDivisionError), store.open_write(uri) as target:
            target.write(b"x" * (megabytes << 20) + b"half")
            target.close()  # which decides nothing
            raise ZeroDivisionError
    assert store.stat(fresh) is None
    assert store.read(old) == b"before"
    assert [entry.uri for entry in store.list(any_place)] == [old]


def test_a_race_to_write_once_has_one_winner(any_place: str) -> None:
    for round_ in range(3):
        uri = join(any_place, f"mark-{round_}")
        start = threading.Barrier(16)

        def claim(number: int, uri: str = uri, start: threading.Barrier = start) -> bool:
            start.wait()
            return store.write_once(uri, b"%d" % number)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(claim, range(16)))
        assert won.count(True) == 1
        assert store.read(uri) == b"%d" % won.index(True)
    assert not store.write_once(uri, b"later")
    assert len(list(store.list(any_place))) == 3


def test_what_is_larger_than_a_part_arrives_whole(any_place: str, tmp_path: Path) -> None:
    uri = join(any_place, "large")
    whole = os.urandom((1 << 20) + 7) * 17
    with store.open_write(uri) as target:
        target.write(whole)
        assert store.stat(uri) is None
    assert store.stat(uri) == Entry(uri, len(whole))
    store.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == whole
    store.upload(tmp_path / "copy", join(any_place, "again"))
    assert store.digest(join(any_place, "again")) == hashlib.sha256(whole).hexdigest()
    seam = 16 << 20
    assert store.read_range(uri, seam - 5, 10) == whole[seam - 5 : seam + 5]


def test_a_list_is_sorted_and_complete_over_pages(any_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any_place.startswith("s3"):
        from vcot.storage import s3

        client = s3._connect(any_place).client
        plain = client.get_paginator("list_objects_v2").paginate
        paged = type("Paged", (), {"paginate": lambda _, **asked: plain(**asked, PaginationConfig={"PageSize": 7})})()
        monkeypatch.setattr(client, "get_paginator", lambda _: paged)
    keys = [f"p/{number:04}" for number in range(30)] + ["p-1", "p.1", "p0", "p/a/b", "p/a-b", "p/é", "p/Z"]
    for key in keys:
        store.write(join(any_place, key), b".")
    found = [entry.uri for entry in store.list(any_place)]
    assert found == sorted(join(any_place, key) for key in keys)
    below = [entry.uri for entry in store.list(join(any_place, "p"))]
    assert below == [uri for uri in found if uri.startswith(join(any_place, "p") + "/")]
    assert below == [entry.uri for entry in store.list(join(any_place, "p") + "/")]
    for nothing in ("nothing", "p0", "p/000"):  # no such prefix, a file, the beginning of a name
        assert list(store.list(join(any_place, nothing))) == []


def test_an_object_that_changed_since_it_was_listed_is_not_read(any_place: str) -> None:
    place = join(any_place, "x")
    store.write(place, b"0123456789")
    (listed,) = store.list(any_place)
    asked = store.stat(place)
    assert asked is not None
    assert listed.state == asked.state != ""
    assert store.read_range(place, 3, 2, of=asked) == b"34"
    store.write(place, b"9876543210")
    if place.startswith("file"):
        os.utime(place.removeprefix("file://"), ns=(1, 1))
    with pytest.raises(Changed, match=r"x: changed while it was read"):
        store.read_range(place, 3, 2, of=asked)


def _in_a_child(passed: Store, uri: str) -> bytes:
    passed.write(uri + "-child", b"from the child")
    return passed.read(uri)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_processes_share_one_store(minio_place: str, way: str) -> None:
    uri = join(minio_place, "x")
    store.write(uri, b"from the parent")
    with multiprocessing.get_context(way).Pool(1) as pool:
        assert pool.apply(_in_a_child, (store, uri)) == b"from the parent"
    assert store.read(uri + "-child") == b"from the child"


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/key", "gs:// is not supported; s3://bucket/key, file:///path and plain paths are"),
        ("https://host/x.png", "https:// is not supported"), ("s3:/bucket/key", "two slashes are missing"),
        ("file:/data/x", "two slashes are missing"), ("file://data/x", "three slashes"), ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"), ("s3://bucket", "names a bucket, not an object"),
        ("s3://bucket/", "names a bucket, not an object"), ("", "an empty URI"),
    ],
)  # fmt: skip
def test_a_uri_of_another_kind_is_refused_with_what_is_supported(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        store.read(uri)
    assert repr(uri) in str(caught.value) or not uri


def test_a_joined_name_stays_below_its_base() -> None:
    for base, parts, joined in (
        ("s3://b", ("runs", "x.json"), "s3://b/runs/x.json"), ("s3://b/", ("/runs/", ""), "s3://b/runs"),
        ("file:///", ("x",), "file:///x"), ("/", ("x",), "/x"), ("a b", ("###",), "a b/###"), ("s3://b/p", (), "s3://b/p"),
    ):  # fmt: skip
        assert join(base, *parts) == joined
        assert name(joined + "/") == joined.rpartition("/")[2]
    for parts in (("..",), ("a/../..",), ("a", "..", "b")):
        with pytest.raises(InputError, match="climbs out of s3://b/images"):
            join("s3://b/images", *parts)


# --- bytes inside objects as places of their own -----------------------------------------------------------------


def test_bytes_of_one_object_and_of_two(any_place: str, tmp_path: Path) -> None:
    first, second = join(any_place, "all_00"), join(any_place, "all_01")
    store.write(first, b"0123456789")
    store.write(second, b"abcdef")
    across = of_pieces([Piece(first, 7, 3), Piece(second, 0, 4)], "x")
    assert across == f"bytes+{first}#7+3&all_01#0+4#x"
    assert store.read(of_pieces([Piece(first, 2, 5)], "some/name #1.jpg")) == b"23456"
    assert store.read(across) == b"789abcd"
    for start, length in ((0, 7), (1, 1), (2, 3), (3, 2), (6, 9), (7, 1), (9, 9)):
        assert store.read_range(across, start, length) == b"789abcd"[start : start + length], (start, length)
    with store.open_read(across) as source:
        assert source.seek(-1, os.SEEK_END) == 6
        assert source.read() == b"d"
    assert store.stat(across) == Entry(across, 7)
    store.download(across, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"789abcd"
    shorter = of_pieces([Piece(second, 5, 10)], "a/b.png")
    with pytest.raises(NotFound, match="has become shorter"):
        store.read(shorter)
    missing = of_pieces([Piece(join(any_place, "x.tar"), 6, 10)], "a/b.png")
    with pytest.raises(NotFound, match=r"^bytes\+.*a/b\.png: .*x\.tar: no such"):
        store.read(missing)
    assert store.stat(shorter) is store.stat(missing) is None
    for refused in (lambda: store.write(across, b""), lambda: store.write_once(across, b"")):
        with pytest.raises(UsageError, match="nothing can be written there"):
            refused()
    with pytest.raises(UsageError, match="is not supported"):  # so that no setting takes one for a prefix
        split(across)


NAMES = st.text("abc_-09.#&+ /é", min_size=1, max_size=12)
PLACES = st.lists(st.tuples(st.integers(0, 2**45), st.integers(0, 2**45)), min_size=1)


@given(st.sampled_from(["s3://b/", "file:///", "", "bytes+"]), NAMES, PLACES, NAMES)
def test_pieces_of_a_uri_are_those_it_was_made_of(
    base: str, first: str, places: list[tuple[int, int]], called: str
) -> None:
    parts = [Piece(base + first, *places[0])]
    folder = parts[0].uri[: parts[0].uri.rfind("/") + 1]
    parts += [Piece(f"{folder}chunk_{n:02d}", *pair) for n, pair in enumerate(places[1:])]
    try:
        assert pieces(of_pieces(parts, called)) == tuple(parts)
    except UsageError:
        assert "#" in parts[0].uri


# --- a list that only grows --------------------------------------------------------------------------------------


def test_of_many_who_append_each_gets_a_number(any_place: str) -> None:
    assert numbered(store, any_place) == {}
    assert append(store, any_place, b"first", after=0) == join(any_place, "0000000001.json")
    assert append(store, any_place, b"second", after=0) is None
    for other in ("notes.md", "0000000002.json.bak", "12.json", "below/0000000003.json"):
        store.write(join(any_place, other), b"?")

    def write(writer: int) -> Any:
        while append(store, any_place, b"%d" % writer, after=max(numbered(store, any_place))) is None:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(6)))
    there = numbered(store, any_place)
    assert there == numbered(store, any_place + "/")
    assert list(there) == list(range(1, 8))
    assert sorted(store.read(uri) for uri in there.values()) == [*(b"%d" % n for n in range(6)), b"first"]
