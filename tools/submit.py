"""Starts a run on a cluster under a fresh name: ``make k8s-run``, ``make k8s-run OVERLAY=gpu DRY_RUN=1``.

It stays until the run has begun, that is until its plan is frozen: the next apply would replace the templates. A
orchestrator that cannot start is taken back then, with the reason; nothing else in a cluster gives it a deadline.

What is applied is a copy of k8s/ in .local/k8s/<RUN_ID>/, in which run.env has the new name and nothing else differs:
the tracked overlay stays as it is, and what a run was started with can be looked up.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from tools.overlay import ROOT, Overlay, cluster_of, kubectl, overlay_folder, render
from vcot import logging
from vcot.errors import SettingsError, UsageError, VcotError
from vcot.pipeline.client import ClusterClient, Manifest
from vcot.pipeline.executor import must_name_jobs
from vcot.pipeline.orchestrator import Clock
from vcot.pipeline.progress import why_not_running
from vcot.pipeline.templates import ENGINE, must_name_a_set

WAIT = 900.0
"""Seconds: a pool that starts from nothing needs 5 to 15 minutes."""
LOOK_EVERY = 2.0
"""Seconds."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.submit", description=__doc__)
    parser.add_argument("--overlay", default="gpu", help="a folder of k8s/overlays")
    parser.add_argument("--run-id", help="name of the run; default: date, time and git commit")
    parser.add_argument("--local-folder", type=Path, default=Path(".local"), help="where copies are kept")
    parser.add_argument("--wait", type=float, default=WAIT, help="seconds until the run has to begin; 0: do not look")
    parser.add_argument("--dry-run", action="store_true", help="render, apply nothing")
    options = parser.parse_args(argv)
    logging.configure("lines")
    try:
        submit(options.overlay, options.run_id, options.local_folder, wait=options.wait, dry_run=options.dry_run)
    except VcotError as error:
        for line in str(error).splitlines():
            print(f"k8s-run: {line}", file=sys.stderr)
        return error.exit_code
    return 0


def submit(overlay: str, run_id: str | None, local_folder: Path, *, wait: float, dry_run: bool) -> None:
    """
    Raises:
        SettingsError: no such overlay, no kubectl, or images that are still placeholders.
        UsageError: the run id cannot name Jobs, or is that of a run that was begun with another image.
        VcotError: kubectl could not apply (what it said stands above), or the run did not begin.
    """
    name = run_id or fresh_run_id(ROOT, datetime.now(UTC))
    must_name_jobs(name)
    overlay_folder(overlay, ROOT / "k8s")
    folder = copied(ROOT / "k8s", local_folder / "k8s" / name, overlay, name)
    rendered = render(folder)
    wanted = Overlay.of(overlay, rendered)
    if wanted.run_id != name:
        raise SettingsError(f"overlay {overlay} makes run {wanted.run_id}, whatever run.env says; see `replacements`")
    if any((t["metadata"].get("annotations") or {}).get(ENGINE) == "jobset" for t in wanted.templates.values()):
        must_name_a_set(name)
    if dry_run:
        print(rendered)
    else:
        if wanted.placeholders:
            raise SettingsError(
                f"{' and '.join(wanted.placeholders)}: a placeholder. Write where you pushed your images, with "
                f"digests, under images: in k8s/overlays/{overlay}/kustomization.yaml"
            )
        must_not_change(wanted, cluster_of(wanted.namespace, patience=0, away=10))
        if subprocess.run([kubectl(), "apply", "-k", str(folder)], check=False).returncode:
            raise VcotError(f"kubectl could not apply {folder}; what it says stands above")
        if wait:
            until_begun(wanted, folder, wait, cluster_of(wanted.namespace, patience=0), Clock())
    print(what_to_type(wanted, folder, dry_run), file=sys.stderr if dry_run else sys.stdout)


