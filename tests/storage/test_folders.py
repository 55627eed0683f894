"""A base goes into storage whole, and comes out as it went in or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from vcot.errors import InputError, Interrupted, SettingsError, TemporaryError
from vcot.stage import stop
from vcot.storage import Store, join, put_folder
from vcot.storage.folders import MANIFEST, fetch_folder, fetch_with_digest, folder_digest, push_folder, read_manifest

store = Store()
MIB = 1 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small one with a file of several ranges (and an odd end), and one in a folder of its own."""
    folder = tmp_path / "base"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "weights").write_bytes(os.urandom(MIB) * 18 + b"the end")
    (folder / "more" / "empty").write_bytes(b"")
    return folder


NAMES = ("config.json", "more/empty", "weights")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Counted(Store):
    """Which files are read and written; the line is cut after so many that were written."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.cut_after = cut_after
        self.down: list[str] = []
        self.up: list[str] = []

    def download(self, uri: str, *rest: Any) -> None:
        self.down.append(uri.rpartition("/")[2])
        super().download(uri, *rest)

    def upload(self, path: Path, uri: str, *rest: Any) -> None:
        if len(self.up) == self.cut_after:
            raise TemporaryError("the line is cut")
        self.up.append(path.name)
        super().upload(path, uri, *rest)


def test_what_is_pushed_comes_back_with_the_digest_of_the_folder(base: Path, tmp_path: Path, minio_place: str) -> None:
    before = folder_digest(store, str(base))
    push_folder(store, base, str(base), ())  # its manifest is not believed
    assert fetch_with_digest(store, base.as_uri(), Path("nowhere")) == (base, before)
    (base / MANIFEST).unlink()
    place = minio_place
    manifest = push_folder(store, base, place, NAMES)
    assert manifest.whole
    assert manifest.files["weights"].sha256 == hashlib.sha256((base / "weights").read_bytes()).hexdigest()
    folder, digest = fetch_with_digest(store, place, tmp_path / "here")
    assert contents(folder) == contents(base)
    assert digest == folder_digest(store, str(base)) == folder_digest(store, place)
    put_folder(store, base, join(place, "plain"))  # without a manifest it is taken as it is
    folder, plain = fetch_with_digest(store, join(place, "plain"), tmp_path / "there")
    assert (contents(folder), plain) == (contents(base), digest)


def test_a_file_that_is_not_what_its_manifest_says_is_refused_by_name(
    base: Path, minio_place: str, tmp_path: Path
) -> None:
    push_folder(store, base, minio_place, NAMES)
    data = bytearray((base / "weights").read_bytes())
    data[9 * MIB] ^= 1
    store.write(join(minio_place, "weights"), bytes(data))
    counted = Counted()
    with pytest.raises(InputError, match=r"weights is not what its manifest says: its digest is \w+…, expected \w+…"):
        fetch_folder(counted, minio_place, tmp_path / "here")
    assert counted.down.count("weights") == 3  # it might have been damaged on its way
    assert not (tmp_path / "here" / "weights").exists()
    store.delete(join(minio_place, "weights"))
    with pytest.raises(InputError, match=r"weights: no such object .*push the folder again"):
        fetch_folder(store, minio_place, tmp_path / "here")


def test_a_push_that_was_cut_off_is_no_base_and_goes_on(base: Path, tmp_path: Path, minio_place: str) -> None:
    place = minio_place
    with pytest.raises(TemporaryError):
        push_folder(Counted(cut_after=2), base, place, NAMES)
    for read in (lambda: fetch_folder(store, place, tmp_path / "x"), lambda: folder_digest(store, place)):
        with pytest.raises(InputError, match="only half there: a push of it was not finished; run the same push again"):
            read()
    (base / "config.json").write_bytes(b'{"changed": "meanwhile"}')
    counted = Counted()
    push_folder(counted, base, place, NAMES)
    assert counted.up == ["config.json", "weights"]  # more/empty is up, with the same size and digest
    assert contents(fetch_folder(store, place, tmp_path / "here")) == contents(base)
    counted.up.clear()
    push_folder(counted, base, place, NAMES)
    assert counted.up == []
    store.delete(join(place, "config.json"))
    store.write(join(place, "weights"), b"cut off")
    assert push_folder(counted, base, place, NAMES).whole  # what was lost is brought back
    assert sorted(counted.up) == ["config.json", "weights"]
    (base / "config.json").write_bytes(b"{ }")  # but what runs may have read is not replaced
    with pytest.raises(SettingsError, match=r"holds another folder \(config.json differ\).*push to another place"):
        push_folder(store, base, place, NAMES)


def test_what_is_there_already_is_not_fetched_again_unless_it_is_another(
    base: Path, moto_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(store, base, moto_place, NAMES)
    counted, here = Counted(), tmp_path / "here"
    fetch_folder(counted, moto_place, here, only=lambda name: name != "weights")
    assert sorted(counted.down) == ["config.json", "empty"]
    (here / "config.json").write_bytes(b"[]")  # of the same size
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 * MIB}))
        with pytest.raises(TemporaryError, match="18 MiB are needed, 10 are free"):
            fetch_folder(counted, moto_place, here)
    fetch_folder(counted, moto_place, here)
    assert sorted(counted.down) == ["config.json", "config.json", "empty", "weights"]
    assert contents(here) == contents(base)


@pytest.mark.parametrize("name", ["/out", "a/../../out"])
def test_a_manifest_does_not_write_outside_its_folder(folder_place: str, name: str) -> None:
    listed = {"size": 1, "sha256": "0" * 64}
    store.write(join(folder_place, MANIFEST), json.dumps({"whole": True, "files": {name: listed}}).encode())
    with pytest.raises(InputError, match="not a relative file name"):
        read_manifest(store, folder_place)


def test_asked_to_stop_it_leaves_soon_and_leaves_no_piece(
    base: Path, moto_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(store, base, moto_place)
    monkeypatch.setattr(stop, "_asked", threading.Event())
    stop.join()
    for fetch in (
        lambda: store.download(join(moto_place, "weights"), tmp_path / "here" / "weights"),
        lambda: fetch_folder(store, moto_place, tmp_path / "here"),
    ):
        with pytest.raises(Interrupted):
            fetch()
    assert contents(tmp_path / "here") == {}


def test_an_object_that_is_replaced_while_it_is_read_in_ranges_is_not_half_of_each(
    base: Path, minio_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcot.storage import Changed, s3

    monkeypatch.setattr(s3, "PART", MIB)  # 19 of them, so most are asked for later
    uri, turn, left = join(minio_place, "weights"), threading.Lock(), [True]
    store.upload(base / "weights", uri)

    def replace(_: int) -> None:
        with turn:  # nobody goes on reading meanwhile
            if left and left.pop():
                store.write(uri, b"x" * (18 * MIB + 7))

    with pytest.raises(Changed, match="changed while it was read"):
        store.download(uri, tmp_path / "weights", replace)
    assert not (tmp_path / "weights").exists()
