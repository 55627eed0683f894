"""Where the node of the cluster tests keeps what it has, and the addresses inside its network namespace.

One place for the whole machine, and not in a work tree: there can be only one node (the kubelet's cgroups have a
fixed name), any checkout must find what another one left, and paths of Unix sockets are at most 107 bytes long.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HOME = Path("/var/tmp/vcot-node")
NAME = "node-1"

GATEWAY = "10.88.7.1"
"""The bridge: pods reach the API server, MinIO and the scripted teacher here; all else they reach nothing."""
GATEWAY_HARDWARE = "02:00:0a:58:07:01"
PODS = "10.88.7.0/24"
FIRST_POD = "10.88.7.10"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
"""What pods know as the API server's address. There is no kube-proxy: the namespace itself has the address."""
BRIDGE = "vcot0"

API_PORT = 443  # the service's own, so that nothing has to be translated
ETCD_PORT, ETCD_PEER_PORT = 2379, 2380
KUBELET_PORT, KUBELET_HEALTH_PORT = 10250, 10248
CONTROLLER_MANAGER_PORT, SCHEDULER_PORT = 10257, 10259


class Layout:
    """The files below a node's home."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home
        self.keys = home / "keys"
        self.logs = home / "log"
        self.admin = self.keys / "admin.conf"
        self.containerd_socket = home / "containerd.sock"
        self.control_socket = home / "control.sock"
        self.state = home / "state.json"
        self.pid = home / "pid"
        self.kubectl = home / "kubectl"

    def conf(self, user: str) -> Path:
        return self.keys / f"{user}.conf"
