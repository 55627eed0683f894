"""The cluster as the executor asks it: the dynamic client of the kubernetes package, asked again while that can help.

Objects are plain dicts, as the server wrote them: the package's generated classes would lose every field of a template
that they are too old to know, and ``CoreV1Api`` alone costs 80 MiB of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.dynamic import DynamicClient
from urllib3.exceptions import HTTPError

from vcot import logging
from vcot.errors import SettingsError, TemporaryError
from vcot.pipeline.orchestrator import Clock
from vcot.stage import REPORT_EVERY, Stop

Manifest = dict[str, Any]
"""An object of the API, as it stands in JSON."""

#: Kind → where its objects are. Declared: discovery asks for every API group of the cluster and keeps a cache file.
RESOURCES: Mapping[str, str] = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Event": "/api/v1/namespaces/{}/events",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "JobSet": "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{}/jobsets",
    "Namespace": "/api/v1/namespaces",
    "Node": "/api/v1/nodes",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Workload": "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/workloads",
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


class Refused(SettingsError):
    """The API server says no, and would say it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def connect(
    namespace: str, clock: Clock, stop: Stop, *, away: float = AWAY, patience: float = REFUSED
) -> ClusterClient:
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
    return ClusterClient(configuration, namespace, clock, stop, away, patience)


class ClusterClient:
    """One namespace of a cluster, whose API server may be away for minutes.

    Every method raises:
        Refused: the server says no for good (not allowed, not valid, no such namespace).
        TemporaryError: not one good answer for `away` seconds.
        Interrupted: somebody asked for a stop while the server was away.
    """

    def __init__(
        self, configuration: client.Configuration, namespace: str, clock: Clock, stop: Stop, away: float,
        patience: float,
    ) -> None:  # fmt: skip
        configuration.retries = False  # trying again is done here, where it is told and counted
        api: Any = DynamicClient(client.ApiClient(configuration), discoverer=lambda *_: None)  # type: ignore[no-untyped-call]
        self._request = partial(api.request, serialize=False, _request_timeout=TIMEOUT)
        self.namespace, self._clock, self._stop, self._away, self._patience = namespace, clock, stop, away, patience
        self._away_since: float | None = None
        self._logged_at, self._pause = 0.0, FIRST_PAUSE

    def get(self, kind: str, name: str) -> Manifest | None:
        """The object, or None if there is none of that name."""
        return self._unless(404, partial(self._ask, "get", kind, name))

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        """What was made, or None if the name is taken (perhaps by an earlier try whose answer was lost)."""
        return self._unless(409, partial(self._ask, "post", kind, body=manifest))

    def patch(self, kind: str, name: str, change: Manifest) -> Manifest:
        """The object after the change, a JSON Merge Patch (RFC 7386): the same change twice is the change once."""
        return self._ask("patch", kind, name, body=change, content_type="application/merge-patch+json")

    def delete(self, kind: str, name: str) -> None:
        """Gone, or on its way with what it owns; nothing happens where there is none of that name."""
        self._unless(404, partial(self._ask, "delete", kind, name, propagation_policy="Background"))

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        """The objects that both selectors fit, a page at a time; the first `limit` of them.

        A server that refuses to list (a Role without that verb) is not asked twice: lists are for reports.
        """
        page, left = None, limit
        words: dict[str, Any] = {"label_selector": labels or None, "field_selector": fields or None}
        while True:
            ask = partial(self._ask, "get", kind, **words, limit=limit or PAGE, _continue=page, patience=0)
            if (answer := self._unless(410, ask)) is None:  # too much has changed; what was seen will do for a report
                return
            items = (answer.get("items") or [])[:left]
            yield from items
            left = None if left is None else left - len(items)
            page = (answer.get("metadata") or {}).get("continue")
            if not page or left == 0:
                return

    def version(self) -> tuple[int, int]:
        """Of Kubernetes, as (1, 36)."""
        answer = self._until_answered(partial(self._request, "get", "/version"))
        return int(answer["major"]), int("".join(c for c in answer["minor"] if c.isdigit()))

    def knows(self, group: str) -> bool:
        """Whether the API has this group, as an operator adds it."""
        ask = partial(self._until_answered, partial(self._request, "get", f"/apis/{group}"))
        return self._unless(404, ask) is not None

    # --- how it is asked ----------------------------------------------------------------------------

    def _ask(self, verb: str, kind: str, name: str = "", patience: float | None = None, **words: Any) -> Manifest:
        path = RESOURCES[kind].format(self.namespace) + (f"/{name}" if name else "")
        return self._until_answered(partial(self._request, verb, path, **words), patience)

    def _until_answered(self, ask: Callable[..., Any], patience: float | None = None) -> Manifest:
        """The answer; asked again while that can help, 401 and 403 for `patience` seconds."""
        until = self._clock.now() + (self._patience if patience is None else patience)
        while True:
            try:
                answer: Manifest = json.loads(ask().data)
            except (ApiException, HTTPError, OSError, ValueError) as error:
                self._failed(error, until - self._clock.now())
            else:
                if self._away_since is not None:
                    seconds = self._clock.now() - self._away_since
                    logging.get().info(f"the API server answers again, after {seconds:.0f} s")
                self._away_since, self._pause = None, FIRST_PAUSE
                return answer

    @staticmethod
    def _unless(status: int, ask: Callable[[], Manifest]) -> Manifest | None:
        try:
            return ask()
        except Refused as error:
            if error.status == status:
                return None
            raise

    def _failed(self, error: Exception, patience: float) -> None:
        """Pauses after what may pass by itself, and says so now and then; gives up when it has lasted too long.

        Args:
            patience: seconds for which a 401 or 403 may still pass by itself.

        Raises:
            Refused: it will not pass.
            TemporaryError: it has lasted too long.
        """
        what, wait = (str(error).splitlines() or [type(error).__name__])[0], 0.0
        if isinstance(error, ApiException):
            status = int(error.status or 0)
            try:
                said = dict(json.loads(error.body or "{}"))
            except (ValueError, TypeError):
                said = {}
            # Status 0: the handshake of TLS failed; then only the reason tells.
            reason = str(error.reason or "").splitlines() or [f"HTTP status {status}"]
            what = said.get("message") or (f"HTTP status {status}" if error.body else reason[-1])
            conflict = status == 409 and said.get("reason") != "AlreadyExists"
            if not (status in (0, 429) or status >= 500 or conflict or (status in (401, 403) and patience > 0)):
                raise Refused(status, what) from None
            with contextlib.suppress(ValueError):  # a date, or nonsense
                wait = max(0.0, min(float((error.headers or {}).get("Retry-After") or 0), AWAY))
        now = self._clock.now()
        if self._away_since is None:
            self._away_since, self._logged_at = now, now
            logging.get().warning(f"the API server does not answer as it should: {what}; trying again")
        elif now - self._away_since >= self._away:
            raise TemporaryError(
                f"not one good answer from the API server for {self._away:g} s, last: {what}. Jobs that run go on; "
                "the next orchestrator adopts them"
            )
        elif now - self._logged_at >= REPORT_EVERY:
            self._logged_at = now
            logging.get().warning(f"no good answer from the API server for {now - self._away_since:.0f} s: {what}")
        self._clock.pause(max(wait, self._pause * random.uniform(0.8, 1.2)), self._stop)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
