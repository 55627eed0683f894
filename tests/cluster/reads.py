"""Reads of the API server without a kubectl for each: a test that waits asks often, on cores that the pods need."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from tests.cluster.node import die_with_parent

Manifest = dict[str, Any]
T = TypeVar("T")

API_OF = {
    "jobs": "apis/batch/v1",
    "cronjobs": "apis/batch/v1",
    "pods": "api/v1",
    "configmaps": "api/v1",
    "serviceaccounts": "api/v1",
}
AWAY_AT_MOST = 120.0


class Lost:
    """Seconds for which the API server did not answer: a test beside this one stops it. Waits are longer by as much."""

    seconds = 0.0


def while_away(ask: Callable[[], T], away: Callable[[T], bool]) -> T:
    """The answer of `ask`, which is asked again while the API server is away, for AWAY_AT_MOST seconds."""
    begun = time.monotonic()
    while away(answer := ask()) and time.monotonic() - begun <= AWAY_AT_MOST:
        time.sleep(0.5)
        Lost.seconds += 0.5
    return answer


@dataclass(frozen=True)
class Reads:
    """What `kubectl proxy` passes on."""

    port: int

    def get(self, namespace: str, kind: str, name: str = "", selector: str = "") -> Manifest | None:
        """One object, or the list of them all; None if there is none of that name."""
        path = f"/{API_OF[kind]}/namespaces/{namespace}/{kind}/{name}".rstrip("/")
        if selector:
            path += "?" + urlencode({"labelSelector": selector})
        status, body = while_away(lambda: self._answer(path), lambda answer: answer[0] >= 500)
        if status == 404 and name:
            return None
        assert status == 200, f"GET {path}: {status} {body.decode(errors='replace')}"
        found: Manifest = json.loads(body)
        return found

    def _answer(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:  # cut off while the server was stopped
            return 503, str(error).encode()
        finally:
            connection.close()


@contextmanager
def reads(kubectl: Sequence[str]) -> Iterator[Reads]:
    """With a proxy of this process's own; it has the rights of that kubectl."""
    command = [*kubectl, "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent()) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()  # Starting to serve on 127.0.0.1:43210
            assert ":" in said, f"kubectl proxy did not start: {said!r}"
            yield Reads(int(said.rpartition(":")[2]))
        finally:
            process.kill()
