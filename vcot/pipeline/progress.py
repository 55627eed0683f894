"""What is reported of a step whose Job exists: what holds its pods back, which failed, how it ended, and what to do."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from vcot import logging
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.orchestrator import Outcome, Step, in_words
from vcot.pipeline.templates import CONTAINER, QUEUE
from vcot.stage import REPORT_EVERY

FIRST_REPORT = 10.0
"""Seconds after which it is said for the first time of a step that it does not run."""
LONGEST_BACKOFF = 600.0
"""Seconds that a Job pauses at most before it tries again."""
REASONS = 3
"""Failed shards whose reason stands in the last line; the rest are named by number."""
#: Why a container does not start → what to do.
NOT_STARTED: Mapping[str, str] = {
    "ErrImagePull": "is the image's name right, and may this cluster read that registry?",
    "ImagePullBackOff": "is the image's name right, and may this cluster read that registry?",
    "InvalidImageName": "set the image in the overlay's images:",
    "ErrImageNeverPull": "bring the image onto the node, or change imagePullPolicy",
    "CreateContainerConfigError": "make what it names, or apply the overlay again",
    "CreateContainerError": "see the events of the pod",
    "RunContainerError": "see the events of the pod",
}
#: What the API server says of a pod that it does not let in → what that means.
NOT_LET_IN: Mapping[str, str] = {
    "exceeded quota": "the quota of the namespace is too small",
    "violates PodSecurity": "the template breaks the namespace's Pod Security",
    "": "its pods are refused",
}


_shortened = partial(textwrap.shorten, width=400, placeholder="…")


# --- one pod that has ended --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How one pod ended."""

    pod: str
    exit_code: int | None
    """None where its container never came to tell one: put off by the node, moved away before it ran."""
    reason: str
    """The kubelet's word, as OOMKilled or Evicted."""
    index: str | None
    """Which shard it made."""
    summary: Mapping[str, Any]
    """What the stage wrote into its termination message."""
    message: str
    """Its last error line, or the end of its log."""
    memory: str
    """Limit of its memory, as the template writes it."""
    at: str
    disrupted: bool
    """Moved away by the cluster: drained, preempted, its node lost."""

    @classmethod
    def of(cls, pod: Manifest) -> Ended | None:
        """None while it runs, or where the cluster does not know."""
        status = pod.get("status") or {}
        ended = (_main(status.get("containerStatuses")).get("state") or {}).get("terminated")
        if ended is None and status.get("phase") not in ("Failed", "Succeeded"):
            return None
        ended = ended or {}
        text = ended.get("message") or ""
        summary = _as_json(text)  # the stage's own, else the end of its log
        last = "" if summary else (text.strip().splitlines() or [""])[-1].strip()
        last = _shortened(str(_as_json(last).get("event") or last))
        message = summary.get("message") or last or status.get("message")
        conditions = status.get("conditions") or []
        limits = (_main(pod["spec"]["containers"]).get("resources") or {}).get("limits") or {}
        return cls(
            pod=pod["metadata"]["name"],
            exit_code=ended.get("exitCode"),
            reason=status.get("reason") or ended.get("reason") or "",
            index=(pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-completion-index"),
            summary=summary,
            message=" ".join(str(message or "").split()),
            memory=str(limits.get("memory", "")),
            at=ended.get("finishedAt") or "",
            disrupted=any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions),
        )

    def why(self, template: str) -> str:
        """What happened, and what to change; empty where nothing is known.

        Args:
            template: what to call the place where resources are set.
        """
        if self.reason == "OOMKilled":
            killed = f"the kernel killed it for using more memory than its limit{self.memory and ' of '}{self.memory}"
            return f"{killed} (OOMKilled): raise resources.limits.memory of {template}, or let the stage use less"
        if self.reason == "Evicted":
            return f"the node put it off: {self.message or 'no reason was given'}"
        return "the cluster moved it away" if self.disrupted else self.message

    def in_short(self, template: str) -> str:
        """Its exit code and `why`, as the end of a line."""
        why = self.why(template)
        code = f" with exit code {in_words(self.exit_code)}" if self.exit_code is not None else ""
        return f"{code}: {why}" if why else code


