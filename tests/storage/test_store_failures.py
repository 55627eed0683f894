"""What goes wrong with storage: in bounded time, as one line, with the exit code that says what can be done."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import vcot.storage.local as local
import vcot.storage.s3 as s3
from vcot.errors import InputError, SettingsError, TemporaryError, UsageError, VcotError
from vcot.storage import Changed, NotFound, Store, join

store = Store()


def _every_verb(uri: str, folder: Path) -> dict[str, Callable[[], object]]:
    (folder / "file").write_bytes(b"x")

    def write_much() -> None:
        with store.open_write(uri) as target:
            for _ in range(20):
                target.write(b"x" * (1 << 20))

    return {
        "read": lambda: store.read(uri),
        "read_range": lambda: store.read_range(uri, 0, 1),
        "stat": lambda: store.stat(uri),
        "list": lambda: list(store.list(uri)),
        "write": lambda: store.write(uri, b"x"),
        "write_once": lambda: store.write_once(uri, b"x"),
        "open_write": write_much,
        "upload": lambda: store.upload(folder / "file", uri),
        "download": lambda: store.download(uri, folder / "down"),
        "digest": lambda: store.digest(uri),
    }


def _assert_all(uri: str, folder: Path, error: type[VcotError], *says: str) -> None:
    for verb, attempt in _every_verb(uri, folder).items():
        with pytest.raises(error) as caught:
            attempt()
        message = str(caught.value)
        assert caught.type is error, verb
        assert message.startswith(f"{uri}: "), verb
        assert "\n" not in message
        assert any(text in message for text in says), (verb, message)
    assert not (folder / "down").exists()


WRONG = "wrong-wrong-wrong"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": WRONG}, "access key"), ({"AWS_SECRET_ACCESS_KEY": WRONG}, "secret key"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "elsewhere"}, "profile"), ({"AWS_ENDPOINT_URL_S3": "127.0.0.1:9"}, "S3 is not set up"),
    ],
)  # fmt: skip
def test_keys_and_endpoints_that_cannot_work_are_wrong_settings(
    minio_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    # HEAD has no body, so it cannot say which of the two
    _assert_all(join(minio_place, "x"), tmp_path, SettingsError, says, "refuses the keys or denies access")


def test_names_that_nothing_can_have_are_refused(minio_place: str) -> None:
    for uri in ("s3://N_/x", "s3://a b/x"):
        with pytest.raises(UsageError, match="is no name for a bucket"):
            store.read(uri)
    with pytest.raises(InputError, match="cannot hold or give"):
        store.write(minio_place + "/" + "k" * 1100, b"")


@pytest.mark.parametrize("kind", ["moto", "minio"])
def test_a_missing_bucket_is_a_wrong_setting(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    request.getfixturevalue(f"{kind}_place")
    _assert_all("s3://no-such-bucket/run/x", tmp_path, SettingsError, "there is no bucket 'no-such-bucket'")


def test_a_dead_endpoint_is_temporary(no_aws: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # held, so that no server of a test beside this one gets it, and never listening
        port = deaf.getsockname()[1]
        _use(monkeypatch, port)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        said = f"no good connection to http://127.0.0.1:{port}; is the server running"
        _assert_all("s3://vcot/x", tmp_path, TemporaryError, said)


def test_a_silent_endpoint_is_given_up_after_the_ceiling(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the ceiling: nine read timeouts."""
    monkeypatch.setattr(s3, "_READ_TIMEOUT", 0.3)
    monkeypatch.setattr(s3, "_CEILING", 0.5)
    tried = 0
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(32)
        _use(monkeypatch, silent.getsockname()[1])
        with pytest.raises(TemporaryError, match="no good connection"):
            store.read("s3://vcot/x")
        silent.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                tried += 1
    assert tried in (1, 2)


# --- a server that answers what it is told to: the stub proves our side, not S3's ---


