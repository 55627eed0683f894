"""A stub of an API server: HTTP in front of the cluster in memory. It proves our client, not Kubernetes.

with ApiServer(cluster) as server:
    server.faults.append(Fault("GET", "/jobs", status=429, headers={"Retry-After": "1"}))
    server.kubeconfig(path)       what KUBECONFIG is to name
    server.stop(); server.start() away, and back at the same address
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.cluster import MemoryCluster
from vcot.pipeline.client import RESOURCES, Manifest, Refused

PLURALS = {path.rpartition("/")[2]: kind for kind, path in RESOURCES.items()}


@dataclass
class Fault:
    """What the next request of that kind gets instead of its answer (or, `late`, after it took effect)."""

    method: str
    ends: str
    """How its path ends."""
    status: int = 0
    """0: the connection is reset."""
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    late: bool = False
    times: int = 1


class ApiServer(ThreadingHTTPServer):
    """Its cluster's clock is that of the client, who asks one thing after another: nothing happens during an answer."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, cluster: MemoryCluster) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.cluster = cluster
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.socket = socket.socket()
        self.server_bind()
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Away: the port is closed, and every open connection is reset."""
        self.shutdown()
        self.server_close()
        while self._open:
            reset(self._open.pop())

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that are cut are what this is for."""

    def kubeconfig(self, path: Path) -> Path:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "users": [{"name": "me", "user": {"token": "a-token"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and path.endswith(fault.ends):
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None


def reset(connection: socket.socket) -> None:
    """Ends it with RST instead of a polite goodbye.

    It is shut down first: whoever still holds the socket, as its handler does, the client is told now, and waits for no
    answer that nobody will send.
    """
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: ApiServer

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.asked.append(parts.path)
        fault = self.server.fault_for(self.command, parts.path)
        if self.headers["Authorization"] != "Bearer a-token":
            return self._refuse(401, "Unauthorized", "Unauthorized")
        if fault is not None and not fault.late:
            return self._fail(fault)
        try:
            answer = self._answer(parts.path, query, json.loads(body or "null"))
        except Refused as error:
            return self._refuse(error.status, "AlreadyExists" if error.status == 409 else "", str(error))
        return self._reply(200, answer) if fault is None else self._fail(fault)

    do_DELETE = do_POST = do_PATCH = do_GET

    def _fail(self, fault: Fault) -> None:
        if fault.status == 0:
            self.close_connection = True
            reset(self.connection)
        else:
            self._refuse(fault.status, fault.reason, "made up by the test", fault.headers)

    def _answer(self, path: str, query: Mapping[str, str], body: Manifest | None) -> Manifest:
        """
        Raises:
            Refused: with the status of the answer.
        """
        cluster, (*_, before, last) = self.server.cluster, path.split("/")
        if path == "/version":
            return {"major": str(cluster.kubernetes[0]), "minor": f"{cluster.kubernetes[1]}+"}
        if self.command == "PATCH":
            if self.headers["Content-Type"] != "application/merge-patch+json":
                raise Refused(415, f"no patch: {self.headers['Content-Type']}")
            return cluster.patch(PLURALS[before], last, body or {})
        if self.command == "POST":
            if (made := cluster.create(PLURALS[last], body or {})) is None:
                raise Refused(409, f"{PLURALS[last]} already exists")
            return made
        if self.command == "DELETE":
            cluster.delete(PLURALS[before], last)
            return {"kind": "Status", "status": "Success"}
        if before in PLURALS or before == "apis":  # one object, or the group of an operator
            if (there := cluster.there(PLURALS.get(before, "APIGroup"), last)) is None:
                raise Refused(404, f"{before} {last!r} not found")
            return there
        kind = PLURALS[last]
        found = cluster.select(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        begin, size = int(query.get("continue", "0")), int(query.get("limit", "500"))
        more = str(begin + size) if begin + size < len(found) else ""
        items = [{name: value for name, value in one.items() if name != "kind"} for one in found[begin : begin + size]]
        return {"kind": f"{kind}List", "metadata": {"continue": more}, "items": items}

    def _refuse(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        answer = {"kind": "Status", "status": "Failure", "code": status, "reason": reason, "message": message}
        self._reply(status, answer, headers)

    def _reply(self, status: int, answer: Manifest, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
