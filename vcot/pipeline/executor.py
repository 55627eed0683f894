"""Runs steps as Jobs on a cluster: creates or adopts, looks, tells, and never holds a GPU while waiting.

Names are the lock: a Job is called ``<run>-<step>``, the API server makes no second one of that name, and so an
orchestrator may be killed at any line and started again. It deletes no Job, and changes one alone: that which still
waits when the run has failed is suspended, so that it does not take a GPU when nobody looks any more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from vcot import logging
from vcot.errors import SettingsError, StageFailed, UsageError, VcotError
from vcot.pipeline import templates
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.local import validate
from vcot.pipeline.orchestrator import RETRY, Clock, Outcome, Plan, Step
from vcot.pipeline.progress import Reporter, Running
from vcot.pipeline.run_state import RunState, RunStorage
from vcot.pipeline.templates import QUEUE, FrozenPlan, Owner, Validate, complete
from vcot.stage import Stop

LOOK_EVERY = 1.0
"""Seconds between two looks at a Job. A watch would tell sooner, and has ways to fail that a look has not."""
CLEANUP = 120.0
"""Seconds that the cluster has to take away what an earlier pipeline Job of the same name owned."""
GIVEN_UP = "vcot/given-up"
"""Annotation of a Job that was suspended because the run has ended while it waited: why it has."""
LONGEST_RUN_ID = 30
"""Names of pods are this, the step and what the cluster adds, 63 characters in all."""


def must_name_jobs(run_id: str) -> None:
    """Raises UsageError where the run id cannot be part of names on a cluster."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", run_id) or len(run_id) > LONGEST_RUN_ID:
        raise UsageError(
            f"RUN_ID {run_id}: it has to be lower-case letters, digits and dashes, {LONGEST_RUN_ID} at most and no "
            f"dash at its ends, because Jobs are named after it; this one has {len(run_id)} characters"
        )


class RunIdentity(NamedTuple):
    """Who this orchestrator is on the cluster: the run, the namespace and the pipeline Job that its pod belongs to."""

    run_id: str
    namespace: str
    owner: Owner

    @classmethod
    def of(cls, environment: Mapping[str, str], run_id: str | None = None) -> RunIdentity:
        """From the variables that the pipeline Job takes from its pod (downward API).

        Args:
            run_id: counts where the Job is not called ``pipeline-<RUN_ID>``.

        Raises:
            SettingsError: one of them is missing.
            UsageError: the run id cannot be part of names on a cluster.
        """
        missing = [name for name in ("JOB_NAME", "JOB_UID", "POD_NAMESPACE") if not environment.get(name)]
        if missing:
            raise SettingsError(
                f"{' and '.join(missing)}: not set. --where kubernetes is for the Job pipeline-<RUN_ID> of k8s/base, "
                "which sets them; from outside the cluster use kubectl apply -k k8s/overlays/…"
            )
        job = environment["JOB_NAME"]
        # The Job's own name cannot change under a run, as a ConfigMap can.
        run_id = job.removeprefix("pipeline-") if job.startswith("pipeline-") else run_id or job
        must_name_jobs(run_id)
        return cls(run_id, environment["POD_NAMESPACE"], Owner(job, environment["JOB_UID"]))


