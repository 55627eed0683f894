"""Bytes inside objects as places of their own: read like any object, and never written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcot.errors import UsageError
from vcot.storage import Changed, NotFound, Store, join
from vcot.uris import Piece, of_pieces, pieces, split

store = Store()


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
    assert (found := store.stat(across)) is not None
    assert found.size == 7
    store.download(across, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"789abcd"


def test_missing_bytes_are_named_by_both_names(any_place: str) -> None:
    place = join(any_place, "x.tar")
    uri = of_pieces([Piece(place, 6, 10)], "a/b.png")
    with pytest.raises(NotFound, match=r"^bytes\+.*a/b\.png: .*x\.tar: no such"):
        store.read(uri)
    assert store.stat(uri) is None
    store.write(place, b"too short")
    with pytest.raises(NotFound, match="has become shorter"):
        store.read(uri)
    assert store.stat(uri) is None


def test_nothing_is_written_inside_an_object(folder_place: str) -> None:
    uri = of_pieces([Piece(join(folder_place, "x.tar"), 6, 10)], "a")
    for refused in (lambda: store.write(uri, b""), lambda: store.write_once(uri, b""), lambda: store.open_write(uri)):
        with pytest.raises(UsageError, match="nothing can be written there"):
            refused()
    with pytest.raises(UsageError, match="is not supported"):  # so that no setting takes one for a prefix
        split("bytes+s3://bucket/x.tar#6+10#a")


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
    assert store.read_range(place, 3, 2) == b"65"
    with pytest.raises(Changed, match=r"x: changed while it was read"):
        store.read_range(place, 3, 2, of=asked)


NAMES = st.text("abc_-09.#&+ /é", min_size=1, max_size=12)
PLACES = st.lists(st.tuples(st.integers(0, 2**45), st.integers(0, 2**45)), min_size=1)


@given(st.sampled_from(["s3://b/", "file:///", "", "bytes+"]), NAMES, PLACES, NAMES)
def test_pieces_of_a_uri_are_those_it_was_made_of(
    base: str, first: str, numbers: list[tuple[int, int]], called: str
) -> None:
    parts = [Piece(base + first, *numbers[0])]
    folder = parts[0].uri[: parts[0].uri.rfind("/") + 1]
    parts += [Piece(f"{folder}chunk_{n:02d}", *pair) for n, pair in enumerate(numbers[1:])]
    try:
        assert pieces(of_pieces(parts, called)) == tuple(parts)
    except UsageError:
        assert "#" in parts[0].uri


def test_a_key_that_only_begins_alike_is_an_ordinary_one(any_place: str) -> None:
    uri = join(any_place, "bytes+x#1+2#y")
    store.write(uri, b"plain")
    assert store.read(uri) == b"plain"
