"""Storage that cannot be used, or a Secret that is not there: one line, and nothing half-made."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.test_reports import exit_code, fails_saying


def test_a_secret_that_is_not_there(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    namespace.run("delete", "secret", "s3-credentials")
    run = overlay("no-secret")
    said = fails_saying(namespace, run)
    assert "s3-credentials" in said
    assert exit_code(namespace, run) == 3


def test_a_bucket_that_is_not_there(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    run = overlay("no-bucket")
    (run.folder / "run.env").write_text("RUN_ID=no-bucket\nRUNS_URI=s3://no-such-bucket/runs\n")
    said = fails_saying(namespace, run)
    assert "no-such-bucket" in said
    assert exit_code(namespace, run) == 3


def test_keys_that_are_refused(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
    namespace.apply(secret | {"stringData": dict(namespace.s3) | {"AWS_SECRET_ACCESS_KEY": "mistyped"}})
    run = overlay("wrong-keys")
    said = fails_saying(namespace, run)
    assert "AWS_SECRET_ACCESS_KEY" in said or "SignatureDoesNotMatch" in said
    assert exit_code(namespace, run) == 3
