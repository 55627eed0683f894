"""What checkov thinks of the manifests; what it does not judge stands with its reason in checkov.yaml."""

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.k8s.kustomize import ROOT, render, rendered

CONFIG = Path(__file__).with_name("checkov.yaml")
BUILT_HERE = {"CKV_K8S_43", "CKV_K8S_15"}
"""A digest, and asking the registry again: images of cpu-smoke are built on the machine and come from no registry, and
MinIO's may be brought onto a node in the same way."""
BY_VERSION = {"CKV_K8S_43", "CKV_K8S_15"}
"""vLLM's image is named by its version: a digest differs with the mirror that a cluster pulls from."""
JUDGED: Mapping[str, set[str]] = {
    "gpu+all-aks": set(), "cpu-smoke": BUILT_HERE, "minio": BUILT_HERE, "serve": BY_VERSION,
    "serve-cpu": BUILT_HERE,
}  # fmt: skip
"""Variant → checks that do not fit it."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Mapping[str, set[str]]:
    """Variant → what checkov holds against it. All in one run: it starts slow."""
    program = os.environ.get("CHECKOV", "")
    if not Path(program).is_file():
        if os.environ.get("CI"):
            pytest.fail("CI checks the manifests with checkov: start the tests with `make test`, which gets it")
        pytest.skip("no checkov; `make test` gets it")
    folder = tmp_path_factory.mktemp("checkov")
    objects = {name: render(ROOT / "k8s/minio") if name == "minio" else rendered(name) for name in JUDGED}
    for name, some in objects.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(some))
    command = [program, "--directory", ".", "--config-file", str(CONFIG), "--output", "json"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 1), answer.stderr
    report = json.loads(answer.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 100 * (len(objects) - 1)  # minio is one pod
    found = defaultdict(set)
    for one in report["results"]["failed_checks"]:
        name = Path(one["file_path"]).stem
        found[name].add(f"{one['check_id']} {one['resource']}: {one['check_name']}")
    return found


@pytest.mark.parametrize("name", JUDGED)
def test_checkov_has_nothing_to_say(name: str, findings: Mapping[str, set[str]]) -> None:
    assert {line for line in findings[name] if line.split()[0] not in JUDGED[name]} == set()
