"""What Store promises, of a folder, of moto and of a real MinIO alike."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcot.errors import InputError, UsageError
from vcot.storage import Entry, NotFound, Store, join, name

store = Store()

ODD = [
    "a b", "100%", "%20", "x?y=1", "row ### 3.png", "ü/é", "a+b", "a&b=c", "~t", "日本", "q'uote\"d",
    "b;c:d,e@f", "[1](2)",
]  # fmt: skip


def test_odd_characters_are_ordinary(any_place: str) -> None:
    uris = [join(any_place, "odd", key) for key in ODD]
    for uri in uris:
        assert store.write_once(uri, uri.encode())
        assert store.read(uri) == uri.encode()
        assert store.read_range(uri, 0, 4) == uri.encode()[:4]
        assert store.stat(uri) == Entry(uri, len(uri.encode()))
    assert [entry.uri for entry in store.list(any_place)] == sorted(uris)


def test_what_is_written_is_read(any_place: str, tmp_path: Path) -> None:
    uri = join(any_place, "x")
    for data in (b"", b"first", b"second, longer"):
        store.write(uri, data)
        assert store.read(uri) == data
    with store.open_read(uri) as source:
        assert source.read(3) == b"sec"
        assert source.read() == b"ond, longer"
    assert store.digest(uri) == hashlib.sha256(b"second, longer").hexdigest()
    store.download(uri, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"second, longer"
    store.upload(tmp_path / "new" / "copy", join(any_place, "y"))
    assert store.read(join(any_place, "y")) == b"second, longer"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]


def test_ranges_are_slices(any_place: str) -> None:
    uri = join(any_place, "x")
    data = bytes(range(100))
    store.write(uri, data)
    for start, length in [(0, 100), (0, 1), (99, 1), (99, 50), (100, 1), (500, 5), (10, 0), (0, 1000)]:
        assert store.read_range(uri, start, length) == data[start : start + length], (start, length)
    with pytest.raises(NotFound):
        store.read_range(join(any_place, "nothing"), 3, 4)


def test_a_stream_seeks_so_an_archive_can_be_read_in_place(any_place: str) -> None:
    uri = join(any_place, "images.zip")
    with store.open_write(uri) as target, zipfile.ZipFile(target, "w") as archive:
        for number in range(20):
            archive.writestr(f"{number}.txt", f"image {number}" * 1000)
    with store.open_read(uri) as source, zipfile.ZipFile(source) as archive:
        assert archive.read("7.txt") == b"image 7" * 1000
        assert archive.testzip() is None


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
    whole = os.urandom((1 << 20) + 7) * 20
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


@pytest.mark.parametrize("megabytes", [0, 20])
def test_an_exception_leaves_what_was_there(any_place: str, megabytes: int) -> None:
    fresh, old = join(any_place, "fresh"), join(any_place, "old")
    store.write(old, b"before")

    def fail(uri: str) -> None:
        with store.open_write(uri) as target:
            for _ in range(megabytes):
                target.write(b"x" * (1 << 20))
            target.write(b"half")
            raise ZeroDivisionError

    for uri in (fresh, old):
        with pytest.raises(ZeroDivisionError):
            fail(uri)
    assert store.stat(fresh) is None
    assert store.read(old) == b"before"
    assert [entry.uri for entry in store.list(any_place)] == [old]


def test_a_wrapper_that_closes_the_stream_decides_nothing(any_place: str) -> None:
    uri = join(any_place, "lines.gz")

    def write(fail: bool) -> None:
        with store.open_write(uri) as target:
            with gzip.open(target, "wt") as lines:
                lines.write("one\n")
            target.close()
            if fail:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(fail=True)
    assert store.stat(uri) is None
    write(fail=False)
    assert gzip.decompress(store.read(uri)) == b"one\n"


def test_a_list_is_sorted_and_complete_over_pages(any_place: str) -> None:
    keys = [f"p/{number:04}" for number in range(1005)] + ["p-1", "p.1", "p0", "p/a/b", "p/a-b", "p/é", "p/Z"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(join(any_place, key), b"."), keys))
    found = [entry.uri for entry in store.list(any_place)]
    assert found == sorted(join(any_place, key) for key in keys)
    below = [entry.uri for entry in store.list(join(any_place, "p"))]
    assert below == [uri for uri in found if uri.startswith(join(any_place, "p") + "/")]
    assert below == [entry.uri for entry in store.list(join(any_place, "p") + "/")]


def test_a_prefix_that_holds_nothing_is_empty(any_place: str) -> None:
    assert list(store.list(join(any_place, "nothing"))) == []
    store.write(join(any_place, "file"), b".")
    assert list(store.list(join(any_place, "file"))) == []
    assert list(store.list(join(any_place, "fil"))) == []


def test_a_missing_object_is_named_as_written(any_place: str, tmp_path: Path) -> None:
    uri = join(any_place, "no such ### thing")
    attempts: list[Callable[[], object]] = [
        lambda: store.read(uri), lambda: store.read_range(uri, 0, 1), lambda: store.digest(uri),
        lambda: store.open_read(uri).__enter__(), lambda: store.download(uri, tmp_path / "x"),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(NotFound) as caught:
            attempt()
        assert str(caught.value).startswith(f"{uri}: no such")
        assert "\n" not in str(caught.value)
    assert store.stat(uri) is None
    assert not (tmp_path / "x").exists()


def _in_a_child(passed: Store, uri: str) -> bytes:
    passed.write(uri + "-child", b"from the child")
    return passed.read(uri)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_processes_share_one_store(minio_place: str, way: str) -> None:
    uri = join(minio_place, "x")
    store.write(uri, b"from the parent")
    with multiprocessing.get_context(way).Pool(2) as pool:
        assert pool.apply(_in_a_child, (store, uri)) == b"from the parent"
    assert store.read(uri + "-child") == b"from the child"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/key", "gs:// is not supported; s3://bucket/key, file:///path and plain paths are"),
        ("https://host/x.png", "https:// is not supported"),
        ("s3:/bucket/key", "two slashes are missing"),
        ("file:/data/x", "two slashes are missing"),
        ("file://data/x", "three slashes"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket", "names a bucket, not an object"),
        ("s3://bucket/", "names a bucket, not an object"),
        ("", "an empty URI"),
    ],
)
def test_a_uri_of_another_kind_is_refused_with_what_is_supported(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        store.read(uri)
    assert repr(uri) in str(caught.value) or not uri


def test_join_and_name() -> None:
    assert join("s3://b", "runs", "x.json") == "s3://b/runs/x.json"
    assert join("s3://b/", "/runs/", "") == "s3://b/runs"
    assert join("file:///", "x") == "file:///x"
    assert join("/", "x") == "/x"
    assert join("a b", "###") == "a b/###"
    assert join("s3://b/p") == "s3://b/p"
    assert name("s3://b/p/x y.png") == "x y.png"
    assert name("s3://b/p/") == "p"


@pytest.mark.parametrize("part", ["..", "../x", "a/../../x", "a/.."])
def test_a_part_from_data_cannot_climb_out(part: str) -> None:
    with pytest.raises(InputError, match="climbs out of s3://b/images"):
        join("s3://b/images", part)


@given(st.lists(st.text("ab/ #%?.", min_size=1, max_size=6), max_size=3))
def test_join_stays_below_its_base(parts: list[str]) -> None:
    try:
        joined = join("s3://b/images", *parts)
    except InputError:
        assert any(".." in part for part in parts)
    else:
        assert joined == "s3://b/images" or joined.startswith("s3://b/images/")


def test_boto3_is_imported_at_the_first_s3_uri_only() -> None:
    program = "import sys, vcot.storage as s; s.Store().stat('/x'); sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
