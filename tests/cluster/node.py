"""A real Kubernetes node on this machine, in namespaces of its own: `make node-up`, `make node-down`.

    python -m tests.cluster.node up       a node that stays until `down`; prints how to speak to it
    python -m tests.cluster.node down     ends it, and puts everything back
    python -m tests.cluster.node with --images data gpu -- COMMAND …     a node for as long as that command runs

    with running_node() as node: …        for as long as the block, or this process, lives

Of the machine outside nothing is changed but cgroups named kubepods, which the end removes. What was built stays in
the cache (programs, image layers), and Debian packages that were installed stay installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path

from tests.cluster import configuration
from tests.cluster.configuration import CONTROL, GATEWAY, HOME, KUBECTL, LOGS, PID, ROOT, STATE
from tests.cluster.images import Builder, BuildFailed
from tests.cluster.machine import MachineLacks, prepare
from tools.gomodules import tell
from vcot.stage import die_with_parent

READY_WITHIN = 180.0
READY = "NODE_IS_READY"
"""Set where a node is up with both images; then nothing has to be built."""
CGROUPS = "kubepods"


class NodeFailed(Exception):
    """The node did not come up, or one is there already; the message says what to do."""


@dataclass(frozen=True)
class Node:
    """A running node."""

    pid: int
    """Its process 1, as this machine numbers it."""
    s3: dict[str, str]
    """What a process, here or in a pod, needs to speak to the node's MinIO."""
    teacher: str
    """Address of the scripted teacher, for OPENAI_BASE_URL."""

    def ask(self, *words: str) -> int:
        """Has the node do something ("stop", "start" and a part of it); returns how often the teacher was asked."""
        with Client(str(CONTROL)) as connection:
            connection.send(words)
            answer = connection.recv()
        if not isinstance(answer, int):
            raise NodeFailed(f"{' '.join(words)}: {answer}")
        return answer


@contextlib.contextmanager
def running_node(install: bool) -> Iterator[Node]:
    """The node that is up already, or one for this block; it ends even when this process is killed."""
    if (there := node_that_is_up()) is not None:
        yield there
        return
    try:
        yield up(install, stays=False)
    finally:
        down()


def up(install: bool, *, stays: bool) -> Node:
    """Starts a node and waits until pods can run on it.

    Args:
        install: whether missing programs may be installed and built.
        stays: whether it outlives this process.

    Raises:
        MachineLacks: this machine cannot have one.
        NodeFailed: it did not come up, or there is one.
    """
    programs = prepare(install)
    builder = Builder()
    pause = builder.pause()
    if is_alive():
        raise NodeFailed(f"there is a node on this machine already ({HOME}); `make node-down` ends it")
    down()
    if _cgroups():
        raise NodeFailed(f"another kubelet runs on this machine: {_cgroups()[0]} is there; only one can")
    LOGS.mkdir(parents=True)
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "slave",
        sys.executable, "-m", "tests.cluster.inside", json.dumps({name: str(path) for name, path in programs.items()}),
    ]  # fmt: skip
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "VCOT_", "KUBE"))}
    said = LOGS / "inside.log"
    with said.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=None if stays else die_with_parent(signal.SIGKILL),
        )  # fmt: skip
    PID.write_text(str(process.pid))
    try:
        wait(lambda: STATE.exists() or process.poll() is not None, READY_WITHIN)
        if (node := node_that_is_up()) is None:
            words = said.read_text(errors="replace").strip()[-3000:]
            raise NodeFailed(f"the node did not come up (logs in {LOGS}): {words}")
        KUBECTL.write_text(configuration.kubectl_script(str(programs["kubectl"]), node.pid))
        KUBECTL.chmod(0o755)
        builder.bring(pause)
    except BaseException:
        down(keep_logs=True)
        raise
    return node


def node_that_is_up() -> Node | None:
    if not STATE.exists() or not is_alive():
        return None
    state = json.loads(STATE.read_text())
    return Node(_children()[0], state["s3"], state["teacher"])


def down(keep_logs: bool = False) -> None:
    """Ends the node, if there is one, and removes what it leaves: its folder and its cgroups."""
    if is_alive():
        for pid in (*_children(), _pid()):  # first process 1 of the namespace: the kernel ends the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait(lambda: not _remove_cgroups(), 20)
    wait(lambda: not _removed([p for p in HOME.glob("*") if p != LOGS] if keep_logs else [HOME]), 20)


def _removed(paths: Sequence[Path]) -> list[Path]:
    """Returns what is still there; mounts of dying processes may hold it for a moment."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return [path for path in paths if path.exists()]


def _cgroups() -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"*/{CGROUPS}") if path.is_dir()]


def _remove_cgroups() -> list[Path]:
    """Empty cgroups of the kubelet are removed; returns what is still there."""
    for top in _cgroups():
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return _cgroups()


def _pid() -> int:
    """Of `unshare`, the parent of the node's process 1."""
    return int(PID.read_text() or 0)


def is_alive() -> bool:
    """Whether it runs, and is the `unshare` that was started, not another process of that number."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{_pid()}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and b"tests.cluster.inside" in Path(f"/proc/{_pid()}/cmdline").read_bytes()
    return False


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{_pid()}/task/{_pid()}/children").read_text().split()]
    return []


def wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


# --- from a shell -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="a Kubernetes node on this machine")
    parser.add_argument("what", choices=["up", "down", "with"])
    parser.add_argument("--images", nargs="*", default=[], choices=["data", "gpu"], help="build and bring these too")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    if bool(command) != (options.what == "with"):
        parser.error("with … -- COMMAND")
    try:
        if options.what == "down":
            down()
        elif options.what == "up":
            stay(options.images)
        else:
            return during(options.images, command)
    except (MachineLacks, NodeFailed, BuildFailed) as error:
        tell(f"no node: {error}")
        return 1
    except KeyboardInterrupt:
        down()
        return 130
    return 0


def stay(images: Sequence[str]) -> None:
    begun = time.monotonic()
    node = node_that_is_up() or up(install=True, stays=True)
    tell(f"the node is up ({time.monotonic() - begun:.0f} s)")
    bring(images)
    tell(f"kubectl:  {KUBECTL} get pods --all-namespaces")
    tell(f"MinIO:    {node.s3['AWS_ENDPOINT_URL_S3']} in its network, keys in {STATE}")
    tell(f"teacher:  OPENAI_BASE_URL={node.teacher}")
    tell(f"shell:    nsenter --net=/proc/{node.pid}/ns/net bash     ({GATEWAY} is the node)")
    tell("`make node-down` ends it and puts everything back")


def during(images: Sequence[str], command: list[str]) -> int:
    """The command on a node. A machine that cannot have one is for the command to speak of: tests are skipped."""
    try:
        with running_node(install=True):
            bring(images)
            return subprocess.run(command, env=os.environ | {READY: "1"}, check=False).returncode
    except MachineLacks:
        return subprocess.run(command, check=False).returncode


def bring(targets: Sequence[str]) -> None:
    """Builds these images and brings them into the node."""
    builder = Builder()
    for image in (builder.build(*targets) if targets else {}).values():
        builder.bring(image)


if __name__ == "__main__":
    sys.exit(main())
