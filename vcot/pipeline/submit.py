"""Starts a run on a cluster under a fresh name: ``make k8s-run``, ``make k8s-run OVERLAY=gpu DRY_RUN=1``.

What is applied is a copy of k8s/ in .local/k8s/<RUN_ID>/, in which run.env has the new name and nothing else differs:
the tracked overlay stays as it is, and what a run was started with can be looked up.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import yaml

from vcot.errors import SettingsError, VcotError
from vcot.pipeline.cluster import must_name_jobs
from vcot.pipeline.kubectl import kubectl, objects, overlay_folder, render
from vcot.pipeline.port import Manifest

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = re.compile(r"registry\.example\.com|sha256:0{64}")
"""What stands in the overlays where everybody writes an address of their own."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vcot.pipeline.submit", description=__doc__)
    parser.add_argument("--overlay", default="gpu", help="a folder of k8s/overlays")
    parser.add_argument("--run-id", help="name of the run; default: date, time and git commit")
    parser.add_argument("--local-folder", type=Path, default=Path(".local"), help="where copies are kept")
    parser.add_argument("--dry-run", action="store_true", help="render, apply nothing")
    options = parser.parse_args(argv)
    try:
        submit(options.overlay, options.run_id, options.local_folder, dry_run=options.dry_run)
    except VcotError as error:
        for line in str(error).splitlines():
            print(f"k8s-run: {line}", file=sys.stderr)
        return error.exit_code
    return 0


def submit(overlay: str, run_id: str | None, local_folder: Path, *, dry_run: bool) -> None:
    """
    Raises:
        SettingsError: no such overlay, no kubectl, or images that are still placeholders.
        UsageError: the run id cannot name Jobs.
        VcotError: kubectl could not apply; what it said stands above.
    """
    name = run_id or fresh_run_id(ROOT, datetime.now(UTC))
    must_name_jobs(name)
    overlay_folder(ROOT / "k8s", overlay)
    folder = copied(ROOT / "k8s", local_folder / "k8s" / name, overlay, name)
    rendered = render(folder)
    there = objects(rendered)
    namespace = pipeline_job(there, name, overlay)["metadata"]["namespace"]
    if dry_run:
        print(rendered)
    else:
        must_have_images(there, overlay)
        if subprocess.run([kubectl(), "apply", "-k", str(folder)], check=False).returncode:
            raise VcotError(f"kubectl could not apply {folder}; what it says stands above")
    print(told(name, namespace, folder, runs_uri(there), dry_run), file=sys.stderr if dry_run else sys.stdout)


def fresh_run_id(checkout: Path, now: datetime) -> str:
    """``r20261121-120355-c569011``: sorts by time, tells the commit of the manifests, and starts with a letter, which
    a Service (of a JobSet) must."""
    git = shutil.which("git")
    command = [git or "git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()[:7] if git else ""
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
    """Its own, or that of the overlay that it is laid around (gpu-kueue has that of gpu)."""
    resources = yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("resources", [])
    places = [overlay, *(overlay / name for name in resources)]
    return next((place / "run.env" for place in places if (place / "run.env").exists()), overlay / "run.env")


def pipeline_job(there: list[Manifest], run_id: str, overlay: str) -> Manifest:
    for one in there:
        if one["kind"] == "Job" and one["metadata"]["name"] == f"pipeline-{run_id}":
            return one
    raise SettingsError(f"overlay {overlay} makes no Job pipeline-{run_id}; see `replacements` in k8s/overlays/gpu")


def must_have_images(there: list[Manifest], overlay: str) -> None:
    """
    Raises:
        SettingsError: the overlay names no image that could be pulled.
    """
    if faults := placeholder_images(there):
        raise SettingsError(
            f"{' and '.join(faults)}: a placeholder. Write where you pushed your images, with their digests, under "
            f"images: in k8s/overlays/{overlay}/kustomization.yaml"
        )


def placeholder_images(there: list[Manifest]) -> list[str]:
    return sorted({image for image in images(there) if PLACEHOLDER.search(image)})


def images(there: list[Manifest]) -> set[str]:
    return {container["image"] for one in there for container in containers(one)}


def containers(one: Manifest) -> list[Manifest]:
    """Of a Job or a CronJob; empty for everything else."""
    spec = one.get("spec") or {}
    if one["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    elif one["kind"] != "Job":
        return []
    found: list[Manifest] = spec["template"]["spec"]["containers"]
    return found


def runs_uri(there: list[Manifest]) -> str:
    """RUNS_URI of the overlay's run.env; empty where it has none."""
    data = (one.get("data") or {} for one in there if one["kind"] == "ConfigMap")
    return next((str(each["RUNS_URI"]) for each in data if {"RUN_ID", "RUNS_URI"} <= set(each)), "")


def told(run_id: str, namespace: str, folder: Path, runs_uri: str, dry_run: bool) -> str:
    rows = {
        "watch": f"kubectl -n {namespace} logs -f job/pipeline-{run_id}",
        "Jobs": f"kubectl -n {namespace} get jobs -l vcot/run={run_id}",
        "cancel": f"kubectl -n {namespace} delete job pipeline-{run_id}",
        "results": f"{runs_uri.rstrip('/')}/{run_id}",
        "start" if dry_run else "go on": f"kubectl apply -k {folder}",
    }
    said = f"run {run_id}: rendered, nothing was applied" if dry_run else f"run {run_id}: started"
    return "\n".join([said, *(f"  {what:8} {how}" for what, how in rows.items())])


if __name__ == "__main__":
    sys.exit(main())