class Script(http.server.BaseHTTPRequestHandler):
    """Answers from a list of (status, headers, body, bytes to send before hanging up or None)."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[int, dict[str, str], bytes, int | None]]] = []
    asked: ClassVar[list[tuple[str, str, str | None]]] = []

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, self.headers.get("Range")))
        status, headers, body, cut = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def script(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Script]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Script)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)  # we hang up on it; it need not tell
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Script.answers, Script.asked = [], []
    _use(monkeypatch, server.server_port)
    yield Script
    server.shutdown()
    server.server_close()


def _use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


def _refusal(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>so\nit is</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (503, "SlowDown", TemporaryError, "not well just now"), (500, "InternalError", TemporaryError, "not well just"),
        (429, "TooManyRequests", TemporaryError, "not well just"), (507, "XMinioStorageFull", TemporaryError, "room"),
        (403, "AccessDenied", SettingsError, "denies access"), (400, "ExpiredToken", SettingsError, "expired"),
        (403, "RequestTimeTooSkewed", SettingsError, "clock"), (501, "NotImplemented", SettingsError, "refuses Put"),
        (400, "EntityTooLarge", InputError, "cannot hold"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_exit_code(
    script: type[Script],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    error: type[VcotError],
    says: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    script.answers = [(status, {}, _refusal(code), None)]
    with pytest.raises(error, match=says) as caught:
        store.write("s3://vcot/x", b"data")
    assert caught.type is error
    assert "\n" not in str(caught.value)


def test_a_server_that_is_busy_for_a_moment_is_asked_again(script: type[Script]) -> None:
    script.answers = [(503, {}, _refusal("ServiceUnavailable"), None)] * 2 + [(200, {}, b"", None)]
    store.write("s3://vcot/x", b"data")
    assert len(script.asked) == 3


def test_a_write_once_whose_answer_was_lost_was_still_ours(script: type[Script]) -> None:
    """The first try is written, its answer lost; the second is told that something is there: our own bytes."""
    lost = (500, {}, _refusal("InternalError"), None)
    taken = (412, {}, _refusal("PreconditionFailed"), None)
    script.answers = [lost, taken, (200, {"ETag": '"1"'}, b"mine", None)]
    assert store.write_once("s3://vcot/x", b"mine")
    script.answers = [lost, taken, (200, {"ETag": '"1"'}, b"theirs", None)]
    assert not store.write_once("s3://vcot/x", b"mine")
    script.answers = [taken]
    assert not store.write_once("s3://vcot/x", b"mine")


def test_a_write_once_that_met_another_asks_again(script: type[Script]) -> None:
    conflict = (409, {}, _refusal("ConditionalRequestConflict"), None)
    script.answers = [conflict, (200, {}, b"", None)]
    assert store.write_once("s3://vcot/x", b"mine")
    script.answers = [conflict, (412, {}, _refusal("PreconditionFailed"), None)]
    assert not store.write_once("s3://vcot/x", b"mine")


def test_a_large_object_whose_last_answer_was_lost_is_there(script: type[Script]) -> None:
    started = (200, {}, b"<R><UploadId>7</UploadId></R>", None)
    part = (200, {"ETag": '"1"'}, b"", None)
    gone = (404, {}, _refusal("NoSuchUpload"), None)
    lost = (500, {}, _refusal("InternalError"), None)
    size = (16 << 20) + 1

    def write() -> None:
        with store.open_write("s3://vcot/x") as target:
            target.write(bytes(size))

    script.answers = [started, part, part, lost, gone, (200, {"Content-Length": str(size)}, b"", None)]
    write()
    missing, bucket = (404, {}, b"", None), (200, {}, b"", None)
    script.answers = [started, part, part, lost, gone, missing, bucket]
    with pytest.raises(TemporaryError):
        write()


DATA = bytes(range(256)) * 20000


def test_a_broken_download_goes_on_where_it_broke(script: type[Script]) -> None:
    def rest(start: int, cut: int | None, etag: str = '"1"') -> tuple[int, dict[str, str], bytes, int | None]:
        said = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        return (206, {"ETag": etag, "Content-Range": said}, DATA[start:], cut)

    first = (200, {"ETag": '"1"'}, DATA, 3 << 20)
    script.answers = [first, rest(3 << 20, 1 << 20), rest(4 << 20, None)]
    with store.open_read("s3://vcot/x") as source:
        assert source.read() == DATA
    assert [asked[2] for asked in script.asked] == [None, "bytes=3145728-", "bytes=4194304-"]

    script.answers = [first, rest(3 << 20, None, etag='"2"')]
    with store.open_read("s3://vcot/x") as source, pytest.raises(Changed, match="x: changed while it was read"):
        source.read()

    script.answers = [first, (404, {}, _refusal("NoSuchKey"), None)]
    with store.open_read("s3://vcot/x") as source, pytest.raises(Changed, match="x: vanished while it was read"):
        source.read()


def test_a_server_that_ignores_ranges_is_found_out(script: type[Script]) -> None:
    script.answers = [(200, {"ETag": '"1"'}, DATA, None)]
    with pytest.raises(SettingsError, match="ignores ranges"):
        store.read_range("s3://vcot/x", 100, 5)


def test_a_page_that_is_not_s3_is_a_wrong_setting(script: type[Script]) -> None:
    script.answers = [(200, {"Content-Type": "text/html"}, b"<html><p>It works!</p></html>", None)]
    with pytest.raises(SettingsError, match="does not answer like S3"):
        list(store.list("s3://vcot/x"))


# --- folders ---


def test_a_full_disk_is_temporary_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without room."""
    uri = str(tmp_path / "x")
    store.write(uri, b"before")
    before = local._Raw.__init__

    def onto_a_full_disk(self: Any, place: local.LocalFile, mode: str, path: str | None = None) -> None:
        before(self, place, mode, "/dev/full" if "w" in mode else path)

    monkeypatch.setattr(local._Raw, "__init__", onto_a_full_disk)
    for attempt in (
        lambda: store.write(uri, b"after"),
        lambda: store.write(uri, b"after" * 1_000_000),
        lambda: store.write_once(uri, b"after"),
        lambda: store.download(uri, tmp_path / "copy"),
    ):
        with pytest.raises(TemporaryError, match="no room left on /"):
            attempt()
    assert store.read(uri) == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_of_the_block_is_not_taken_for_one_of_the_store(tmp_path: Path) -> None:
    def fail() -> None:
        with store.open_write(str(tmp_path / "x")) as target:
            target.write(b"x")
            raise OSError(errno.ENOSPC, "of somebody else")

    with pytest.raises(OSError, match="of somebody else") as caught:
        fail()
    assert caught.type is OSError


