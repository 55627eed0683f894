"""What a node leaves behind: nothing, also when those who started it are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.configuration import HOME, ROOT
from tests.cluster.machine import MachineLacks, prepare
from tests.cluster.node import down, node_that_is_up, wait

PROGRAM = """
import signal, time
from tests.cluster.node import running_node
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs this in its background has it ignored
with running_node(install=False) as node:
    print(node.ask("asked"), flush=True)
    time.sleep(600)
"""
SETTINGS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
FOLDERS = (
    "/var/lib/containers", "/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/var/log/pods",
    "/run/containerd", str(HOME),
)  # fmt: skip


@pytest.fixture(autouse=True)
def machine() -> None:
    if os.environ.get("CLUSTER_CONTEXT"):
        pytest.skip("the tests run on another cluster")
    if node_that_is_up() is not None:
        pytest.skip("a node is up (make node-up), and there can be only one")
    down()  # what one has left that was killed with all of its machine's processes
    try:
        prepare(install=bool(os.environ.get("CI") or os.environ.get("NODE_INSTALL")))
    except MachineLacks as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"no node on this machine, it lacks {error}")


def outside() -> dict[str, object]:
    """What of the machine a node might touch."""
    run = lambda *words: subprocess.run(words, capture_output=True, text=True, check=True).stdout  # noqa: E731
    links = [line.split(":")[1].strip() for line in run("ip", "-o", "link").splitlines()]
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(process.read_text().split("\0"))
    return {
        "links": sorted(link for link in links if not link.startswith("veth")),
        "mounts": sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()),
        "namespaces": run("ip", "netns"),
        "settings": {name: (Path("/proc/sys") / name).read_text() for name in SETTINGS},
        "folders": [folder for folder in FOLDERS if Path(folder).exists()],
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob("*/kubepods*")),
        "processes": [words[0] for words in commands if str(HOME) in " ".join(words)],
    }


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_all_is_as_it_was(how: str) -> None:
    before = outside()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "0\n"
        assert outside() != before
    finally:
        process.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
        process.wait()
    if how == "killed":  # nobody cleaned up; the node is dead all the same
        wait(lambda: node_that_is_up() is None, 20)
        down()
    wait(lambda: outside() == before, 20)
    assert outside() == before
