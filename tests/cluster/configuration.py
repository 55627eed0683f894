"""How each part of the node is started: flags and configuration files."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.layout import (
    API_PORT,
    BRIDGE,
    CONTROLLER_MANAGER_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    FIRST_POD,
    GATEWAY,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    NAME,
    PODS,
    SCHEDULER_PORT,
    SERVICES,
    Layout,
)  # fmt: skip

PAUSE_IMAGE = "localhost/vcot-pause:1"
CNI_PROGRAMS = "/usr/lib/cni"


def commands(layout: Layout, programs: dict[str, str]) -> dict[str, list[str]]:
    """Part → command line."""
    home, keys = layout.home, layout.keys
    etcd = f"http://127.0.0.1:{ETCD_PORT}"
    peer = f"http://127.0.0.1:{ETCD_PEER_PORT}"
    return {
        "containerd": [programs["containerd"], "--config", f"{home}/containerd.toml"],
        "etcd": [
            programs["etcd"],
            f"--data-dir={home}/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
        ],
        "kube-apiserver": [
            programs["kube-apiserver"],
            f"--etcd-servers={etcd}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={GATEWAY}",
            f"--secure-port={API_PORT}",
            f"--client-ca-file={keys}/ca.crt",
            f"--tls-cert-file={keys}/api.crt",
            f"--tls-private-key-file={keys}/api.key",
            # For logs and exec: a client of the kubelet, found by address, since no name is resolved here
            f"--kubelet-client-certificate={keys}/admin.crt",
            f"--kubelet-client-key={keys}/admin.key",
            f"--kubelet-certificate-authority={keys}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={keys}/service-accounts.key",
            f"--service-account-signing-key-file={keys}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICES}",
            "--endpoint-reconciler-type=none",
        ],
        "kube-controller-manager": [
            programs["kube-controller-manager"],
            f"--kubeconfig={layout.conf('controller-manager')}",
            "--bind-address=127.0.0.1",
            f"--secure-port={CONTROLLER_MANAGER_PORT}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={keys}/service-accounts.key",
            f"--root-ca-file={keys}/ca.crt",
        ],
        "kube-scheduler": [
            programs["kube-scheduler"],
            f"--kubeconfig={layout.conf('scheduler')}",
            "--bind-address=127.0.0.1",
            f"--secure-port={SCHEDULER_PORT}",
            "--leader-elect=false",
        ],
        "kubelet": [
            programs["kubelet"],
            f"--config={home}/kubelet.json",
            f"--kubeconfig={layout.conf('kubelet')}",
            f"--root-dir={home}/kubelet",
            f"--hostname-override={NAME}",
            f"--node-ip={GATEWAY}",
        ],
    }


def write(layout: Layout, programs: dict[str, str]) -> None:
    """The configuration files, and a `kubectl` that works from outside the namespace."""
    for folder in ("cni", "log", "pods", "plugins"):
        (layout.home / folder).mkdir(exist_ok=True)
    (layout.home / "containerd.toml").write_text(_containerd(layout, programs["runc"]))
    (layout.home / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni(layout), indent=1))
    (layout.home / "kubelet.json").write_text(json.dumps(_kubelet(layout), indent=1))
    (layout.home / "resolv.conf").write_text("# no names are resolved on this node\n")


def _containerd(layout: Layout, runc: str) -> str:
    return f"""
version = 2
root = "{layout.home}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Even root may lack the right to lower the score; without this no pod starts there.
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{layout.home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{runc}"
"""


def _cni(layout: Layout) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": f"{layout.home}/cni-addresses",
        "ranges": [[{"subnet": PODS, "rangeStart": FIRST_POD}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": addresses,
    }  # fmt: skip
    return {"cniVersion": "1.0.0", "name": "vcot", "plugins": [bridge]}


def _kubelet(layout: Layout) -> dict[str, Any]:
    keys = layout.keys
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "address": "0.0.0.0",
        "port": KUBELET_PORT,
        "healthzPort": KUBELET_HEALTH_PORT,
        "healthzBindAddress": "127.0.0.1",
        "tlsCertFile": f"{keys}/kubelet.crt",
        "tlsPrivateKeyFile": f"{keys}/kubelet.key",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{keys}/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "podLogsDir": f"{layout.home}/pods",
        "volumePluginDir": f"{layout.home}/plugins",
        "resolvConf": f"{layout.home}/resolv.conf",
        # A disk that is nearly full, or a busy machine, is no reason to evict what is tested
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "makeIPTablesUtilChains": False,
        "enableControllerAttachDetach": False,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    }


def kubectl_script(layout: Layout, kubectl: str, namespaces_of: int) -> str:
    """`kubectl` from outside: it enters the network namespace of the node's process 1."""
    enter = f"nsenter --net=/proc/{namespaces_of}/ns/net"
    return f'#!/bin/sh\nexec {enter} {kubectl} --kubeconfig {layout.admin} "$@"\n'


def images_command(layout: Layout) -> list[str]:
    """`ctr` on the node's own containerd, in the kubelet's corner of it."""
    return ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]
