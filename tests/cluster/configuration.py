"""Where the node of the cluster tests keeps what it has, its addresses and keys, and how each part of it is started.

One place for the whole machine, and not in a work tree: there can be only one node (the kubelet's cgroups have a
fixed name), any checkout must find what another one left, and paths of Unix sockets are at most 107 bytes long.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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


# --- flags and files of each part ------------------------------------------------------------------------------

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


# --- keys: one authority, a certificate for each part ------------------------------------------------------------

#: Part → (common name, organisation): who it is for the API server.
PARTS: Mapping[str, tuple[str, str | None]] = {
    "api": ("kube-apiserver", None),
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "kubelet": ("system:node:{node}", "system:nodes"),
}
VALID = datetime.timedelta(days=30)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_keys(folder: Path, *, node: str, server: str, addresses: list[str]) -> None:
    """Writes ca.crt, <part>.crt, <part>.key, <part>.conf and service-accounts.key into the folder.

    Args:
        server: URL of the API server, for the kubeconfigs.
        addresses: IP addresses under which certificates are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(_name("vcot-test-authority"), authority_key, None, authority_key)
    _write(folder / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    _write_key(folder / "service-accounts.key", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    names += [x509.DNSName(name) for name in ("localhost", "kubernetes.default.svc", node)]
    for part, (common, organisation) in PARTS.items():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(_name(common.format(node=node), organisation), key, authority, authority_key, names)
        _write(folder / f"{part}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        _write_key(folder / f"{part}.key", key)
        _write(folder / f"{part}.conf", json.dumps(_kubeconfig(folder, part, server), indent=1).encode())


def _name(common: str, organisation: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(attributes)


def _certificate(
    subject: x509.Name, key: Key, authority: x509.Certificate | None, authority_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName] | None = None,
) -> x509.Certificate:  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if names:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _kubeconfig(folder: Path, part: str, server: str) -> dict[str, object]:
    cluster = {"server": server, "certificate-authority": str(folder / "ca.crt")}
    user = {"client-certificate": str(folder / f"{part}.crt"), "client-key": str(folder / f"{part}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": cluster}],
        "users": [{"name": part, "user": user}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": part}}],
        "current-context": "node",
    }


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _write_key(path: Path, key: Key) -> None:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    _write(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
