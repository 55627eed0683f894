"""An archive that is not unpacked: what is read of it is what tarfile reads, whatever it was cut into."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import random
import signal
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storage.tars import in_chunks, tar
from vcot.errors import InputError
from vcot.storage import Changed, Entry, NotFound, Store, join, name
from vcot.storage.archive import Archive, Chunks, NoFile, find, indexed, opened

store = Store()


def found(uri: str, store: Store = store) -> Chunks:
    chunks = find(store, uri)
    assert chunks is not None
    return chunks


def archive_at(uri: str, scratch: Path, **how: int) -> Archive:
    scratch.mkdir(exist_ok=True)
    chunks = found(uri)
    return opened(chunks, indexed(chunks, str(scratch / "index"), scratch, **how), scratch)


def fault(uri: str, scratch: Path, **how: int) -> str:
    with pytest.raises(InputError) as raised:
        archive_at(uri, scratch, **how)
    said = str(raised.value)
    assert "\n" not in said
    return said


# --- equal to tarfile --------------------------------------------------------------------------------

STEPS = st.sampled_from(["a", "b", "gqa", "é ü", "x" * 90, "y" * 160, "1.jpg", "#1+2#", "50%"])
PATHS = st.lists(STEPS, min_size=1, max_size=3).map("/".join)
BODIES = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(lambda n: random.Random(n).randbytes(n)))
FORMS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
LINKED = st.sampled_from([b"", tarfile.LNKTYPE, tarfile.SYMTYPE])
ARCHIVES = st.lists(st.tuples(FORMS, st.lists(st.tuples(PATHS, BODIES, LINKED), max_size=8)), min_size=1, max_size=3)


def written(members: list[tuple[str, bytes, bytes]], form: int, number: int) -> bytes:
    """A whole tar file, closed by zeros, so that several of them have zeros inside."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for place, (path, data, linked) in enumerate(members):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            if linked:
                link = tarfile.TarInfo(f"b/link {number} {place}")
                link.type = linked
                link.linkname = path if linked == tarfile.LNKTYPE else f"../{path}"
                archive.addfile(link)
    return buffer.getvalue()


def as_tarfile_reads(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as archive:
        bodies = {info.name: archive.extractfile(info) for info in archive}
        return {name: body.read() for name, body in bodies.items() if body is not None}


@settings(max_examples=40, deadline=None)
@given(ARCHIVES, st.integers(1, 40_000), st.integers(300, 20_000))
def test_what_is_read_is_what_tarfile_reads(
    parts: list[tuple[int, list[tuple[str, bytes, bytes]]]], chunk: int, span: int
) -> None:
    data = b"".join(written(members, form, number) for number, (form, members) in enumerate(parts))
    wanted = as_tarfile_reads(data)
    chunk = max(chunk, len(data) // 20)
    with tempfile.TemporaryDirectory() as folder:
        place = join(folder, "images")
        in_chunks(store, place, data, chunk)
        if not wanted:
            assert "no tar file" in fault(place, Path(folder)) or "no members" in fault(place, Path(folder))
            return
        archive = archive_at(place, Path(folder), span=span)
        for path, body in wanted.items():
            uri = archive.uri(path)
            assert archive.read(uri, 1 << 20) == body
            assert store.read(uri) == body, "and without the index"


def test_on_every_kind_of_storage(any_place: str, tmp_path: Path) -> None:
    files = {f"cot_image_data/gqa/{n}.jpg": random.Random(n).randbytes(900 * n) for n in range(20)}
    files["inner.tar"] = tar({f"inner/{n}": bytes([n]) * 700 for n in range(30)})  # its headers are no members
    data = tar({f"./{path}": body for path, body in files.items()}, tarfile.GNU_FORMAT)  # as `tar -C folder .` writes
    in_chunks(store, join(any_place, "chunks"), data, 25_000)
    store.write(join(any_place, "one.tar"), data)
    for place in ("chunks", "chunks/", "one.tar"):
        archive = archive_at(any_place + "/" + place, tmp_path / name(place), span=64_000)
        crossing = 0
        for path, body in files.items():
            uri = archive.uri(path)
            assert store.read(uri) == archive.read(uri, 1 << 20) == body
            crossing += uri.count("#") > 2
        assert (crossing > 2) == (place != "one.tar")
        assert list(archive.listed()) == [store.stat(archive.uri(path)) for path in sorted(files)]
        with pytest.raises(NotFound):
            archive.uri("inner/3")


# --- what is in an archive but no file ----------------------------------------------------------------


def test_members_that_are_no_files_are_told_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "d").mkdir(parents=True)
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(500_000)
        file.write(b"data")
    (folder / "after").write_bytes(b"after")
    (folder / "d" / "dangling").symlink_to("nowhere")
    (folder / "round").symlink_to("round")
    os.mkfifo(folder / "fifo")
    for number, form in enumerate(("--format=gnu", "--format=pax --sparse-version=0.0", "--format=pax")):
        place = tmp_path / f"{number}.tar"
        assert os.system(f"cd {folder} && tar -S {form} -cf {place} d sparse fifo round after") == 0
        archive = archive_at(str(place), tmp_path / str(number))
        assert store.read(archive.uri("after")) == b"after"
        for path, kind, said in (
            ("sparse", NoFile, r"^'sparse' is a sparse member of .*\.tar; only whole ones"),
            ("fifo", NoFile, "'fifo' is no file"), ("d", NoFile, r"'d' is no file .* but a folder"),
            ("d/dangling", NotFound, r"'d/dangling' is a link in .* to 'd/nowhere', which is not there"),
            ("round", NoFile, "leads from link to link"), ("x.jpg", NotFound, r"'x\.jpg' is not in .*\.tar"),
            ("half a pair \ud800", NotFound, "is no name of a file"),
        ):  # fmt: skip
            with pytest.raises(kind, match=said):
                archive.uri(path)


# --- what may be wrong with the chunks -----------------------------------------------------------------

FILES = {f"cot_image_data/vsr/{n}.jpg": bytes([n % 256]) * 3000 for n in range(60)}


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ([4], "cot_images_04 is missing between cot_images_00 and cot_images_11"),
        ([4, 6], "cot_images_04, cot_images_06 are missing"),
        ([0], "cot_images_01, the first of them, is no tar file"),
        ([10, 11], "cot_images_09 is the last chunk there is; it is not whole, or one after it is missing"),
    ],
)
def test_a_missing_chunk_is_named(folder_place: str, tmp_path: Path, missing: list[int], says: str) -> None:
    uris = in_chunks(store, folder_place, tar(FILES), 20_000)
    for number in missing:
        store.delete(uris[number])
    assert says in fault(folder_place, tmp_path)


