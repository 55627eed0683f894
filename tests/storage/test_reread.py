"""One bad answer of storage is read again; what stays bad is reported with the number of reads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.faults import Fault, empty_list, flipped, missing, refused, replaced, reset_in_error, truncated
from tests.s3 import FaultyPlace
from tests.storage.test_images import encode, noise
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.storage import NotFound, Store, confirmed, images, join, put_folder, read_json, reread
from vcot.storage.folders import FolderManifest, fetch_base, fetch_files, fetch_folder, folder_digest, push_folder
from vcot.storage.images import ImageError

store = Store()


@pytest.fixture(autouse=True)
def no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reread, "_in_vain", 0)


def fails(times: int, kind: type[InputError] = InputError) -> Callable[[], str]:
    """Raises so many times, then returns."""
    left = [times]

    def attempt() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise kind("s3://b/x is damaged")
        return "good"

    return attempt


def test_two_bad_reads_are_followed_by_a_third() -> None:
    assert confirmed("s3://b/x", fails(2)) == "good"


def test_a_fault_of_every_read_is_reported_with_their_number() -> None:
    with pytest.raises(InputError, match=r"^s3://b/x is damaged \(read 3 times\)$"):
        confirmed("s3://b/x", lambda: confirmed("s3://b/x", fails(3)))  # an outer check adds no reads


def test_local_file_is_read_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reread, "_wait", lambda seconds: pytest.fail("waited"))
    assert confirmed("/a/file", fails(1)) == "good"


def test_hopeless_faults_are_read_again_once_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reread, "_in_vain", reread.PAUSES_IN_VAIN)
    monkeypatch.setattr(reread, "_wait", lambda seconds: pytest.fail("waited"))
    monkeypatch.setattr(reread, "_close_connections", lambda: pytest.fail("closed the connections of other readers"))
    with pytest.raises(InputError, match=r"\(read 2 times\)$"):
        confirmed("s3://b/x", fails(9))


def test_an_absent_object_is_awaited_only_where_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reread, "PAUSE", 30)
    begun = time.monotonic()
    for uri, recorded in (("s3://b/x", False), ("/a/file", True), ("file:///a/file", True)):
        with pytest.raises(NotFound, match=r"^s3://b/x is damaged$"):
            confirmed(uri, fails(1, NotFound), recorded=recorded)
    assert time.monotonic() - begun < 10
    monkeypatch.setattr(reread, "PAUSE", 0)
    assert confirmed("s3://b/x", fails(2, NotFound)) == "good"


def test_many_real_faults_cost_no_pause_each(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(reread, "_wait", waits.append)
    for _ in range(5 * reread.PAUSES_IN_VAIN):
        with pytest.raises(InputError):
            confirmed("s3://b/x", fails(3))
    assert len(waits) == 2 * reread.PAUSES_IN_VAIN
    assert confirmed("s3://b/x", fails(1)) == "good"  # from here on, pauses are worth it again
    assert confirmed("s3://b/x", fails(1)) == "good"
    assert len(waits) == 2 * reread.PAUSES_IN_VAIN + 1


def test_a_further_read_uses_a_new_connection(faulty_place: FaultyPlace) -> None:
    uri, proxy = join(faulty_place.uri, "x.json"), faulty_place.proxy
    store.write(uri, b'{"a": 1}')
    assert read_json(store, uri, dict) == {"a": 1}
    before = proxy.connections
    assert read_json(store, uri, dict) == {"a": 1}
    assert proxy.connections == before
    proxy.add(replaced("x.json", b"{"))
    assert read_json(store, uri, dict) == {"a": 1}
    assert proxy.connections == before + 1


IMAGE = encode(noise(), "PNG")
ONCE: dict[str, Callable[[], Fault]] = {
    "flipped": lambda: flipped("x.png"), "missing": lambda: missing("x.png"), "cut": lambda: truncated("x.png"),
    "other": lambda: replaced("x.png", encode(noise(8, 8), "PNG")), "missing twice": lambda: missing("x.png", times=2),
}  # fmt: skip


@pytest.mark.parametrize("fault", ONCE)
def test_an_image_that_is_bad_once_is_read_again(faulty_place: FaultyPlace, fault: str) -> None:
    uri, sha256 = join(faulty_place.uri, "x.png"), hashlib.sha256(IMAGE).hexdigest()
    store.write(uri, IMAGE)
    faulty_place.proxy.add(ONCE[fault]())
    assert images.fetch(store, uri, sha256=sha256) == IMAGE


def test_an_image_that_stays_another_is_reported_changed(faulty_place: FaultyPlace) -> None:
    uri, sha256 = join(faulty_place.uri, "x.png"), hashlib.sha256(IMAGE).hexdigest()
    store.write(uri, IMAGE[:-1])
    with pytest.raises(ImageError, match=rf"sha256 is .*{len(IMAGE) - 1:,} bytes.*\(read 3 times\)") as caught:
        images.fetch(store, uri, sha256=sha256)
    assert caught.value.reason == "changed"
    assert faulty_place.proxy.count("GET", "x.png") == 3


FOLDER: dict[str, Callable[[], Fault]] = {
    "file flipped": lambda: flipped("base/config.json", at=3), "file missing": lambda: missing("base/config.json"),
    "manifest flipped": lambda: flipped("_manifest.json", at=0), "manifest cut": lambda: truncated("_manifest.json"),
    "manifest stale": lambda: replaced("_manifest.json", FolderManifest(whole=True, files={}).line()),
}  # fmt: skip


def base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "toy"}')
    (folder / "weights").write_bytes(bytes(5000))
    return folder


@pytest.mark.parametrize("fault", [name for name in FOLDER if name != "manifest stale"])
def test_a_pushed_folder_survives_one_bad_read(faulty_place: FaultyPlace, fault: str, tmp_path: Path) -> None:
    uri, local = join(faulty_place.uri, "base"), base(tmp_path / "base")
    push_folder(store, local, uri, ["config.json", "weights"])
    digest = folder_digest(store, uri)
    faulty_place.proxy.add(FOLDER[fault]())
    folder = fetch_base(store, uri, digest, tmp_path / "in")
    assert (folder / "config.json").read_bytes() == (local / "config.json").read_bytes()
    assert all(fault.times == 0 for fault in faulty_place.proxy.faults)


def test_a_folder_without_manifest_survives_one_bad_read(faulty_place: FaultyPlace, tmp_path: Path) -> None:
    uri, local = join(faulty_place.uri, "base"), base(tmp_path / "base")
    digests = put_folder(store, local, uri)
    digest = folder_digest(store, uri)
    faulty_place.proxy.add(empty_list(""), flipped("base/weights"))
    fetch_folder(store, uri, tmp_path / "a")
    faulty_place.proxy.add(flipped("base/config.json"), flipped("base/weights"))
    fetch_base(store, uri, digest, tmp_path / "b")
    faulty_place.proxy.add(flipped("base/config.json"), missing("base/weights"))
    fetch_files(store, uri, digests, tmp_path / "c")
    for name in digests:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert all(fault.times == 0 for fault in faulty_place.proxy.faults)


# --- errors that nothing maps ---


@pytest.mark.parametrize("verb", ["read", "download"])
def test_a_reset_inside_an_error_answer_is_temporary(faulty_place: FaultyPlace, verb: str, tmp_path: Path) -> None:
    """urllib3's own error, which botocore neither maps nor tries again where the answer is a stream."""
    uri = join(faulty_place.uri, "x")
    store.write(uri, b"x")
    faulty_place.proxy.add(reset_in_error("/x"))
    with pytest.raises(TemporaryError, match=f"^{uri}: no good connection"):
        store.read(uri) if verb == "read" else store.download(uri, tmp_path / "down")


