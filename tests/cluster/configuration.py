"""Where the node of the cluster tests keeps what it has, its addresses and key, and how each part of it is started.

One place for the whole machine, and not in a work tree: there can be only one node (the kubelet's cgroups have a
fixed name), any checkout must find what another one left, and paths of Unix sockets are at most 107 bytes long.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

HOME = Path("/var/tmp/vcot-node")
LOGS, PID, STATE = HOME / "log", HOME / "pid", HOME / "state.json"
CONTAINERD, CONTROL = HOME / "containerd.sock", HOME / "control.sock"
CERTIFICATE, KEY, ADMIN, KUBECTL = HOME / "node.crt", HOME / "node.key", HOME / "admin.conf", HOME / "kubectl"
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
ETCD = "http://127.0.0.1:2379"
PAUSE_IMAGE = "localhost/vcot-pause:1"
CTR = ["ctr", "--address", str(CONTAINERD), "--namespace", "k8s.io"]
"""`ctr` on the node's own containerd, in the kubelet's corner of it."""


def commands(programs: dict[str, str]) -> dict[str, list[str]]:
    """Part → command line."""
    flags = {
        "containerd": [f"--config={HOME}/containerd.toml"],
        "etcd": [
            f"--data-dir={HOME}/etcd", "--unsafe-no-fsync", f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}", "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "kube-apiserver": [
            f"--etcd-servers={ETCD}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={GATEWAY}",
            "--secure-port=443",  # the service's own, so that nothing has to be translated
            f"--client-ca-file={CERTIFICATE}",
            f"--tls-cert-file={CERTIFICATE}",
            f"--tls-private-key-file={KEY}",
            # For logs and exec: a client of the kubelet, found by address, since no name is resolved here
            f"--kubelet-client-certificate={CERTIFICATE}",
            f"--kubelet-client-key={KEY}",
            f"--kubelet-certificate-authority={CERTIFICATE}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={KEY}",
            f"--service-account-signing-key-file={KEY}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            f"--service-cluster-ip-range={SERVICES}",
            "--endpoint-reconciler-type=none",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={ADMIN}", "--bind-address=127.0.0.1", "--leader-elect=false",
            "--use-service-account-credentials=true", f"--service-account-private-key-file={KEY}",
            f"--root-ca-file={CERTIFICATE}",
        ],
        "kube-scheduler": [f"--kubeconfig={ADMIN}", "--bind-address=127.0.0.1", "--leader-elect=false"],
        "kubelet": [
            f"--config={HOME}/kubelet.json", f"--kubeconfig={ADMIN}", f"--root-dir={HOME}/kubelet",
            f"--hostname-override={NAME}", f"--node-ip={GATEWAY}",
        ],
    }  # fmt: skip
    return {part: [programs[part], *words] for part, words in flags.items()}


def write(runc: str) -> None:
    """The key, the configuration files, and a kubeconfig."""
    for folder in ("cni", "pods", "plugins"):
        (HOME / folder).mkdir()
    make_key()
    (HOME / "containerd.toml").write_text(_containerd(runc))
    (HOME / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni(), indent=1))
    (HOME / "kubelet.json").write_text(json.dumps(_kubelet(), indent=1))
    (HOME / "resolv.conf").write_text("# no names are resolved on this node\n")
    cluster = {"server": f"https://{GATEWAY}", "certificate-authority": str(CERTIFICATE)}
    user = {"client-certificate": str(CERTIFICATE), "client-key": str(KEY)}
    ADMIN.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "clusters": [{"name": "node", "cluster": cluster}], "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "admin"}}],
    }))  # fmt: skip


def make_key() -> None:
    """One key, and one certificate that is its own authority: every part shows it, and every part is the administrator.

    Who may do what is tested with accounts of Kubernetes, which are not among them.
    """
    names = [f"IP:{address}" for address in ("127.0.0.1", GATEWAY, API_SERVICE)]
    names += [f"DNS:{name}" for name in ("localhost", "kubernetes.default.svc", NAME)]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", str(KEY)]
    command += ["-out", str(CERTIFICATE), "-subj", "/O=system:masters/CN=admin"]
    command += ["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", f"subjectAltName={','.join(names)}"]
    subprocess.run(command, check=True)


def kubectl_script(kubectl: str, namespaces_of: int) -> str:
    """`kubectl` from outside: it enters the network namespace of the node's process 1."""
    enter = f"nsenter --net=/proc/{namespaces_of}/ns/net"
    return f'#!/bin/sh\nexec {enter} {kubectl} --cache-dir {HOME}/cache --kubeconfig {ADMIN} "$@"\n'


def _containerd(runc: str) -> str:
    return f"""
version = 2
root = "{HOME}/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Even root may lack the right to lower the score; without this no pod starts there.
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{HOME}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{runc}"
"""


def _cni() -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": f"{HOME}/cni-addresses",
        "ranges": [[{"subnet": PODS, "rangeStart": FIRST_POD}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": addresses,
    }  # fmt: skip
    return {"cniVersion": "1.0.0", "name": "vcot", "plugins": [bridge]}


def _kubelet() -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "address": "0.0.0.0",
        "tlsCertFile": str(CERTIFICATE),
        "tlsPrivateKeyFile": str(KEY),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(CERTIFICATE)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "podLogsDir": f"{HOME}/pods",
        "volumePluginDir": f"{HOME}/plugins",
        "resolvConf": f"{HOME}/resolv.conf",
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