class KubernetesExecutor:
    """Each step is the Job that the frozen plan holds for it."""

    def __init__(
        self, cluster: ClusterClient, storage: RunStorage, owner: Owner, *, clock: Clock, stop: Stop,
        pending_timeout: float, validate: Validate = validate,
    ) -> None:  # fmt: skip
        """
        Args:
            storage: what storage knows of the run.
            owner: the pipeline Job, which takes all that is created here with it.
            pending_timeout: seconds that a step may have no running pod before the run fails.
        """
        self._cluster, self._storage, self._owner, self._validate = cluster, storage, owner, validate
        self._clock, self._now = clock, clock.now
        self._sleep: Callable[[float], None] = lambda seconds: clock.pause(seconds, stop)
        delete = f"kubectl -n {cluster.namespace} delete job {owner.name}"
        self._begin_again = f"`{delete}`, then apply again; finished work is kept"
        self._to_go_on = f"When that is mended: {self._begin_again}"
        self._report = Reporter(cluster, pending_timeout=pending_timeout, to_go_on=self._to_go_on)
        self._frozen: FrozenPlan | None = None
        self._state: RunState | None = None
        self._running: dict[str, Running] = {}
        self._whole: dict[str, Outcome] = {}
        """Steps that storage shows to be done, so that no Job is made for them."""

    @contextlib.contextmanager
    def run(self, plan: Plan) -> Iterator[Plan]:
        """From `freeze` to the end, whatever that is: it is written down where the pods do not take it with them, and
        no Job is left waiting that nobody will look at again."""
        try:
            yield self.freeze(plan)
        except Exception as error:
            if getattr(error, "exit_code", VcotError.exit_code) not in RETRY:  # the pipeline Job starts no other
                for running in self._running.values():
                    if running.condition is None and not running.ready:
                        logging.get().warning(self._suspended(running, str(error), VcotError))
            self._end(plan, error)
            raise
        self._end(plan, None)

    def _end(self, plan: Plan, failure: Exception | None) -> None:
        try:
            state = self._state or RunState(self._cluster, self._storage, self._owner, plan, refused=True)
        except VcotError as no_answer:
            logging.get().warning(f"why the run was refused is written down nowhere: {no_answer}")
        else:
            state.end(failure)

    # --- before the first step ----------------------------------------------------------------------

    def freeze(self, plan: Plan) -> Plan:
        """The plan that this run goes by: the one that it was begun with, else this one, validated and written down.

        Raises:
            SettingsError: a template or its settings are wrong, or the cluster is too old; nothing was created.
            UsageError: the run id was used before, with another plan; or another apply has replaced the templates
                before this run had begun.
        """
        if (there := self._cluster.get("ConfigMap", f"{plan.run_id}-plan")) is not None and self._owner.owns(there):
            self._frozen = frozen = FrozenPlan.read(there["data"]["plan.json"])
            logging.get().info(f"going on with the plan that this run was begun with, ConfigMap {plan.run_id}-plan")
            try:
                now = templates.freeze(plan, templates.templates_of(self._cluster.get, self._cluster.namespace, plan))
            except SettingsError as error:
                logging.get().warning(f"this run goes on, but no other could start: {error}")
            else:
                changed = {s.stage for s in frozen.plan.steps if now.jobs.get(s.name) != frozen.jobs[s.name]}
                if changed:
                    which = f"templates have changed since this run began ({', '.join(sorted(changed))})"
                    logging.get().warning(f"{which}; they will count for another RUN_ID, this one keeps its own")
        else:
            self._frozen = self._checked(plan, as_applied=True)
            self._acquire(self._frozen.config_map(self._owner))
            templates.remove_old_settings(self._cluster, self._sleep)
        self._state = RunState(self._cluster, self._storage, self._owner, self._frozen.plan)
        return self._frozen.plan

    def check(self, plan: Plan) -> None:
        """Renders and validates everything, creates nothing; a frozen plan was validated before."""
        if self._frozen is None or plan is not self._frozen.plan:
            self._checked(plan)

    def _checked(self, plan: Plan, *, as_applied: bool = False) -> FrozenPlan:
        templates.must_be_new_enough(self._cluster)
        there = templates.templates_of(self._cluster.get, self._cluster.namespace, plan)
        if as_applied:
            templates.must_be_as_applied(self._cluster, self._owner.name, there)
        return templates.frozen_where_valid(self._cluster.get, self._cluster.namespace, plan, there, self._validate)

    # --- one step -----------------------------------------------------------------------------------

    def start(self, step: Step) -> None:
        assert self._frozen is not None
        assert self._state is not None
        job = self._frozen.jobs[step.name]
        self._state.began(step, job["metadata"]["name"])
        # Only stages that may hold a GPU are asked whether they are whole; the others find it out cheaply in their Job.
        if step.part == "all" and self._cluster.get(job["kind"], job["metadata"]["name"]) is None:
            variables, _ = templates.variables_of(self._cluster.get, self._cluster.namespace, step.stage, job)
            if (outcome := self._storage.look(step, variables)) is not None:
                logging.get().info(f"{step.name}: whole already, no Job is made for it")
                self._whole[step.name] = replace(outcome, said=f"{outcome.said}. {self._to_go_on}")
                return
        shards = self._storage.shards(step) if step.part == "shards" else None
        job, created = self._acquire(complete(job, self._owner, self._frozen.digest, shards))
        if job["spec"].get("suspend") and (why := (job["metadata"].get("annotations") or {}).get(GIVEN_UP)):
            raise StageFailed(f"{why}. {job['kind']} {job['metadata']['name']} is suspended. {self._to_go_on}")
        self._running[step.name] = running = Running(step, job, self._now())
        became = "created" if created else "adopted, it is there already"
        logging.get().info(f"{step.name}: {became}", **{running.kind: running.name})

    def poll(self, step: Step) -> Outcome | None:
        assert self._state is not None
        if (outcome := self._whole.get(step.name)) is None:
            running = self._running[step.name]
            if not running.condition:
                self._look(running)
            now = self._now()
            if running.condition:
                outcome = self._report.outcome(running, running.condition, now)
            elif (why := self._report.waiting(running, now)) is not None:
                del self._running[step.name]
                raise StageFailed(f"{why}. {self._suspended(running, why)}. {self._to_go_on}")
        if outcome is not None:
            self._state.ended(step, outcome)
        else:
            self._clock.sleep(LOOK_EVERY)
        return outcome

    def leave(self, step: Step) -> str:
        running = self._running[step.name]
        return f"{running.kind} {running.name} goes on, and the next orchestrator adopts it"

    def _suspended(self, running: Running, why: str, tolerated: type[VcotError] = Refused) -> str:
        """Takes it back from the cluster, and from Kueue, which would start a suspended Job that waits for its turn.

        Args:
            tolerated: of these errors only the returned words tell; they must not hide why the run has ended.
        """
        change = {"metadata": {"annotations": {GIVEN_UP: why}}, "spec": {"suspend": True}}
        try:
            self._cluster.patch(running.kind, running.name, change)
            if QUEUE in (running.seen["metadata"].get("labels") or {}):
                mine = f"kueue.x-k8s.io/job-uid={running.seen['metadata']['uid']}"
                for workload in list(self._cluster.list("Workload", labels=mine)):
                    self._cluster.patch("Workload", workload["metadata"]["name"], {"spec": {"active": False}})
        except tolerated as error:
            return f"{running.kind} {running.name} could not be suspended ({error}) and would still run"
        return f"{running.kind} {running.name} is suspended, so that it starts nothing later"

    def _look(self, running: Running) -> None:
        """What has become of the Job; raises StageFailed where it is not there any more."""
        job = self._cluster.get(running.kind, running.name)
        before, was_ready = running.succeeded_and_failed, running.ready
        same = job is not None and job["metadata"]["uid"] == running.seen["metadata"]["uid"]
        if job is not None and same:
            running.seen = job | {"kind": running.kind}
            if running.condition is not None:
                return
        if not same or running.seen["metadata"].get("deletionTimestamp"):
            del self._running[running.step.name]
            gone = f"somebody deleted {running.kind} {running.name} before it had ended"
            raise StageFailed(f"{gone}; nothing is started in its place. To go on: {self._begin_again}")
        if running.ready or running.succeeded_and_failed != before:
            running.idle_since, running.ended_at = None, self._now()
        if running.succeeded_and_failed[1] > before[1] or running.ready < was_ready:
            self._report.failed_pods(running)
        if running.ready and not was_ready:
            self._report.started(running)

    # --- whose is it ----------------------------------------------------------------------------------

    def _acquire(self, manifest: Manifest) -> tuple[Manifest, bool]:
        """The object of that name and whether it was made now; it is of this run and plan.

        What an earlier pipeline Job of the same name owned is on its way out: that is waited for.

        Raises:
            SettingsError: the cluster refuses it.
            UsageError: it is another run's.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        begun = self._now()
        while True:
            try:
                made = self._cluster.create(kind, manifest)
            except Refused as error:
                hint = "; is JobSet installed on this cluster?" if kind == "JobSet" and error.status == 404 else ""
                words = " ".join(str(error).split())
                raise SettingsError(f"the cluster refuses {kind} {name}: {words}{hint}. {self._to_go_on}") from None
            if made is not None:
                return made | {"kind": kind}, True
            there = self._cluster.get(kind, name)
            leaves = (there or {}).get("metadata", {}).keys() & {"ownerReferences", "deletionTimestamp"}
            # Another pipeline Job's: the cluster is about to remove it with its owner.
            if there is not None and (self._owner.owns(there) or not leaves):
                there |= {"kind": kind}
                self._must_fit(there)
                return there, False
            waited = self._now() - begun
            if waited > CLEANUP:
                raise UsageError(
                    f"{kind} {name} is of an earlier pipeline Job and does not go away; choose another RUN_ID, or "
                    f"delete it: kubectl -n {self._cluster.namespace} delete {kind.lower()} {name}"
                )
            if there is not None and not waited:
                logging.get().info(f"{kind} {name} is of an earlier pipeline Job; waiting until it has been removed")
            self._sleep(1)

    def _must_fit(self, there: Manifest) -> None:
        assert self._frozen is not None
        digest, run = self._frozen.digest, self._frozen.plan.run_id
        kind, metadata = there["kind"], there["metadata"]
        if (metadata.get("labels") or {}).get("vcot/run") != run:
            why = f"is there already and is not of run {run} (no label vcot/run={run})"
            raise UsageError(f"{kind} {metadata['name']} {why}; choose another RUN_ID")
        other = (metadata.get("annotations") or {}).get("vcot/plan", "none")
        if other != digest:
            raise UsageError(
                f"RUN_ID {run} was used before with another plan ({kind} {metadata['name']} is of plan {other[:12]}, "
                f"this one is {digest[:12]}); choose another RUN_ID, or remove what is left of the earlier run: "
                f"kubectl -n {self._cluster.namespace} delete job,configmap -l vcot/run={run}"
            )
