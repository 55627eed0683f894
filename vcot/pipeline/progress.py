"""What is told of a step whose Job exists: what holds it back, which pods failed, how it ended and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from vcot import logging
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.orchestrator import Outcome
from vcot.pipeline.plan import Step
from vcot.pipeline.pods import Ended, how_it_ended, in_short, why_it_ended, why_not_running
from vcot.stage import REPORT_EVERY

FIRST_REPORT = 10.0
"""Seconds after which a step that does not run is told of, the first time."""
LONGEST_BACKOFF = 600.0
"""Seconds that a Job pauses at most before it tries again."""
TOLD_SHARDS = 3
"""Failed shards whose reason stands in the last line; the rest are named by number."""


@dataclass
class Running:
    """A step whose Job exists, and what was last seen of it."""

    step: Step
    seen: Manifest
    since: float
    version: str | None
    """From which to watch on; None where the Job has to be looked at afresh."""
    looked_at: float = 0.0
    """When the whole of it was last asked for, and not only what had changed."""
    idle_since: float | None = None
    """Since when not one of its pods runs."""
    ended_at: float = 0.0
    """When a pod of it was last seen to run, or to have ended."""
    next_report: float = 0.0
    told_pods: set[str] = field(default_factory=set)
    told_shards: int = -1

    def __post_init__(self) -> None:
        self.idle_since = self.ended_at = self.looked_at = self.since
        self.next_report = self.since + FIRST_REPORT

    @property
    def kind(self) -> str:
        return str(self.seen["kind"])

    @property
    def name(self) -> str:
        return str(self.seen["metadata"]["name"])

    @property
    def status(self) -> Manifest:
        return self.seen.get("status") or {}

    @property
    def ready(self) -> int:
        members = self.status.get("replicatedJobsStatus") or [self.status]
        return sum(member.get("ready") or 0 for member in members)

    @property
    def ended_pods(self) -> tuple[int, int]:
        return self.status.get("succeeded") or 0, self.status.get("failed") or 0

    @property
    def condition(self) -> Manifest | None:
        """The one that says that it is over."""
        over = ("Complete", "Completed", "Failed")
        conditions: list[Manifest] = self.status.get("conditions") or []
        return next((c for c in conditions if c["type"] in over and c["status"] == "True"), None)

    @property
    def pods(self) -> str:
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
        self._cluster, self._pending_timeout = cluster, pending_timeout
        self._to_go_on = to_go_on
        self._may_look = True

    # --- how it ended ---------------------------------------------------------------------------------

    def outcome(self, running: Running, condition: Manifest, now: float) -> Outcome:
        start, end = running.status.get("startTime"), running.status.get("completionTime")
        seconds = now - running.since
        if start and end:  # by the cluster's own clock
            seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        if condition["type"] != "Failed":
            if running.step.part == "shards":
                return Outcome(0, seconds, summary={"shards": running.seen["spec"].get("completions")})
            done = self._ended(running, "Succeeded", limit=1)
            return Outcome(0, seconds, summary=done[0].summary if done else {})
        ended = self._ended(running, "Failed")
        bad = running.status.get("failedIndexes") or ""
        decisive = _decisive([e for e in ended if _within(e.index, bad)] or ended, condition.get("message") or "")
        said = self._why_failed(running, condition, ended, decisive)
        logs = f"`kubectl -n {self._cluster.namespace} logs -l {running.pods}` has its lines"
        return Outcome(decisive.exit_code if decisive else None, seconds, said=f"{said}; {logs}. {self._to_go_on}")

    def _why_failed(self, running: Running, condition: Manifest, ended: Sequence[Ended], decisive: Ended | None) -> str:
        template, reason = f"stage-{running.step.stage}", condition.get("reason", "")
        if reason == "DeadlineExceeded":
            deadline = running.seen["spec"].get("activeDeadlineSeconds")
            return f"it took longer than activeDeadlineSeconds of {template} allows ({deadline} s)"
        if shards := running.status.get("failedIndexes"):
            last = {e.index: e for e in ended}  # of each shard, how it ended the last time
            told = [f"shard {i}{in_short(e, template)}" for i, e in last.items() if _within(i, shards)]
            more = ["…"] if len(told) > TOLD_SHARDS else []
            total = running.seen["spec"].get("completions")
            return "; ".join([f"failed shards: {shards} of {total}", *told[:TOLD_SHARDS], *more])
        if decisive is None:
            return f"{reason}: {condition.get('message') or 'no pod of it is left to ask'}"
        count = running.ended_pods[1]
        tries = f"tried {count} times, last: " if reason == "BackoffLimitExceeded" and count > 1 else ""
        return tries + (why_it_ended(decisive, template) or "it left no message")

    def _ended(self, running: Running, phase: str, limit: int | None = None) -> list[Ended]:
        """Of pods that are over, the earliest first."""
        found = self._list("Pod", labels=running.pods, fields=f"status.phase={phase}", limit=limit)
        return sorted((e for pod in found if (e := how_it_ended(pod)) is not None), key=lambda e: e.at)

    # --- what it waits for ----------------------------------------------------------------------------

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
        if not running.ready:
            return self._tell_waiting(running, now)
        should_run, spec = 1, running.seen["spec"]
        if running.step.part == "shards":
            done, total = running.ended_pods[0], int(spec["completions"])
            should_run = min(int(spec["parallelism"]), total - done)
            if done != running.told_shards:
                running.told_shards = done
                logging.get().info(f"{running.step.name}: {done} of {total} shards are done", running=running.ready)
        if running.ready < should_run and (why := self._why_not_running(running, self._pending(running))):
            logging.get().warning(
                f"{running.step.name}: {running.ready} of {should_run} pods run, the others wait: {why}"
            )
        return None

    def _tell_waiting(self, running: Running, now: float) -> str | None:
        pods = self._pending(running)
        why = self._why_not_running(running, pods)
        pauses = not why and not pods and any(running.ended_pods)
        if pauses and now - running.ended_at <= LONGEST_BACKOFF:
            running.idle_since = now
            logging.get().info(f"{running.step.name}: the Job pauses before it tries again")
            return None
        waited = now - (running.idle_since if running.idle_since is not None else now)
        if waited >= self._pending_timeout:
            return (
                f"{running.step.name} has waited {waited / 60:.0f} min for a pod to run, longer than PENDING_TIMEOUT "
                f"({self._pending_timeout:g} s): {why or 'no reason is known'}"
            )
        if why:
            logging.get().warning(f"{running.step.name} waits: {why}", seconds=round(waited))
        else:
            logging.get().info(f"{running.step.name} is being started", seconds=round(waited))
        return None

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
        events = [
            event
            for name in names
            for event in self._list("Event", fields=f"involvedObject.name={name},type=Warning", limit=50)
        ]
        if running.seen["spec"].get("suspend"):  # Kueue's word on it stands at a Workload that is named after the Job
            before = f"{running.kind.lower()}-{running.name}-"
            for event in self._list("Event", fields="involvedObject.kind=Workload,reason=Pending"):
                name = event["involvedObject"]["name"]
                if name.startswith(before) and "-" not in name.removeprefix(before):
                    events.append(event)
        return why_not_running(running.seen, pods, events)

    def runs(self, running: Running) -> None:
        for pod in self._list("Pod", labels=running.pods, fields="status.phase=Running", limit=1):
            where = {"pod": pod["metadata"]["name"], "node": pod["spec"].get("nodeName")}
            logging.get().info(f"{running.step.name} runs", **where)

    def failed_pods(self, running: Running) -> None:
        """A line for each pod that has failed since the last time; the Job makes up for it by itself."""
        for ended in self._ended(running, "Failed", limit=200):
            if ended.pod not in running.told_pods:
                running.told_pods.add(ended.pod)
                shard = f", shard {ended.index}" if ended.index and running.step.part == "shards" else ""
                logging.get().warning(
                    f"{running.step.name}: pod {ended.pod}{shard} ended"
                    f"{in_short(ended, f'stage-{running.step.stage}')}; the Job decides what follows"
                )

    def _list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        """For reports only: where listing is not allowed, that is said once, and the run goes on."""
        try:
            yield from self._cluster.list(kind, labels=labels, fields=fields, limit=limit)
        except Refused as error:
            if self._may_look:
                self._may_look = False
                logging.get().warning(f"cannot look at pods and events: {error}; reports will lack them")


def _decisive(ended: Sequence[Ended], message: str) -> Ended | None:
    """The pod that the Job's condition names, else the last that was not just moved away."""
    named = [e for e in ended if e.pod in message]
    own = [e for e in ended if not e.disrupted]
    return next(reversed(named or own or list(ended)), None)


def _within(index: str | None, ranges: str) -> bool:
    """Is 4 one of 1,3-5?"""
    if index is None or not ranges:
        return False
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if int(first) <= int(index) <= int(last or first):
            return True
    return False
