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
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import configuration
from tests.cluster.configuration import GATEWAY, HOME, ROOT, Layout
from tests.cluster.images import Builder, BuildFailed
from tests.cluster.machine import MachineLacks, prepare
from tools.gomodules import tell
from vcot.ranks import die_with_parent

READY_WITHIN = 180.0
READY = "NODE_IS_READY"
"""Set where a node is up with both images; then nothing has to be built."""
CGROUPS = "kubepods"


class NodeFailed(Exception):
    """The node did not come up, or one is there already; the message says what to do."""


@dataclass(frozen=True)
class Node:
    """A running node."""

    layout: Layout
    pid: int
    """Its process 1, as this machine numbers it."""
    s3: dict[str, str]
    """What a process, here or in a pod, needs to speak to the node's MinIO."""
    teacher: str
    """Address of the scripted teacher, for OPENAI_BASE_URL."""

    def command(self, *words: str) -> list[str]:
        """A command line that runs inside the node's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def ask(self, *words: str) -> str:
        """One line to the node's control socket; its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.layout.control_socket))
            with connection.makefile("rw") as line:
                line.write(" ".join(words) + "\n")
                line.flush()
                answer = line.readline().strip()
        if answer.startswith("failed"):
            raise NodeFailed(f"{' '.join(words)}: {answer}")
        return answer

    def stop(self, part: str) -> None:
        self.ask("stop", part)

    def start(self, part: str) -> None:
        self.ask("start", part)


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
    if (HOME / "pid").exists() and _is_alive(_pid()):
        raise NodeFailed(f"there is a node on this machine already ({HOME}); `make node-down` ends it")
    if _cgroups():
        down()
        if _cgroups():
            raise NodeFailed(f"another kubelet runs on this machine: {_cgroups()[0]} is there; only one can")
    down()
    layout = Layout()
    layout.logs.mkdir(parents=True)
    process = _launch(programs, layout, stays)
    (HOME / "pid").write_text(str(process.pid))
    try:
        _wait(process, layout)
        pid = _child_of(process.pid)
        layout.kubectl.write_text(configuration.kubectl_script(layout, str(programs["kubectl"]), pid))
        layout.kubectl.chmod(0o755)
        builder.bring(pause, layout)
    except BaseException:
        down(keep_logs=True)
        raise
    node = node_that_is_up()
    assert node is not None
    return node


def _launch(programs: dict[str, Path], layout: Layout, stays: bool) -> subprocess.Popen[bytes]:
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "slave",
        sys.executable, "-m", "tests.cluster.inside", json.dumps({name: str(path) for name, path in programs.items()}),
    ]  # fmt: skip
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "VCOT_", "KUBE"))}
    with (layout.logs / "inside.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=None if stays else die_with_parent(signal.SIGKILL),
        )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], layout: Layout) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not layout.state.exists() or not layout.control_socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            failed = layout.home / "failed"
            words = failed.read_text() if failed.exists() else (layout.logs / "inside.log").read_text(errors="replace")
            raise NodeFailed(f"the node did not come up (logs in {layout.logs}): {words.strip()[-3000:]}")
        time.sleep(0.1)


def node_that_is_up() -> Node | None:
    layout = Layout()
    if not layout.state.exists() or not _is_alive(_pid()):
        return None
    state = json.loads(layout.state.read_text())
    return Node(layout, _child_of(_pid()), state["s3"], state["teacher"])


def down(keep_logs: bool = False) -> None:
    """Ends the node, if there is one, and removes what it leaves: its folder and its cgroups."""
    if (HOME / "pid").exists() and _is_alive(_pid()):
        for child in _children(_pid()):
            _kill(child)  # process 1 of the namespace: the kernel ends the others
        _kill(_pid())
    _wait_until(lambda: not _remove_cgroups(), 20)
    if keep_logs:
        for path in HOME.iterdir() if HOME.exists() else ():
            if path.name not in ("log", "failed"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        _wait_until(lambda: not _removed(HOME), 20)


def _removed(folder: Path) -> bool:
    """Whether it is still there; mounts of dying processes may hold it for a moment."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder.exists()


def _cgroups() -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"*/{CGROUPS}") if path.is_dir()]


def _remove_cgroups() -> list[Path]:
    """Empty cgroups of the kubelet are removed; returns what is still there."""
    for top in _cgroups():
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return _cgroups()


# --- processes --------------------------------------------------------------------------------------------------


def _pid() -> int:
    """Of `unshare`, the parent of the node's process 1."""
    return int((HOME / "pid").read_text() or 0)


def _is_alive(pid: int) -> bool:
    """Whether it runs, and is the `unshare` that was started, not another process of that number."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and b"tests.cluster.inside" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _child_of(pid: int) -> int:
    return _children(pid)[0]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
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
    bring(node, images)
    tell(f"kubectl:  {node.layout.kubectl} get pods --all-namespaces")
    tell(f"MinIO:    {node.s3['AWS_ENDPOINT_URL_S3']} in its network, keys in {node.layout.state}")
    tell(f"teacher:  OPENAI_BASE_URL={node.teacher}")
    tell(f"shell:    {' '.join(node.command('bash'))}     ({GATEWAY} is the node)")
    tell("`make node-down` ends it and puts everything back")


def during(images: Sequence[str], command: list[str]) -> int:
    """The command on a node. A machine that cannot have one is for the command to speak of: tests are skipped."""
    try:
        with running_node(install=True) as node:
            bring(node, images)
            return subprocess.run(command, env=os.environ | {READY: "1"}, check=False).returncode
    except MachineLacks:
        return subprocess.run(command, check=False).returncode


def bring(node: Node, targets: Sequence[str]) -> None:
    """Builds these images and brings them into the node."""
    builder = Builder()
    for image in (builder.build(*targets) if targets else {}).values():
        builder.bring(image, node.layout)


if __name__ == "__main__":
    sys.exit(main())