# --- pods that do not run ----------------------------------------------------------------------------------


def why_not_running(job: Manifest, pods: Iterable[Manifest], events: Iterable[Manifest]) -> str | None:
    """One line on what holds the Job's pods back; None where nothing is known to.

    Args:
        pods: those that are Pending, or that still stand in the way of such.
        events: warnings about the Job, those pods and Kueue's Workload of the Job, in any order.
    """
    pods, events = list(pods), sorted(events, key=_when)
    if job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get(QUEUE)
        if not queue:
            return "it is suspended, and not by this orchestrator; set spec.suspend to false"
        said = [event["message"] for event in events if event["involvedObject"].get("kind") == "Workload"]
        why = f": {_shortened(said[-1])}" if said else "; `kubectl get workloads` says what it waits for"
        return f"Kueue has not admitted it yet (queue {queue}){why}"
    lines = [line for pod in pods if (line := _why_pending(pod, events))]
    if lines:
        return lines[0] + (f" (and {len(lines) - 1} more pods)" if len(lines) > 1 else "")
    # To the second, as all times of the API are.
    newest = max((pod["metadata"].get("creationTimestamp") or "" for pod in pods), default="")[:19]
    for event in reversed(events):
        if event.get("reason") == "FailedCreate" and _when(event) >= newest:
            message = event["message"]
            meaning = next(meaning for words, meaning in NOT_LET_IN.items() if words in message)
            return f"{meaning}: {_shortened(message)}"
    return None


def _why_pending(pod: Manifest, events: list[Manifest]) -> str | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        node = pod["spec"].get("nodeName", "")
        stopped = f"{name} is still being stopped on {node}, and another one starts only when it is gone"
        return f"{stopped}; if that node is lost for good: kubectl delete node {node}"
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return f"no node takes {name}: {condition.get('message') or condition.get('reason')}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            hint = NOT_STARTED.get(reason, "see the events of the pod")
            message = _shortened(waiting.get("message") or "")
            return f"{name} cannot start, {reason}: {message + '; ' if message else ''}{hint}"
    for event in reversed(events):  # a volume that cannot be mounted, a sandbox that cannot be made
        # Here it has its node, so that none was found for it is past.
        if event["involvedObject"].get("name") == name and event.get("reason") != "FailedScheduling":
            return f"{name} cannot start, {event.get('reason')}: {_shortened(event.get('message') or '')}"
    return None


def _when(event: Manifest) -> str:
    """Times of the API sort as text."""
    observed = (event.get("series") or {}).get("lastObservedTime")
    made = event["metadata"].get("creationTimestamp")
    return observed or event.get("lastTimestamp") or event.get("eventTime") or made or ""


def _main(containers: Iterable[Manifest] | None) -> Manifest:
    return next((one for one in containers or [] if one["name"] == CONTAINER), {})


def _as_json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# --- a step ------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A step whose Job exists, and what was last seen of it."""

    step: Step
    seen: Manifest
    since: float
    idle_since: float | None = field(init=False)
    """Since when not one of its pods runs."""
    ended_at: float = field(init=False)
    """When a pod of it was last seen to run, or to have ended."""
    next_report: float = field(init=False)
    reported_pods: set[str] = field(default_factory=set)
    reported_shards: int = -1

    def __post_init__(self) -> None:
        self.idle_since = self.ended_at = self.since
        self.next_report = self.since + FIRST_REPORT

    @property
    def kind(self) -> str:
        return str(self.seen["kind"])

    @property
    def name(self) -> str:
        return str(self.seen["metadata"]["name"])

    @property
    def template(self) -> str:
        return f"stage-{self.step.stage}"

    @property
    def status(self) -> Manifest:
        return self.seen.get("status") or {}

    @property
    def ready(self) -> int:
        return sum(one.get("ready") or 0 for one in self.status.get("replicatedJobsStatus") or [self.status])

    @property
    def succeeded_and_failed(self) -> tuple[int, int]:
        """Pods."""
        return self.status.get("succeeded") or 0, self.status.get("failed") or 0

    @property
    def condition(self) -> Manifest | None:
        """The one that says that it is over."""
        over = ("Complete", "Completed", "Failed")
        conditions: list[Manifest] = self.status.get("conditions") or []
        return next((c for c in conditions if c["type"] in over and c["status"] == "True"), None)

    @property
    def pods(self) -> str:
        """The label that its pods have."""
        key = "jobset.sigs.k8s.io/jobset-name" if self.kind == "JobSet" else "batch.kubernetes.io/job-name"
        return f"{key}={self.name}"


