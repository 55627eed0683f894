"""Keys and kubeconfigs of a throw-away cluster: one authority, a certificate for each of its parts."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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


def make(folder: Path, *, node: str, server: str, addresses: list[str]) -> None:
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
    subject: x509.Name,
    key: Key,
    authority: x509.Certificate | None,
    authority_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName] | None = None,
) -> x509.Certificate:
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
