"""Stages as processes on this computer: their variables, how one is started, asked and run to its end, their pages."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from string import Template

from vcot import logging
from vcot.errors import SettingsError
from vcot.pipeline.orchestrator import Outcome, Plan, Step
from vcot.records.shards import DONE
from vcot.settings import PREFIX, STAGES
from vcot.stage import die_with_parent
from vcot.storage import NotFound, Store, join, put_folder

GRACE = 120.0
"""Seconds that a stage has to save after SIGTERM, as terminationGracePeriodSeconds on a cluster."""
LOOK = 0.5
"""Seconds that one look at a running stage takes."""
REHEARSAL = Path(__file__).resolve().parents[2] / "examples" / "rehearsal"
"""A small base that a checkout brings."""
#: Stage → its files that are for people.
PAGES: Mapping[str, tuple[str, ...]] = {
    "convert": ("report.html",),
    "tokenize": ("report.html",),
    "train": ("losses.png", "rollouts.html"),
    "evaluate": ("report.html", "report.json", "overlay.png"),
}


# --- settings ----------------------------------------------------------------------------------------------


def read_env_file(path: Path) -> dict[str, str]:
    """``NAME=value`` lines as kustomize's configMapGenerator reads them; # starts a comment line.

    Raises:
        SettingsError: a line is neither.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise SettingsError(f"{path}:{number}: {line!r} is not NAME=value")
            found[name.strip()] = value.strip()
    return found


def gather_variables(
    folders: Sequence[Path], environment: Mapping[str, str], places: Mapping[str, str] | None = None,
    methods: Mapping[str, str] | None = None,
) -> dict[str, dict[str, str]]:  # fmt: skip
    """Stage → variables: from ``<folder>/<stage>.env``, a later folder and then the environment beating an earlier.

    `methods`: stage → a way of doing it that has a file ``<stage>-<method>.env`` of its own beside, which beats the
    stage's.

    `places`: what ``${EXAMPLE_URI}`` and ``${BASE_URI}`` stand for in the files.
    """
    ours = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    prefixes = {stage: f"{PREFIX}{stage.upper()}_" for stage in (*STAGES, "pipeline")}
    common = {name: value for name, value in ours.items() if not name.startswith(tuple(prefixes.values()))}
    variables: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        names = [stage, *([f"{stage}-{methods[stage]}"] if methods and stage in methods else [])]
        files = [folder / f"{name}.env" for folder in folders for name in names]
        written = chain.from_iterable(read_env_file(path).items() for path in files if path.exists())
        variables[stage] = common | {name: Template(value).safe_substitute(places or {}) for name, value in written}
        variables[stage] |= {name: value for name, value in ours.items() if name.startswith(prefixes[stage])}
    return variables


def validate(stage: str, variables: Mapping[str, str]) -> list[str]:
    """A line for each fault of a stage's settings, as the stage itself tells it: ``python -m jobs.<stage> --check``."""
    check = [*command(stage), "--check"]
    answer = subprocess.run(check, env=environment(variables), capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return []
    return answer.stderr.strip().splitlines() or [f"{stage}: --check ended with {answer.returncode} and said nothing"]


# --- processes ---------------------------------------------------------------------------------------------


def command(stage: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.{stage}"]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's own, with these variables in place of those with our prefix."""
    return {n: v for n, v in os.environ.items() if not n.startswith(PREFIX)} | dict(variables)


class LocalExecutor:
    """Each step is ``python -m jobs.<stage>`` with the step's variables."""

    def __init__(self, place: Mapping[str, str] | None = None) -> None:
        """place: variables that describe the computer that settings are checked for; default: this one."""
        self._place = dict(place or {})
        self._checked: Plan | None = None
        self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def check(self, plan: Plan) -> None:
        if plan is self._checked:
            return
        with ThreadPoolExecutor() as pool:
            checks = pool.map(lambda step: validate(step.stage, step.environment | self._place), plan.steps)
            faults = [*chain.from_iterable(checks)]
        if faults:
            raise SettingsError("\n".join(faults))
        self._checked = plan

    def start(self, step: Step) -> None:
        # A session of its own: Ctrl-C reaches the orchestrator alone, which then asks the stage to save.
        process = subprocess.Popen(
            command(step.stage), env=environment(step.environment), start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )  # fmt: skip
        self._running[step.name] = (process, time.monotonic())

    def poll(self, step: Step) -> Outcome | None:
        process, started = self._running[step.name]
        deadline = time.monotonic() + LOOK
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)  # unlike Popen it tells the peak memory
            if pid:
                process.returncode = code = os.waitstatus_to_exitcode(status)
                return Outcome(
                    exit_code=code if code >= 0 else 128 - code,
                    seconds=time.monotonic() - started,
                    peak_mib=usage.ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024,
                )
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def leave(self, step: Step) -> str:
        process, _ = self._running[step.name]
        logging.get().info(f"asking {step.name} to save and stop")
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.poll(step) is None:
            if time.monotonic() > deadline:
                logging.get().warning(f"{step.name} did not stop within {GRACE:g} s; killed")
                process.kill()
        return "the running stage has saved what it had"


# --- folders of this computer into storage, and pages out of it --------------------------------------------


def publish(store: Store, folder: Path, uri: str) -> None:
    """Puts a local folder (example data, a base model) into storage, unless the very same is there."""
    mark = uri.rstrip("/") + ".published"  # beside the folder: its digest must not depend on times
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    local = "\n".join(f"{p.relative_to(folder)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
    if store.stat(mark) is not None and store.read(mark).decode() == local:
        return
    put_folder(store, folder, uri)
    store.write(mark, local.encode())
    logging.get().info("put into storage", folder=str(folder), uri=uri)


def download_pages(stages: Mapping[str, str], folder: Path) -> list[Path]:
    """Copies what there is of each stage's pages.

    Args:
        stages: stage → the URI of its folder.
    """
    store, found = Store(), []
    folder.mkdir(parents=True, exist_ok=True)
    for stage, uri in stages.items():
        for name in PAGES.get(stage, ()):
            target = folder / f"{stage}-{name}"
            with contextlib.suppress(NotFound):
                store.download(join(uri, name), target)
                found.append(target)
    return found


@contextlib.contextmanager
def newest_model(folder: Path) -> Iterator[str | None]:
    """The finished train stage of the newest run of make local-train, with the S3 server that has it; None: there is
    none.

    folder: where runs on this computer lie.
    """
    runs = sorted(folder.glob("runs/*/"), key=lambda run: run.stat().st_mtime, reverse=True)
    try:
        from tools.s3server import running_s3
    except ModuleNotFoundError:  # no checkout, so no make local-train
        runs = []
    if not runs or not (folder / "s3").is_dir():
        yield None
        return
    with running_s3(folder / "s3", folder / "s3.log") as server:
        os.environ.update(server.env)
        stages = (f"s3://vcot/runs/{run.name}/train" for run in runs)
        yield next((stage for stage in stages if Store().stat(join(stage, DONE)) is not None), None)