def fresh_run_id(checkout: Path, now: datetime) -> str:
    """``r20261121-120355-c569011``: sorts by time, tells the commit of the manifests, and starts with a letter, which
    a Service (of a JobSet) must."""
    commit = ""
    if git := shutil.which("git"):
        command = [git, "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()[:7]
    return f"r{now:%Y%m%d-%H%M%S}{'-' if commit else ''}{commit}"


def copied(k8s: Path, target: Path, overlay: str, run_id: str) -> Path:
    """The overlay's folder in a fresh copy of all manifests, with this RUN_ID.

    Raises:
        SettingsError: the overlay's run.env sets no RUN_ID.
    """
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(k8s, target)
    folder = target / "overlays" / overlay
    run_env = run_env_of(folder)
    text = run_env.read_text() if run_env.exists() else ""
    replaced, times = re.subn(r"^RUN_ID=.*$", f"RUN_ID={run_id}", text, flags=re.MULTILINE)
    if times != 1:
        raise SettingsError(f"{k8s / 'overlays' / overlay / 'run.env'}: one line RUN_ID=… is needed, there are {times}")
    run_env.write_text(replaced)
    return folder


def run_env_of(overlay: Path) -> Path:
    """Its own, or that of the overlay that it is laid around (gpu-kueue has that of gpu), however deep."""
    own, resources = overlay / "run.env", overlay / "kustomization.yaml"
    if own.exists() or not resources.exists():
        return own
    inner = yaml.safe_load(resources.read_text()).get("resources") or []
    return next((found for name in inner if (found := run_env_of(overlay / name)).exists()), own)


def must_not_change(wanted: Overlay, cluster: ClusterClient) -> None:
    """Raises UsageError where the run was begun before, with another image or another run.env: in one line what the API
    server says of its Job in thousands of characters."""
    job = wanted.pipeline["metadata"]["name"]
    if (there := cluster.get("Job", job)) is None:
        return
    was, now = (one["spec"]["template"]["spec"]["containers"][0] for one in (there, wanted.pipeline))
    changed = [] if was["image"] == now["image"] else [f"image {was['image']} (now {now['image']})"]
    if was["envFrom"] != now["envFrom"]:
        changed.append("another run.env")
    if changed:
        raise UsageError(
            f"RUN_ID {wanted.run_id} was begun with {' and '.join(changed)}, and a run keeps what it was begun with: "
            f"choose another RUN_ID, or begin it again: kubectl -n {wanted.namespace} delete job {job}"
        )


def until_begun(wanted: Overlay, folder: Path, seconds: float, cluster: ClusterClient, clock: Clock) -> None:
    """Waits for the frozen plan of the run.

    Raises:
        VcotError: the orchestrator refused, or never started; then its Job is deleted, and nothing starts later.
    """
    job = wanted.pipeline["metadata"]["name"]
    print(f"waiting until {job} has begun, {seconds:g} s at most (Ctrl-C: it goes on without you)", flush=True)
    deadline = clock.now() + seconds
    while cluster.get("ConfigMap", f"{wanted.run_id}-plan") is None:
        there = cluster.get("Job", job) or {"spec": {}}
        pods = list(cluster.list("Pod", labels=f"batch.kubernetes.io/job-name={job}"))
        conditions = (there.get("status") or {}).get("conditions") or []
        if any(c["type"] == "Failed" and c["status"] == "True" for c in conditions):
            words = last_words(pods) or f"kubectl -n {wanted.namespace} logs job/{job} says why"
            raise VcotError(f"{job} did not begin: {words}")
        if clock.now() > deadline:
            names = {job, *(pod["metadata"]["name"] for pod in pods)}
            warned = cluster.list("Event", fields="type=Warning")
            events = [event for event in warned if event["involvedObject"].get("name") in names]
            why = why_not_running(there, pods, events) or "no reason is known"
            try:
                cluster.delete("Job", job)
                deleted = "It is deleted, so that nothing starts later"
            except VcotError as error:
                deleted = f"It could not be deleted ({error}): kubectl -n {wanted.namespace} delete job {job}"
            raise VcotError(
                f"{job} has not begun within {seconds:g} s: {why}. {deleted}; when that is mended: "
                f"kubectl apply -k {folder}"
            )
        clock.sleep(LOOK_EVERY)


def last_words(pods: Sequence[Manifest]) -> str:
    """Of the orchestrator that ended last."""
    statuses = [status for pod in pods for status in (pod.get("status") or {}).get("containerStatuses") or []]
    ended = [status["state"]["terminated"] for status in statuses if "terminated" in (status.get("state") or {})]
    last: Manifest = max(ended, key=lambda one: one.get("finishedAt") or "", default={})
    text = str(last.get("message") or "")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()


def what_to_type(wanted: Overlay, folder: Path, dry_run: bool) -> str:
    kubectl_there, job = f"kubectl -n {wanted.namespace}", wanted.pipeline["metadata"]["name"]
    rows = {
        "watch": f"{kubectl_there} logs -f job/{job}",
        "Jobs": f"{kubectl_there} get jobs -l vcot/run={wanted.run_id}",
        "cancel": f"{kubectl_there} delete job {job}",
        "results": f"{wanted.runs_uri}/{wanted.run_id}",
        "start" if dry_run else "go on": f"kubectl apply -k {folder}",
    }
    said = f"run {wanted.run_id}: {'rendered, nothing was applied' if dry_run else 'started'}"
    return "\n".join([said, *(f"  {what:8} {how}" for what, how in rows.items())])


if __name__ == "__main__":
    sys.exit(main())
