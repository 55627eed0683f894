"""A proxy in front of an S3 server that answers some requests wrongly, as networks, proxies and stores do.

proxy.add(flipped("settings.json"))            the first GET of it has one other bit, later ones are good
proxy.add(missing("_done/stage.json", times=2))
"""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Answer:
    """cut: bytes of the body that are sent before the connection is reset; None: all of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None


@dataclass
class Fault:
    """What happens to the next `times` answers to requests of this method whose path and query contain `path`."""

    method: str
    path: str
    change: Callable[[Answer], Answer]
    times: int = 1


def flipped(path: str, at: int = 40, times: int = 1) -> Fault:
    def change(answer: Answer) -> Answer:
        place = min(at, len(answer.body) - 1)
        other = bytes([answer.body[place] ^ 0x20])
        return replace(answer, body=answer.body[:place] + other + answer.body[place + 1 :])

    return Fault("GET", path, change, times)


def replaced(path: str, body: bytes, times: int = 1) -> Fault:
    return Fault("GET", path, lambda answer: replace(answer, body=body), times)


def truncated(path: str, length: int = 20, times: int = 1) -> Fault:
    """The headers are those of what is sent, so HTTP sees nothing wrong."""

    def change(answer: Answer) -> Answer:
        end, headers = min(length, len(answer.body)), dict(answer.headers)
        if answer.status == 206:
            headers["content-range"] = f"bytes 0-{end - 1}/{end}"
        return replace(answer, headers=headers, body=answer.body[:end])

    return Fault("GET", path, change, times)


def refused(path: str, status: int, code: str, method: str = "GET", times: int = 1, **headers: str) -> Fault:
    body = f"<Error><Code>{code}</Code><Message>as scripted</Message></Error>".encode()
    answer = Answer(status, {"Content-Type": "application/xml"} | headers, body)
    return Fault(method, path, lambda _: answer, times)


def missing(path: str, method: str = "GET", times: int = 1) -> Fault:
    return refused(path, 404, "NoSuchKey", method, times)


def empty_list(prefix: str, times: int = 1) -> Fault:
    body = b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
    return Fault("GET", f"prefix={prefix}", lambda answer: replace(answer, status=200, body=body), times)


def reset_in_error(path: str, method: str = "GET", times: int = 1) -> Fault:
    """A 503 whose body ends with a reset connection."""
    body = b"<Error><Code>SlowDown</Code>" + b" " * 4000
    return Fault(method, path, lambda answer: Answer(503, {"Content-Type": "application/xml"}, body, cut=100), times)


@dataclass
class FaultProxy:
    """port: of this proxy. requests: (method, path with query) of all, in order. connections: that were opened."""

    upstream: str
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *faults: Fault) -> None:
        self.faults.extend(faults)

    def count(self, method: str, path: str) -> int:
        return sum(1 for verb, where in self.requests if verb == method and path in where)

    def changed(self, method: str, path: str, answer: Answer) -> Answer:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault.change(answer)
        return answer


def _handler(proxy: FaultProxy) -> type[http.server.BaseHTTPRequestHandler]:
    host = urlsplit(proxy.upstream).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            proxy.connections += 1
            super().setup()

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection(host, timeout=20)
            sent = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body or None, sent)
            response = upstream.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, headers, response.read())
            upstream.close()
            self._send(proxy.changed(self.command, unquote(self.path), answer))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            is_head = self.command == "HEAD"
            length = answer.headers.get("content-length", "0")
            self.send_header("Content-Length", length if is_head else str(len(answer.body)))
            self.end_headers()
            if not is_head:
                self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
            if answer.cut is not None:
                self.wfile.flush()
                time.sleep(0.05)  # a reset would otherwise overtake what was sent
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at this URL, until the block ends."""
    proxy = FaultProxy(upstream)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