def test_a_chunk_that_is_cut_off_is_named(folder_place: str, tmp_path: Path) -> None:
    data = tar(FILES)
    (tmp_path / "x.tar").write_bytes(data[: -(-len(data.rstrip(b"\0")) // 512) * 512])
    assert "does not end with the zeros that close a tar file" in fault(str(tmp_path / "x.tar"), tmp_path)
    *_, fifth, last = in_chunks(store, folder_place, data, 50_000)
    store.write(last, store.read(last)[:-11_000])
    said = fault(folder_place, tmp_path, span=30_000)
    assert "is cut off: " in said
    assert f"{last} is the last chunk there is" in said
    store.write(fifth, store.read(fifth)[:-100])
    said = fault(folder_place, tmp_path, span=30_000)
    assert "here the next header of the tar file should be" in said
    assert said.startswith("byte ")
    assert f"{fifth} is not as long as the other chunks" in said


def test_a_chunk_that_changed_since_the_index_was_made_is_not_read(any_place: str, tmp_path: Path) -> None:
    uris = in_chunks(store, any_place, tar(FILES), 80_000)
    chunks = found(any_place)
    index = indexed(chunks, str(tmp_path), tmp_path)
    archive = opened(chunks, index, tmp_path)
    store.write(uris[1], store.read(uris[1])[::-1])
    if any_place.startswith("file"):
        os.utime(uris[1].removeprefix("file://"), ns=(1, 1))
    with pytest.raises(Changed, match=rf"^{uris[1]} has changed since the index of .* was made"):
        opened(found(any_place), index, tmp_path)
    members = {path: archive.uri(path) for path in FILES}
    changed = [uri for uri in members.values() if name(uris[1]) in uri]
    with pytest.raises(Changed, match=rf"{name(uris[1])}: changed while it was read; the index of"):
        archive.read(changed[0], 1 << 20)
    assert all(archive.read(uri, 1 << 20) == FILES[path] for path, uri in members.items() if uri not in changed)


def test_what_is_no_tar_file(tmp_path: Path) -> None:
    for beginning, said in (
        (gzip.compress(b"x" * 9000), r"compressed \(gzip\): members of it cannot be reached in place; unpack it"),
        (b"PK\3\4" + bytes(600), r"compressed \(zip\)"), (b"<!doctype html>" * 90, "no tar file"), (b"", "empty"),
    ):  # fmt: skip
        (tmp_path / "x.tar").write_bytes(beginning)
        with pytest.raises(InputError, match=rf"^{tmp_path}/x\.tar is {said}"):
            find(store, str(tmp_path / "x.tar"))


def test_folders_that_are_no_archives(any_place: str) -> None:
    assert find(store, any_place) is None
    for key in ("a/0001", "cub/x_01.jpg", "img_00"):
        store.write(join(any_place, key), b"\x89PNG and so on")
    assert find(store, any_place) is None
    store.write(join(any_place, "numbers", "00"), b"\xff\xd8\xff and so on")
    assert find(store, join(any_place, "numbers")) is None
    if any_place.startswith("s3"):
        assert find(store, any_place.rpartition("/")[0]) is None  # a bucket alone


def test_an_index_is_of_these_chunks_alone(folder_place: str, tmp_path: Path) -> None:
    uris = in_chunks(store, folder_place, tar(FILES), 80_000)
    for other in ("README.md", ".gitattributes", "sha256sums", "more_07", "sub/cot_images_09"):
        store.write(join(folder_place, other), b"x")
    chunks = found(folder_place)
    assert [entry.uri for entry in chunks.entries] == uris
    index = indexed(chunks, str(tmp_path), tmp_path)
    with pytest.raises(Changed, match=r"cot_images_02 is gone since"):
        opened(Chunks(store, folder_place, chunks.entries[:-1]), index, tmp_path)
    more = [*chunks.entries, Entry(join(folder_place, "cot_images_03"), 5, "x")]
    with pytest.raises(Changed, match=r"cot_images_03 is new since"):
        opened(Chunks(store, folder_place, more), index, tmp_path)
    store.write(index.uri, store.read(index.uri)[:-1])
    with pytest.raises(InputError, match=r"members-.*\.sqlite is damaged: its digest is"):
        opened(chunks, index, tmp_path)
    os.utime(uris[1].removeprefix("file://"), ns=(1, 1))
    with pytest.raises(Changed, match=rf"^{uris[1]}: changed while it was read$"):
        indexed(chunks, str(tmp_path / "anew"), tmp_path)


# --- requests, and going on ------------------------------------------------------------------------------


class Counting(Store):
    def __init__(self) -> None:
        self.ranges: Counter[str] = Counter()
        self.bytes = 0

    def read_range(self, uri: str, start: int, length: int, of: Any = None) -> bytes:
        self.ranges[name(uri)] += 1
        self.bytes += length
        return super().read_range(uri, start, length, of)


def test_small_members_share_a_request_and_large_ones_are_passed_over(tmp_path: Path) -> None:
    small, large = {f"{n}": bytes(5000) for n in range(2000)}, {f"{n}": bytes(8 << 20) for n in range(10)}
    for files, requests, mib in ((small, 15, 20), (large, 30, 30)):  # of archives of 11 and 80 MiB
        (tmp_path / "x.tar").write_bytes(tar(files))
        counting = Counting()
        indexed(found(str(tmp_path / "x.tar"), counting), str(tmp_path / f"index {requests}"), tmp_path)
        assert counting.ranges["x.tar"] < requests
        assert counting.bytes < mib << 20
        again = counting.ranges["x.tar"]
        indexed(found(str(tmp_path / "x.tar"), counting), str(tmp_path / f"index {requests}"), tmp_path)
        assert counting.ranges["x.tar"] == again + 1, "only the look at the first chunk"


class Mortal(Store):
    """Dies before it writes once more than so often."""

    def __init__(self, left: int) -> None:
        self.left = left

    def write_once(self, uri: str, data: bytes) -> bool:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_once(uri, data)


def test_an_index_whose_process_was_killed_is_gone_on_with(folder_place: str, tmp_path: Path) -> None:
    """SIGKILL, each time a few spans are done, until there is none left to kill."""
    files = {f"d/{n}": random.Random(n).randbytes(20_000) for n in range(200)}
    images, scratch = join(folder_place, "images"), tmp_path
    in_chunks(store, images, tar(files), 2_000_000)
    wanted = indexed(found(images), join(folder_place, "whole"), scratch, span=200_000)
    ends: list[int | None] = []
    while not ends or ends[-1] == -signal.SIGKILL:
        given = (found(images, Mortal(8)), join(folder_place, "killed"), scratch)
        process = multiprocessing.get_context("fork").Process(target=indexed, args=given, kwargs={"span": 200_000})
        process.start()
        process.join()
        ends.append(process.exitcode)
    assert ends[-1] == 0
    assert len(ends) > 2
    again = indexed(found(images), join(folder_place, "killed"), scratch, span=200_000)
    assert (again.sha256, again.members) == (wanted.sha256, 200)
