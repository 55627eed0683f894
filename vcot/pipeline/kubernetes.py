"""The one place that speaks to a cluster's API server; objects are plain dicts, as the server wrote them.

Of the Kubernetes client only the connection is used: certificates, KUBECONFIG, tokens that are renewed. Its
generated classes would cost the conductor 80 MiB (``CoreV1Api`` with its models 137 MiB of resident memory,
``ApiClient`` alone 56), and would lose every field of a template that they are too old to know.

An API server may be away for minutes: what can pass by itself is tried again, with a pause that grows.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from vcot import log
from vcot.errors import SettingsError, TemporaryError
from vcot.pipeline.conductor import Clock, sleep
from vcot.pipeline.port import Change, Expired, Manifest, Refused
from vcot.stage import REPORT_EVERY, Stop

KINDS: Mapping[str, str] = {
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "CronJob": "/apis/batch/v1/namespaces/{namespace}/cronjobs",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "JobSet": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{namespace}/jobsets",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Workload": "/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads",
}

TIMEOUT = (5.0, 10.0)
"""Seconds to connect, and to wait for an answer: without them a dead connection hangs for ever."""
AWAY = 300.0
"""Seconds without one good answer after which this process gives up (and its Job starts another)."""
REFUSED = 30.0
"""Seconds that 401 and 403 are tried again: an API server that has just started does not know all rules yet."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
PAGE = 100
"""Objects in one answer to `list`, so that ten thousand pods do not have to fit into memory."""


class _Trouble(Exception):
    """What may pass by itself; `wait` is what the server asked for (Retry-After), in seconds."""

    def __init__(self, what: str, status: int = 0, wait: float = 0.0) -> None:
        super().__init__(what)
        self.status, self.wait = status, wait