@pytest.mark.parametrize("kind", ["FIFO", "socket", "character device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "special")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # its path must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("special")
    else:
        Path(path).symlink_to("/dev/null")
    for attempt in (
        lambda: store.read(path), lambda: store.read_range(path, 0, 1), lambda: store.digest(path),
        lambda: store.download(path, tmp_path / "copy"), lambda: store.upload(Path(path), str(tmp_path / "copy")),
        lambda: store.stat(path),
    ):  # fmt: skip
        with _given_up_after(5), pytest.raises(NotFound, match=f"^{path}: a {kind}, not a regular file"):
            attempt()
    assert not (tmp_path / "copy").exists()


@contextlib.contextmanager
def _given_up_after(seconds: int) -> Iterator[None]:
    """Fails where something would be waited for without end."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"it hangs: nothing came of it in {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_folder_that_cannot_be_listed_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    plain = os.scandir

    def closed(path: str) -> Any:
        if path.endswith("/closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", closed)  # root may list everything
    with pytest.raises(SettingsError, match=f"^{tmp_path}/closed/: permission denied"):
        list(store.list(str(tmp_path)))


def test_a_folder_is_not_a_file_nor_a_file_a_folder(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "a b"
    folder.mkdir()
    for attempt in (lambda: store.read(str(folder)), lambda: store.write(str(folder), b"x")):
        with pytest.raises(NotFound, match="a folder, not a file"):
            attempt()
    file.touch()
    for uri in (f"{file}/x", f"file://{file}/x/y/z"):
        for write in (store.write, store.write_once):
            with pytest.raises(UsageError, match=f"^{uri}: one of its folders is a file already, {file};"):
                write(uri, b"x")
        with pytest.raises(NotFound, match=f"{file} is a file, not a folder"):
            store.read(uri)
    assert store.stat(str(folder)) is store.stat(f"{file}/x") is None
    assert file.read_bytes() == b""
    with pytest.raises(NotFound, match="URIs are taken as they stand"):
        store.read(f"file://{tmp_path}/a%20b")


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(SettingsError, match="has no hard links"):
        store.write_once(str(tmp_path / "x"), b"x")


def test_listing_a_folder_follows_links_once_and_hides_what_is_unfinished(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "a.png").write_bytes(b"12")
    base = tmp_path / "store"
    base.mkdir()
    (base / "linked").symlink_to(real)
    (base / "linked-too").symlink_to(real)
    (real / "round").symlink_to(base)
    (base / "dangling").symlink_to(tmp_path / "nothing")
    (base / "itself").symlink_to("itself")
    with store.open_write(str(base / "half")) as target:
        target.write(b"x")
        uris = [entry.uri for entry in store.list(str(base))]
    assert [uri.removeprefix(str(base)) for uri in uris if "round" not in uri] == ["/linked-too/a.png", "/linked/a.png"]
    with pytest.raises(NotFound, match=f"^{base}/itself: too many levels of symbolic links"):
        store.read(f"{base}/itself")


def test_files_have_the_rights_of_any_new_file_and_relative_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ordinary").touch()
    expected = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    store.write(str(tmp_path / "x"), b"x")
    store.write_once(str(tmp_path / "y"), b"y")
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"} == {expected}
    monkeypatch.chdir(tmp_path)
    store.write("runs/x", b"x")
    assert [entry.uri for entry in store.list("runs")] == ["runs/x"]
    assert [entry.uri for entry in store.list(".")] == ["./ordinary", "./runs/x", "./x", "./y"]
