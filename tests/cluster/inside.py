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
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Listener
from pathlib import Path

from tests.cluster import configuration
from tests.cluster.configuration import (
    ADMIN,
    API_SERVICE,
    BRIDGE,
    CONTAINERD,
    CONTROL,
    GATEWAY,
    GATEWAY_HARDWARE,
    HOME,
    LOGS,
    NAME,
    PODS,
    STATE,
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

    def __init__(self, programs: dict[str, str]) -> None:
        self.commands = configuration.commands(programs)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._kubectl = [programs["kubectl"], f"--cache-dir={HOME}/cache", f"--kubeconfig={ADMIN}"]

    def start(self, name: str, ready: Callable[[], bool] | None = None) -> None:
        """Starts it where it does not run, and waits until it is ready."""
        log = LOGS / f"{name}.log"
        if name not in self.running or self.running[name].poll() is not None:
            with log.open("ab") as output:
                self.running[name] = subprocess.Popen(
                    self.commands[name], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=HOME,
                    start_new_session=True,
                )  # fmt: skip
        deadline = time.monotonic() + READY_WITHIN
        while ready and not ready():
            if self.running[name].poll() is not None or time.monotonic() > deadline:
                said = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise NotReady(f"{name} did not come up; the end of its log:\n{said}")
            time.sleep(0.1)

    def stop(self, name: str) -> None:
        process = self.running[name]
        process.terminate()
        try:
            process.wait(3)  # the API server does not leave while clients are connected
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def answers(self, *words: str) -> bool:
        """Whether kubectl has an answer to that."""
        return not subprocess.run([*self._kubectl, *words], capture_output=True, check=False).returncode

    def start_api_server(self) -> None:
        self.start("kube-apiserver", lambda: self.answers("get", "--raw", "/readyz"))

    def start_all(self) -> None:
        self.start("etcd")
        self.start("containerd", CONTAINERD.exists)
        self.start_api_server()
        self.start("kube-scheduler")
        self.start("kube-controller-manager")
        self.start("kubelet", lambda: self.answers("wait", "--for=condition=Ready", f"node/{NAME}", "--timeout=1s"))
        self.start("kube-controller-manager", lambda: self.answers("-n", "default", "get", "serviceaccount", "default"))


def supervise(programs: dict[str, str]) -> int:
    """Starts everything, says so in state.json, then does what the control socket asks for until it is killed."""
    hide_the_machine()
    network()
    configuration.write(programs["runc"])
    os.environ["MINIO"] = programs["minio"]
    services = Services(programs)
    with (
        running_s3(HOME / "s3", LOGS / "minio.log", host=GATEWAY) as storage,
        scripted_teacher(host=GATEWAY) as teacher,
    ):
        services.start_all()
        with Listener(str(CONTROL)) as listener:
            temporary = STATE.with_suffix(".part")
            temporary.write_text(json.dumps({"s3": storage.env, "teacher": teacher.address}, indent=1))
            temporary.rename(STATE)
            while True:
                # Who asks may be killed before the answer.
                with listener.accept() as connection, contextlib.suppress(EOFError, OSError):
                    try:
                        answer: object = obey(services, *connection.recv()) or len(teacher.asked)
                    except (TypeError, KeyError, NotReady) as error:
                        answer = f"failed: {error!r}"
                    connection.send(answer)


def obey(services: Services, verb: str, name: str = "") -> None:
    """ "stop NAME" and "start NAME"; every other verb only asks how often the teacher was asked."""
    if verb == "stop":
        services.stop(name)
    elif verb == "start":
        services.start_api_server() if name == "kube-apiserver" else services.start(name)


# --- the namespaces ---------------------------------------------------------------------------------------------


def hide_the_machine() -> None:
    """Empty folders where the kubelet, containerd and CNI write outside their own; seen in this namespace alone."""
    for folder in ("/run", "/var/lib", "/var/log"):
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "vcot-node", folder)
    shown = HOME / "sysctl"
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


# --- process 1 --------------------------------------------------------------------------------------------------


def main() -> int:
    """Process 1 only collects the dead; its child does the work, and when that ends, everything does."""
    worker = os.fork()
    if worker == 0:
        return supervise(json.loads(sys.argv[1]))
    while True:
        child, status = os.wait()
        if child == worker:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
