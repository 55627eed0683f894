"""The node itself: runs as process 1 of namespaces of its own (network, mounts, processes), and ends with them.

    unshare --net --mount --pid --fork --kill-child --mount-proc --propagation slave python -m tests.cluster.inside …

Nothing in here has to be stopped in order. When process 1 is killed, the kernel ends every process of the namespace,
containers included, and with the last of them go the bridge, the addresses and the mounts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cluster import configuration
from tests.cluster.configuration import (
    API_PORT,
    API_SERVICE,
    BRIDGE,
    GATEWAY,
    GATEWAY_HARDWARE,
    HOME,
    NAME,
    PODS,
    Layout,
)  # fmt: skip
from tests.fakes.teacher import scripted_teacher
from tools.s3server import running_s3

#: Kernel settings that belong to the whole machine, with the values that the kubelet wants to find. It finds them.
SHOWN_TO_KUBELET = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
READY_WITHIN = 120.0


class NotReady(Exception):
    """A part of the node did not come up; the message has its last words."""


class Services:
    """The processes of the node; each can be stopped and started again."""

    def __init__(self, layout: Layout, programs: dict[str, str]) -> None:
        self.layout = layout
        self.commands = configuration.commands(layout, programs)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        if name in self.running and self.running[name].poll() is None:
            return
        with (self.layout.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.layout.home,
                start_new_session=True,
            )  # fmt: skip

    def stop(self, name: str) -> None:
        process = self.running[name]
        process.terminate()
        try:
            process.wait(3)  # the API server does not leave while clients are connected
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while True:
            with contextlib.suppress(OSError, ValueError):
                if ready():
                    return
            if self.running[name].poll() is not None or time.monotonic() > deadline:
                raise NotReady(f"{name} did not come up; the end of its log:\n{self._last_words(name)}")
            time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        lines = (self.layout.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-8:])


def supervise(layout: Layout, programs: dict[str, str]) -> int:
    """Starts everything, says so in state.json, then does what the control socket asks for until it is killed."""
    hide_the_machine(layout)
    network()
    configuration.make_keys(
        layout.keys, node=NAME, server=f"https://{GATEWAY}:{API_PORT}", addresses=["127.0.0.1", GATEWAY, API_SERVICE]
    )
    configuration.write(layout, programs)
    os.environ["MINIO"] = programs["minio"]
    services = Services(layout, programs)
    with (
        running_s3(layout.home / "s3", layout.logs / "minio.log", host=GATEWAY) as storage,
        scripted_teacher(host=GATEWAY) as teacher,
    ):
        start(services, layout)
        state = {"s3": storage.env, "s3_kind": storage.kind, "teacher": teacher.address}
        temporary = layout.state.with_suffix(".part")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.rename(layout.state)
        serve(services, layout.control_socket, asked=lambda: len(teacher.asked))
    return 0


def start(services: Services, layout: Layout) -> None:
    for name in ("containerd", "etcd", "kube-apiserver"):
        services.start(name)
    services.wait("kube-apiserver", lambda: ask(layout, "/readyz") == b"ok")
    services.wait("containerd", layout.containerd_socket.exists)
    for name in ("kube-controller-manager", "kube-scheduler", "kubelet"):
        services.start(name)
    services.wait("kubelet", lambda: node_is_ready(layout))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    services.wait("kube-controller-manager", lambda: bool(ask(layout, account)))


def node_is_ready(layout: Layout) -> bool:
    node = json.loads(ask(layout, f"/api/v1/nodes/{NAME}"))
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))


def ask(layout: Layout, path: str) -> bytes:
    """GET as the administrator. Raises OSError for everything that is not a 200."""
    context = ssl.create_default_context(cafile=str(layout.keys / "ca.crt"))
    context.load_cert_chain(layout.keys / "admin.crt", layout.keys / "admin.key")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(f"https://{GATEWAY}:{API_PORT}{path}", timeout=5) as answer:
        data: bytes = answer.read()
    return data


# --- the namespaces ---------------------------------------------------------------------------------------------


def hide_the_machine(layout: Layout) -> None:
    """Empty folders where the kubelet, containerd and CNI write outside their own; seen in this namespace alone."""
    for folder in ("/run", "/var/lib", "/var/log"):
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "vcot-node", folder)
    shown = layout.home / "sysctl"
    shown.mkdir()
    for name, value in SHOWN_TO_KUBELET.items():
        target = Path("/proc/sys") / name
        if target.exists():
            source = shown / name.replace("/", ".")
            source.write_text(f"{value}\n")
            run("mount", "--bind", str(source), str(target))


def network() -> None:
    """Loopback and the bridge, made before the first pod, so that servers can listen on the bridge's address."""
    for line in (
        "ip link set lo up",
        f"ip addr add {API_SERVICE}/32 dev lo",
        # An address of its own: else it takes that of one of its pods, another one whenever that pod goes, and what
        # others remember of the gateway is wrong
        f"ip link add {BRIDGE} address {GATEWAY_HARDWARE} type bridge",
        f"ip addr add {GATEWAY}/{PODS.partition('/')[2]} dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
    ):
        run(*shlex.split(line))
    settings = Path("/proc/sys/net/ipv4")  # of this namespace
    (settings / "ip_forward").write_text("1\n")
    for interface in ("all", BRIDGE):  # no pod is told that the API server's address is its neighbour
        (settings / "conf" / interface / "send_redirects").write_text("0\n")


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReady(f"{shlex.join(command)}: {done.stderr.strip()}")


# --- control ----------------------------------------------------------------------------------------------------


def serve(services: Services, path: Path, asked: Callable[[], int]) -> None:
    """Lines "stop NAME", "start NAME" and "asked" (of the teacher), a connection each; answers "ok" or why not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as line:
                try:
                    line.write(_obey(services, line.readline().split(), asked) + "\n")
                except (KeyError, ValueError, NotReady) as error:
                    line.write(f"failed: {error!r}\n")


def _obey(services: Services, words: list[str], asked: Callable[[], int]) -> str:
    if words == ["asked"]:
        return str(asked())
    verb, name = words
    if verb == "stop":
        services.stop(name)
    elif verb == "start":
        services.start(name)
        if name == "kube-apiserver":
            services.wait(name, lambda: ask(services.layout, "/readyz") == b"ok")
    else:
        raise ValueError(f"{verb}: stop or start")
    return "ok"


# --- process 1 --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def told(layout: Layout) -> Iterator[None]:
    """What goes wrong stands in a file, for whoever waits outside."""
    try:
        yield
    except BaseException as error:
        (layout.home / "failed").write_text(f"{error}\n")
        raise


def main() -> int:
    """Process 1 only collects the dead; its child does the work, and when that ends, everything does."""
    layout, programs = Layout(HOME), json.loads(sys.argv[1])
    worker = os.fork()
    if worker == 0:
        with told(layout):
            return supervise(layout, programs)
    while True:
        child, status = os.wait()
        if child == worker:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