def connect(namespace: str, clock: Clock, stop: Stop, away: float = AWAY) -> Api:
    """The cluster that ``KUBECONFIG`` names, else the one that this pod runs in.

    Raises:
        SettingsError: there is neither.
    """
    configuration, named = client.Configuration(), os.environ.get("KUBECONFIG")
    try:
        if named:
            config.load_kube_config(named, client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise SettingsError(
            f"no cluster to speak to: {f'KUBECONFIG={named}: ' if named else ''}{str(error).rstrip('.')}. "
            "Set KUBECONFIG to a file, or run this in a pod whose ServiceAccount "
            "has its token (automountServiceAccountToken: true)"
        ) from None
    return Api(configuration, namespace, clock, stop, away)


class Api:
    """The verbs that a conductor needs.

    All of them raise:
        Refused: the server says no for good (not allowed, not valid, no such namespace).
        TemporaryError: not one good answer for `AWAY` seconds.
        Interrupted: somebody asked for a stop while the server was away.
    """

    def __init__(
        self, configuration: client.Configuration, namespace: str, clock: Clock, stop: Stop, away: float = AWAY
    ) -> None:
        configuration.retries = False  # trying again is done here, where it is told and counted
        self._client = client.ApiClient(configuration)
        self.namespace, self._clock, self._stop, self._away = namespace, clock, stop, away
        self._away_since: float | None = None
        self._told_at = 0.0
        self._pause = FIRST_PAUSE

    # --- what one asks ------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Manifest | None:
        """The object, or None if there is none of that name."""
        try:
            return self.request("GET", f"{self._path(kind)}/{name}")
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        """What was made, or None if the name is taken (perhaps by an earlier try whose answer was lost)."""
        try:
            return self.request("POST", self._path(kind), body=manifest)
        except Refused as error:
            if error.status == 409:
                return None
            raise

    def patch(self, kind: str, name: str, change: Manifest) -> Manifest:
        """The object after the change, a JSON Merge Patch: the same change twice is the change once."""
        return self.request("PATCH", f"{self._path(kind)}/{name}", body=change)

    def delete(self, kind: str, name: str) -> None:
        """Gone, or on its way; nothing happens where there is none of that name."""
        try:
            self.request("DELETE", f"{self._path(kind)}/{name}")
        except Refused as error:
            if error.status != 404:
                raise

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        """The objects that both selectors fit, a page at a time; the first `limit` of them.

        A server that refuses to list (a Role without that verb) is not asked twice: lists are for reports.
        """
        page, seen = "", 0
        while True:
            query = [("labelSelector", labels), ("fieldSelector", fields), ("limit", str(limit or PAGE))]
            try:
                answer = self.request("GET", self._path(kind), [*query, ("continue", page)], patience=0)
            except Expired:  # the rest has changed too much; what was seen is enough for a report
                return
            for item in answer.get("items") or []:
                yield item
                seen += 1
                if seen == limit:
                    return
            page = (answer.get("metadata") or {}).get("continue") or ""
            if not page:
                return

    def find(self, kind: str, name: str) -> tuple[Manifest | None, str]:
        """The object, or None, and the version of the whole from which to watch on."""
        answer = self.request("GET", self._path(kind), [("fieldSelector", f"metadata.name={name}")])
        items = answer.get("items") or []
        return (items[0] if items else None), str(answer["metadata"]["resourceVersion"])

    def watch(self, kind: str, name: str, version: str, seconds: int) -> Iterator[Change]:
        """What happens to one object after that version, for so long.

        Ends early where the server or the network ends it; whoever wants more asks again.

        Raises:
            Expired: that version is too old.
        """
        begun = self._clock.now()
        query = [
            ("watch", "1"), ("fieldSelector", f"metadata.name={name}"), ("resourceVersion", version),
            ("timeoutSeconds", str(seconds)), ("allowWatchBookmarks", "true"),
        ]  # fmt: skip
        try:
            with self._send("GET", self._path(kind), query, None, (TIMEOUT[0], seconds + TIMEOUT[1])) as lines:
                _raise_for(lines)
                self._well()
                for line in lines:
                    yield _change(line)
            if self._clock.now() - begun < 1:  # ended at once, with nothing wrong: do not ask in a circle
                sleep(1, self._clock, self._stop)
        except _Trouble as trouble:
            self._bear(trouble)
        except (HTTPError, OSError) as error:
            self._bear(_Trouble(_first_line(error)))

    def version(self) -> tuple[int, int]:
        """Of Kubernetes, as (1, 36)."""
        answer = self.request("GET", "/version")
        return int(answer["major"]), int("".join(c for c in answer["minor"] if c.isdigit()))

    def request(
        self, method: str, path: str, query: Sequence[tuple[str, str]] = (), body: Manifest | None = None,
        *, patience: float = REFUSED,
    ) -> Manifest:  # fmt: skip
        """One question and its answer, asked again while that can help.

        Args:
            path: from the root, as ``/version``; empty values of `query` are left out.
            patience: seconds that 401 and 403 are tried again.
        """
        begun = self._clock.now()
        while True:
            try:
                answer = self._once(method, path, query, body)
            except _Trouble as trouble:
                if trouble.status in (401, 403) and self._clock.now() - begun >= patience:
                    raise Refused(trouble.status, str(trouble)) from None
                self._bear(trouble)
            else:
                self._well()
                return answer

    # --- how it is asked ----------------------------------------------------------------------------

    def _path(self, kind: str) -> str:
        return KINDS[kind].format(namespace=self.namespace)

    def _once(self, method: str, path: str, query: Sequence[tuple[str, str]], body: Manifest | None) -> Manifest:
        try:
            with self._send(method, path, query, body, TIMEOUT) as answer:
                _raise_for(answer)
                found: Manifest = json.loads(answer.read())
                return found
        except (HTTPError, OSError) as error:
            raise _Trouble(_first_line(error)) from None
        except ValueError as error:
            raise _Trouble(f"an answer that is no JSON: {error}") from None

    def _send(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: Manifest | None,
        timeout: tuple[float, float],
    ) -> Any:  # fmt: skip
        """The raw response; its status is not looked at yet."""
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content}
        asked = self._client.param_serialize(
            method, path, query_params=[(n, v) for n, v in query if v], header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            return self._client.call_api(*asked, _request_timeout=timeout).response
        except ApiException as error:  # status 0: the handshake of TLS failed
            raise _Trouble(str(error.reason).splitlines()[-1]) from None

    def _bear(self, trouble: _Trouble) -> None:
        """Pauses, and says so now and then; gives up when it has lasted too long."""
        now = self._clock.now()
        if self._away_since is None:
            self._away_since, self._told_at = now, now
            log.get().warning(f"the API server does not answer as it should: {trouble}; trying again")
        elif now - self._away_since >= self._away:
            raise TemporaryError(
                f"not one good answer from the API server for {self._away:g} s, last: {trouble}. Jobs that run go on; "
                "the next conductor adopts them"
            )
        elif now - self._told_at >= REPORT_EVERY:
            self._told_at = now
            log.get().warning(f"no good answer from the API server for {now - self._away_since:.0f} s: {trouble}")
        sleep(max(trouble.wait, self._pause * random.uniform(0.8, 1.2)), self._clock, self._stop)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _well(self) -> None:
        if self._away_since is not None:
            log.get().info(f"the API server answers again, after {self._clock.now() - self._away_since:.0f} s")
        self._away_since, self._pause = None, FIRST_PAUSE


def _raise_for(response: Any) -> None:
    """Tells what may pass by itself from what does not."""
    if 200 <= response.status < 300:
        return
    status = _json_or_nothing(response.read())
    message = status.get("message") or f"HTTP status {response.status}"
    if response.status == 410:
        raise Expired
    taken = status.get("reason") == "AlreadyExists"
    if response.status in (401, 403, 429) or response.status >= 500 or (response.status == 409 and not taken):
        raise _Trouble(message, response.status, _seconds(response.headers.get("Retry-After")))
    raise Refused(response.status, message)


def _change(line: bytes) -> Change:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise _Trouble(f"a watch that tells no JSON: {error}") from None
    if event["type"] == "ERROR":
        if event["object"].get("code") == 410:
            raise Expired
        raise _Trouble(f"the watch ended: {event['object'].get('message')}")
    return Change(event["type"], event["object"])


def _json_or_nothing(data: bytes) -> Manifest:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(header: str | None) -> float:
    """Of a Retry-After; no longer than `AWAY`, and none where it is a date or nonsense."""
    try:
        return max(0.0, min(float(header or 0), AWAY))
    except ValueError:
        return 0.0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
