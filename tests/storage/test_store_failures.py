"""What goes wrong with storage: in bounded time, as one line, with the exit code that says what can be done."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import socket
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


def _write_much(uri: str, _: Path) -> None:
    with store.open_write(uri) as target:
        target.write(b"x" * (20 << 20))


READ: dict[str, Callable[[str, Path], object]] = {
    "read": lambda uri, _: store.read(uri),
    "read_range": lambda uri, _: store.read_range(uri, 3, 4),
    "download": lambda uri, folder: store.download(uri, folder / "down"),
    "digest": lambda uri, _: store.digest(uri),
}
LOOK: dict[str, Callable[[str, Path], object]] = {
    "stat": lambda uri, _: store.stat(uri), "list": lambda uri, _: list(store.list(uri))
}  # fmt: skip
WRITE: dict[str, Callable[[str, Path], object]] = {
    "write": lambda uri, _: store.write(uri, b"after"),
    "write_once": lambda uri, _: store.write_once(uri, b"after"),
    "open_write": _write_much,
    "upload": lambda uri, _: store.upload(Path(__file__), uri),
}


def _assert_all(uri: str, folder: Path, error: type[VcotError], *says: str, verbs: Any = READ | LOOK | WRITE) -> None:
    """Each of these verbs ends with this error in one line, which begins with the URI and says one of these."""
    for verb, attempt in verbs.items():
        with pytest.raises(error) as caught:
            attempt(uri, folder)
        message = str(caught.value)
        assert caught.type is error, verb
        assert message.startswith(f"{uri}: "), verb
        assert "\n" not in message
        assert any(text in message for text in says), (verb, message)
    assert not (folder / "down").exists()


def test_a_missing_object_is_named_as_written(any_place: str, tmp_path: Path) -> None:
    uri = join(any_place, "no such ### thing")
    _assert_all(uri, tmp_path, NotFound, "no such", verbs=READ)
    assert store.stat(uri) is None


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


def test_names_that_nothing_can_have_are_refused_and_a_missing_bucket_is_a_wrong_setting(
    minio_place: str, tmp_path: Path
) -> None:
    for uri in ("s3://N_/x", "s3://a b/x"):
        with pytest.raises(UsageError, match="is no name for a bucket"):
            store.read(uri)
    with pytest.raises(InputError, match="cannot hold or give"):
        store.write(minio_place + "/" + "k" * 1100, b"")
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


def _answer(status: int, code: str) -> tuple[int, dict[str, str], bytes, None]:
    return status, {}, f"<Error><Code>{code}</Code><Message>so\nit is</Message></Error>".encode(), None


OK = (200, {}, b"", None)
LOST, TAKEN = _answer(500, "InternalError"), _answer(412, "PreconditionFailed")


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
    script: type[Script], monkeypatch: pytest.MonkeyPatch, status: int, code: str, error: type[VcotError], says: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    script.answers = [_answer(status, code)]
    with pytest.raises(error, match=says) as caught:
        store.write("s3://vcot/x", b"data")
    assert caught.type is error
    assert "\n" not in str(caught.value)


def test_what_does_not_answer_like_s3_is_a_wrong_setting(script: type[Script]) -> None:
    script.answers = [(200, {"ETag": '"1"'}, DATA, None)]
    with pytest.raises(SettingsError, match="ignores ranges"):
        store.read_range("s3://vcot/x", 100, 5)
    script.answers = [(200, {"Content-Type": "text/html"}, b"<html><p>It works!</p></html>", None)]
    with pytest.raises(SettingsError, match="does not answer like S3"):
        list(store.list("s3://vcot/x"))


@pytest.mark.parametrize(
    ("answers", "won"),
    [
        # The first try is written, its answer lost; the second is told that something is there: our own bytes, or not.
        ([LOST, TAKEN, (200, {"ETag": '"1"'}, b"mine", None)], True),
        ([LOST, TAKEN, (200, {"ETag": '"1"'}, b"theirs", None)], False),
        ([TAKEN], False), ([_answer(503, "ServiceUnavailable"), OK], True),
        ([_answer(409, "ConditionalRequestConflict"), OK], True),
        ([_answer(409, "ConditionalRequestConflict"), TAKEN], False),
    ],
)  # fmt: skip
def test_a_write_once_is_ours_or_it_is_not(script: type[Script], answers: list[Any], won: bool) -> None:
    script.answers = list(answers)
    assert store.write_once("s3://vcot/x", b"mine") == won
    assert len(script.asked) == len(answers)


def test_a_large_object_whose_last_answer_was_lost_is_there(script: type[Script], tmp_path: Path) -> None:
    size = (16 << 20) + 1
    (tmp_path / "x").write_bytes(bytes(size))
    part = (200, {"ETag": '"1"'}, b"", None)
    sent = [(200, {}, b"<R><UploadId>7</UploadId></R>", None), part, part, LOST, _answer(404, "NoSuchUpload")]
    script.answers = [*sent, (200, {"Content-Length": str(size)}, b"", None)]
    store.upload(tmp_path / "x", "s3://vcot/x")
    script.answers = [*sent, (404, {}, b"", None), _answer(404, "NoSuchKey")]  # no object, and a bucket
    with pytest.raises(TemporaryError):
        store.upload(tmp_path / "x", "s3://vcot/x")


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

    script.answers = [first, _answer(404, "NoSuchKey")]
    with store.open_read("s3://vcot/x") as source, pytest.raises(Changed, match="x: vanished while it was read"):
        source.read()


# --- folders ---


def test_a_full_disk_is_temporary_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full is a disk without room."""
    uri = str(tmp_path / "x")
    store.write(uri, b"before")
    before = local._Raw.__init__

    def onto_a_full_disk(self: Any, place: local.LocalFile, mode: str, path: str | None = None) -> None:
        before(self, place, mode, "/dev/full" if "w" in mode else path)

    monkeypatch.setattr(local._Raw, "__init__", onto_a_full_disk)
    _assert_all(uri, tmp_path, TemporaryError, "no room left on /", verbs=WRITE)
    with pytest.raises(TemporaryError, match="no room left on /"):
        store.download(uri, tmp_path / "copy")
    assert store.read(uri) == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "character device").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    for kind in ("character device", "socket", "FIFO"):
        path = str(tmp_path / kind)
        said = f"{path}: a {kind}, not a regular file"
        _assert_all(path, tmp_path, NotFound, said, verbs=READ | {"stat": LOOK["stat"]})
        with pytest.raises(NotFound, match=f"^{said}"):
            store.upload(Path(path), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_cannot_be_listed_and_one_without_hard_links_are_wrong_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    plain = os.scandir

    def refused(path: str, *_: str) -> Any:
        if path.endswith(("/closed", ".part")):
            raise PermissionError(errno.EPERM, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may list everything
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(SettingsError, match=f"^{tmp_path}/closed/: permission denied"):
        list(store.list(str(tmp_path)))
    with pytest.raises(SettingsError, match="has no hard links"):
        store.write_once(str(tmp_path / "x"), b"x")


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
