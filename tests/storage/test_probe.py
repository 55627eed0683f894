"""The probe passes real storage, and finds each promise that a server breaks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from jobs.probe import ProbeSettings, run
from vcot.errors import SettingsError, TemporaryError
from vcot.storage import Store
from vcot.storage.probe import CHECKS, probe


def faults(store: Store, place: str) -> set[str]:
    found = list(probe(store, place))
    assert [guarantee.name for guarantee in found] == list(CHECKS)
    return {guarantee.name for guarantee in found if not guarantee.holds}


def test_real_storage_passes_and_is_left_as_it_was(any_place):
    assert faults(Store(), any_place) == set()
    assert list(Store().list(any_place)) == []


class Replaces(Store):
    """Ignores If-None-Match, as servers did for years."""

    def write_once(self, uri, data):
        self.write(uri, data)
        return True


class Refuses(Store):
    def write_once(self, uri, data):
        return False


class LosesRaces(Store):
    """Looks first and writes then: right for one writer, wrong for many."""

    def write_once(self, uri, data):
        return (Replaces if "/one-winner/" in uri else Store)().write_once(uri, data)


class KeepsFraming(Store):
    """Stores what the client sent around the bytes, too."""

    def write(self, uri, data):
        super().write(uri, b"%x\r\n" % len(data) + data if data.startswith(b"5\r\n") else data)


class Stale(Store):
    def write(self, uri, data):
        if self.stat(uri) is None:
            super().write(uri, data)


class ListsLate(Store):
    def list(self, prefix_uri):
        return iter(list(super().list(prefix_uri))[:-1])


class IgnoresRanges(Store):
    def read_range(self, uri, start, length):
        return self.read(uri)[:length]


class ShowsHalves(Store):
    @contextmanager
    def open_write(self, uri):
        super().write(uri, b"half")
        with super().open_write(uri) as target:
            yield target


class CutsParts(Store):
    @contextmanager
    def open_write(self, uri):
        with super().open_write(uri) as target:
            yield type("Short", (), {"write": lambda _, data: target.write(data[: 16 << 20])})()


@pytest.mark.parametrize(
    ("server", "broken"),
    [
        (Replaces, {"write-once", "one-winner"}), (Refuses, {"write-once", "one-winner"}), (LosesRaces, {"one-winner"}),
        (KeepsFraming, {"bytes"}), (Stale, {"newest"}), (ListsLate, {"list"}), (IgnoresRanges, {"range"}),
        (ShowsHalves, {"halves"}), (CutsParts, {"multipart"}),
    ],
)  # fmt: skip
def test_a_broken_promise_is_found_and_no_other(server, broken, folder_place):
    assert faults(server(), folder_place) == broken


def test_the_command_names_what_is_wrong_and_writes_its_last_word(moto_place, tmp_path, capsys, monkeypatch):
    from vcot.stage import launch, stop, summary

    monkeypatch.setattr(stop, "listen", lambda: None)
    monkeypatch.setattr(summary, "facts", {})
    log = tmp_path / "termination-log"
    for uri, code in ((moto_place, 0), ("s3://elsewhere/x", 78)):
        with pytest.raises(SystemExit) as ended:
            launch(ProbeSettings, run, ["--uri", uri, "--termination-log", str(log)])
        out, said = capsys.readouterr()
        assert ended.value.code == code, said
        if code == 0:
            assert [line.split()[:2] for line in out.splitlines()] == [["ok", name] for name in CHECKS]
            assert '"one-winner": "ok"' in log.read_text()
    assert "there is no bucket 'elsewhere'" in said
    assert "there is no bucket 'elsewhere'" in log.read_text()


# --- small S3 servers with the faults of real ones


class OddServer(ThreadingHTTPServer):
    """An object store in memory: PUT, GET, HEAD and lists, without signatures.

    Attributes:
        handshake: seconds that each new connection takes, one after another, as a TLS handshake does.
        gap: seconds between the check of If-None-Match and the write.
        virtual_only: objects are found at bucket.host only.
        busy_after: requests after which every answer is 429.
    """

    daemon_threads = True
    request_queue_size = 64
    handshake = gap = 0.0
    virtual_only = False
    busy_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OddHandler)
        self.objects: dict[str, bytes] = {}
        self.requests = 0

    def get_request(self):
        time.sleep(self.handshake)
        return super().get_request()


class OddHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddServer

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "ETag": '"e"'} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if (key := self.key()) is None:
            return
        if self.headers["If-None-Match"] == "*":
            if key in self.server.objects:
                self.refuse(412, "PreconditionFailed")
                return
            time.sleep(self.server.gap)
        self.server.objects[key] = data
        self.answer(200)

    def do_GET(self) -> None:
        if (key := self.key()) is None:
            return
        if key in self.server.objects:
            self.answer(200, self.server.objects[key])
        elif key == "" and self.command == "HEAD":
            self.answer(200)
        elif key == "":
            found = "".join(
                f"<Contents><Key>{name}</Key><Size>1</Size></Contents>" for name in sorted(self.server.objects)
            )
            self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode())
        else:
            self.refuse(404, "NoSuchKey")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.answer(501)

    def do_DELETE(self) -> None:
        if (key := self.key()) is not None:
            self.server.objects.pop(key, None)
            self.answer(204)

    def key(self) -> str | None:
        """The key of the object; None if the request was refused."""
        self.server.requests += 1
        if self.server.busy_after is not None and self.server.requests > self.server.busy_after:
            self.refuse(429, "TooManyRequests")
            return None
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if self.headers["Host"].startswith("vcot."):
            return path
        if self.server.virtual_only:
            self.refuse(403, "SecondLevelDomainForbidden")
            return None
        return path.partition("/")[2]


@pytest.fixture
def odd_server(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddServer]:
    """A server at store.test, as s3://vcot."""
    server = OddServer()
    resolve = socket.getaddrinfo

    def local(host, *more, **options):
        return resolve("127.0.0.1" if str(host).endswith("store.test") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    for name, value in {
        "ENDPOINT_URL_S3": f"http://store.test:{server.server_port}",
        "ACCESS_KEY_ID": "any",
        "SECRET_ACCESS_KEY": "any",
        "REGION": "us-east-1",
        "MAX_ATTEMPTS": "2",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("NO_PROXY", "store.test")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_that_checks_then_writes_loses_the_race(odd_server):
    odd_server.handshake, odd_server.gap = 0.02, 0.005
    found = {guarantee.name: guarantee for guarantee in probe(Store(), "s3://vcot/x")}
    assert found["write-once"].holds
    assert "writers at once" in found["one-winner"].fault


def test_a_store_at_virtual_hosts_only_is_named_as_such(odd_server):
    odd_server.virtual_only = True
    with pytest.raises(SettingsError, match=r"answers only at bucket\.host") as caught:
        list(probe(Store(), "s3://vcot/x"))
    assert "keys" not in str(caught.value)


def test_virtual_hosts_can_be_chosen_as_the_error_says(odd_server, tmp_path, monkeypatch):
    odd_server.virtual_only = True
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    first = next(iter(probe(Store(), "s3://vcot/x")))
    assert (first.name, first.holds) == ("bytes", True)


def test_refused_keys_are_not_taken_for_virtual_hosts(odd_server, monkeypatch):
    monkeypatch.setattr(OddHandler, "key", lambda self: self.refuse(403, "AccessDenied"))
    with pytest.raises(SettingsError, match=r"denies access"):
        list(probe(Store(), "s3://vcot/x"))


@pytest.mark.parametrize("requests", [0, 8])
def test_a_busy_store_is_not_called_unsafe(odd_server, requests, capsys):
    odd_server.busy_after = requests
    with pytest.raises(TemporaryError, match="not well just now"):
        run(ProbeSettings(uri="s3://vcot/x"))
    assert "FAIL" not in capsys.readouterr().out


def test_one_failed_writer_ends_the_race(odd_server, monkeypatch):
    """The others wait for it at the start of the race."""
    head, failed = OddHandler.do_HEAD, []

    def fail_once(self: OddHandler) -> None:
        if "/one-winner/" in self.path and not failed:
            failed.append(self.path)
            self.answer(403)
        else:
            head(self)

    monkeypatch.setattr(OddHandler, "do_HEAD", fail_once)
    begun = time.monotonic()
    found = {guarantee.name: guarantee for guarantee in probe(Store(), "s3://vcot/x")}
    assert failed
    assert not found["one-winner"].holds
    assert time.monotonic() - begun < 30


def test_a_store_that_refuses_conditions_is_not_said_to_lose_data(odd_server, monkeypatch):
    put = OddHandler.do_PUT

    def without_conditions(self: OddHandler) -> None:
        if self.headers["If-None-Match"]:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.refuse(501, "NotImplemented")
        else:
            put(self)

    monkeypatch.setattr(OddHandler, "do_PUT", without_conditions)
    found = {guarantee.name: guarantee for guarantee in probe(Store(), "s3://vcot/x")}
    assert found["bytes"].holds
    assert found["write-once"].is_refused
    assert "NotImplemented" in found["write-once"].fault