class Reporter:
    """Says it, in lines of the log and in the words of an outcome."""

    def __init__(self, cluster: ClusterClient, *, pending_timeout: float, to_go_on: str) -> None:
        """
        Args:
            pending_timeout: seconds that a step may have no running pod before the run fails.
            to_go_on: what to type after a failure, once its cause is gone; a sentence.
        """
        self._cluster, self._pending_timeout, self._to_go_on = cluster, pending_timeout, to_go_on
        self._may_look = True

    def outcome(self, running: Running, condition: Manifest, now: float) -> Outcome:
        """How the step ended whose Job has that condition."""
        start, end = running.status.get("startTime"), running.status.get("completionTime")
        seconds = now - running.since
        if start and end:  # by the cluster's own clock
            seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        shards = running.seen["spec"].get("completions")
        if condition["type"] != "Failed":
            if running.step.part == "shards":
                return Outcome(0, seconds, summary={"shards": shards})
            done = self._ended(running, "Succeeded", limit=1)
            return Outcome(0, seconds, summary=done[0].summary if done else {})
        ended, reason = self._ended(running, "Failed"), condition.get("reason", "")
        bad = running.status.get("failedIndexes") or ""
        of_shards = [one for one in ended if _within(one.index, bad)]
        candidates = of_shards or ended
        # The pod that the condition names, else the last that was not just moved away.
        named = [one for one in candidates if one.pod in (condition.get("message") or "")]
        own = [one for one in candidates if not one.disrupted]
        decisive = next(reversed(named or own or candidates), None)
        if reason == "DeadlineExceeded":
            deadline = running.seen["spec"].get("activeDeadlineSeconds")
            why = f"it took longer than activeDeadlineSeconds of {running.template} allows ({deadline} s)"
        elif bad:
            last = {one.index: one for one in of_shards}  # of each shard, how it ended the last time
            each = [f"shard {index}{one.in_short(running.template)}" for index, one in last.items()]
            more = ["…"] if len(each) > REASONS else []
            why = "; ".join([f"failed shards: {bad} of {shards}", *each[:REASONS], *more])
        elif decisive is None:
            why = f"{reason}: {condition.get('message') or 'no pod of it is left to ask'}"
        else:
            _, count = running.succeeded_and_failed
            why = f"tried {count} times, last: " if reason == "BackoffLimitExceeded" and count > 1 else ""
            why += decisive.why(running.template) or "it left no message"
        logs = f"`kubectl -n {self._cluster.namespace} logs -l {running.pods}` has its lines"
        return Outcome(decisive.exit_code if decisive else None, seconds, said=f"{why}; {logs}. {self._to_go_on}")

    def waiting(self, running: Running, now: float) -> str | None:
        """Every 30 s: what is done of the shards, or what holds the pods back.

        Returns:
            Where nothing has run for longer than the pending timeout: for how long, and why.
        """
        if running.ready:
            running.idle_since = None
        elif running.idle_since is None:
            running.idle_since = now
        if now < running.next_report:
            return None
        running.next_report = now + REPORT_EVERY
        if running.idle_since is not None:
            return self._report_idle(running, running.idle_since, now)
        should_run, spec = 1, running.seen["spec"]
        if running.step.part == "shards":
            (done, _), total = running.succeeded_and_failed, int(spec["completions"])
            should_run = min(int(spec["parallelism"]), total - done)
            if done != running.reported_shards:
                running.reported_shards = done
                logging.get().info(f"{running.step.name}: {done} of {total} shards are done", running=running.ready)
        if running.ready < should_run and (why := self._why_not_running(running, self._pending(running))):
            some = f"{running.ready} of {should_run} pods run"
            logging.get().warning(f"{running.step.name}: {some}, the others wait: {why}")
        return None

    def _report_idle(self, running: Running, idle_since: float, now: float) -> str | None:
        name, pods, waited = running.step.name, self._pending(running), now - idle_since
        why = self._why_not_running(running, pods)
        pauses = not why and not pods and any(running.succeeded_and_failed)
        if pauses and now - running.ended_at <= LONGEST_BACKOFF:
            running.idle_since = now
            logging.get().info(f"{name}: the Job pauses before it tries again")
        elif waited >= self._pending_timeout:
            limit = f"longer than PENDING_TIMEOUT ({self._pending_timeout:g} s)"
            return f"{name} has waited {waited / 60:.0f} min for a pod to run, {limit}: {why or 'no reason is known'}"
        elif why:
            logging.get().warning(f"{name} waits: {why}", seconds=round(waited))
        else:
            logging.get().info(f"{name} is being started", seconds=round(waited))
        return None

    def started(self, running: Running) -> None:
        for pod in self._list("Pod", labels=running.pods, fields="status.phase=Running", limit=1):
            where = {"pod": pod["metadata"]["name"], "node": pod["spec"].get("nodeName")}
            logging.get().info(f"{running.step.name} runs", **where)

    def failed_pods(self, running: Running) -> None:
        """A line for each pod that has failed since the last time; the Job makes up for it by itself."""
        for ended in self._ended(running, "Failed", limit=200):
            if ended.pod not in running.reported_pods:
                running.reported_pods.add(ended.pod)
                shard = f", shard {ended.index}" if ended.index and running.step.part == "shards" else ""
                how = f"pod {ended.pod}{shard} ended{ended.in_short(running.template)}"
                logging.get().warning(f"{running.step.name}: {how}; the Job decides what follows")

    # --- what the cluster knows -----------------------------------------------------------------------

    def _ended(self, running: Running, phase: str, limit: int | None = None) -> list[Ended]:
        """Of pods that are over, the earliest first."""
        found = self._list("Pod", labels=running.pods, fields=f"status.phase={phase}", limit=limit)
        return sorted((ended for pod in found if (ended := Ended.of(pod)) is not None), key=lambda ended: ended.at)

    def _pending(self, running: Running) -> list[Manifest]:
        """Pods that do not run yet, else those that are being stopped and have to go first."""
        pods = list(self._list("Pod", labels=running.pods, fields="status.phase=Pending", limit=20))
        if not pods and running.status.get("terminating"):
            there = self._list("Pod", labels=running.pods, fields="status.phase=Running")
            pods = [pod for pod in there if pod["metadata"].get("deletionTimestamp")]
        return pods

    def _why_not_running(self, running: Running, pods: Sequence[Manifest]) -> str | None:
        names = [running.name, *(pod["metadata"]["name"] for pod in pods[:1])]
        if running.kind == "JobSet":
            names.append(f"{running.name}-node-0")
        selectors = [f"involvedObject.name={name},type=Warning" for name in names]
        events = [event for fields in selectors for event in self._list("Event", fields=fields, limit=50)]
        if running.seen["spec"].get("suspend"):  # Kueue's word on it stands at a Workload that is named after the Job
            named = re.compile(rf"{running.kind.lower()}-{re.escape(running.name)}-[^-]*")
            of_kueue = self._list("Event", fields="involvedObject.kind=Workload,reason=Pending")
            events += [event for event in of_kueue if named.fullmatch(event["involvedObject"]["name"])]
        return why_not_running(running.seen, pods, events)

    def _list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        """For reports only: where listing is not allowed, that is said once, and the run goes on."""
        try:
            yield from self._cluster.list(kind, labels=labels, fields=fields, limit=limit)
        except Refused as error:
            if self._may_look:
                self._may_look = False
                logging.get().warning(f"cannot look at pods and events: {error}; reports will lack them")


def _within(index: str | None, ranges: str) -> bool:
    """Is 4 one of 1,3-5?"""
    bounds = [part.partition("-") for part in ranges.split(",") if part]
    return index is not None and any(int(first) <= int(index) <= int(last or first) for first, _, last in bounds)