@pytest.mark.parametrize(
    ("status", "code", "headers", "says"),
    [
        (400, "ExpiredToken", {}, "says that the keys have expired"),
        (403, "AccessDenied", {}, "denies access"), (403, "InvalidAccessKeyId", {}, "does not know this access key"),
        (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-central-1"}, "set AWS_REGION=eu-central-1"),
        (404, "NoSuchBucket", {}, "there is no bucket"),
    ],
)  # fmt: skip
def test_a_refused_head_gets_its_reason_from_a_get(
    faulty_place: FaultyPlace, status: int, code: str, headers: dict[str, str], says: str
) -> None:
    faulty_place.proxy.add(*(refused("", status, code, method, 20, **headers) for method in ("HEAD", "GET")))
    with pytest.raises(SettingsError, match=says):
        store.stat(join(faulty_place.uri, "x"))


def test_a_refused_head_of_an_object_is_answered_by_get(faulty_place: FaultyPlace) -> None:
    for name, data in (("x", b"123"), ("empty", b"")):
        uri = join(faulty_place.uri, name)
        store.write(uri, data)
        expected = store.stat(uri)
        faulty_place.proxy.add(refused("", 403, "AccessDenied", "HEAD"))
        assert store.stat(uri) == expected
        assert expected is not None
        assert expected.size == len(data)
