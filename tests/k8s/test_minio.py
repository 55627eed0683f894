"""The storage for trying: k8s/minio stands beside the overlays, and must fit the namespace, the stages and the page."""

import json
import re

import pytest
import yaml

from tests.k8s.kustomize import OVERLAYS, ROOT, Manifest, named, render
from tests.k8s.test_invariants import CONDUCTOR, PRIVATE, TRAIN, may_reach, selects
from tests.k8s.test_schemas import VERSIONS, strict


@pytest.fixture(scope="module")
def minio() -> list[Manifest]:
    return render(ROOT / "k8s/minio")


@pytest.fixture(scope="module")
def template(minio: list[Manifest]) -> Manifest:
    found: Manifest = named(minio, "Deployment", "minio")["spec"]["template"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str, minio: list[Manifest]) -> None:
    for one in minio:
        strict(json.dumps(one, sort_keys=True), version)
    assert {one["kind"] for one in minio} == {"Deployment", "Service", "NetworkPolicy"}  # and no Secret
    assert {one["metadata"]["namespace"] for one in minio} == {"vcot"}


def test_its_pod_is_admitted_where_pod_security_is_restricted(template: Manifest) -> None:
    stage = named(render(OVERLAYS / "cpu-smoke"), "CronJob", "stage-train")["spec"]["jobTemplate"]["spec"]["template"]
    (mine,), (theirs,) = template["spec"]["containers"], stage["spec"]["containers"]
    assert template["spec"]["securityContext"] == stage["spec"]["securityContext"]
    assert mine["securityContext"] == theirs["securityContext"]
    assert template["spec"]["automountServiceAccountToken"] is False
    assert {kind for volume in template["spec"]["volumes"] for kind in volume} == {"name", "emptyDir"}


def test_stages_reach_it_and_nobody_else_does(minio: list[Manifest], template: Manifest) -> None:
    (port,) = named(minio, "Service", "minio")["spec"]["ports"]
    assert port["port"] == 9000
    assert may_reach(render(OVERLAYS / "cpu-smoke"), TRAIN, PRIVATE, port["port"])
    policy = named(minio, "NetworkPolicy", "minio")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    for labels, may in ((TRAIN, True), (CONDUCTOR, True), ({}, False)):
        assert any(selects(peer["podSelector"], labels) for peer in rule["from"]) is may
    assert [p["port"] for p in rule["ports"]] == [9000]


def test_its_keys_are_those_that_the_page_makes_up(template: Manifest) -> None:
    (container,) = template["spec"]["containers"]
    taken = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
    assert {one["name"] for one in taken} == {"s3-credentials"}
    page = (ROOT / "docs/kubernetes.md").read_text()
    (made,) = re.findall(r"--from-literal=AWS_ENDPOINT_URL_S3=http://minio:9000 .*?\n\n", page, re.S)
    for one in taken:
        assert f"--from-literal={one['key']}=" in made
    assert "openssl rand" in made  # nothing that stands in git


def test_its_bucket_is_the_one_that_the_small_chain_uses(template: Manifest) -> None:
    (container,) = template["spec"]["containers"]
    assert "mkdir -p /data/vcot " in container["command"][-1]
    texts = [path.read_text() for path in (OVERLAYS / "cpu-smoke").rglob("*.env")]
    assert {bucket for text in texts for bucket in re.findall(r"s3://(\w+)/", text)} == {"vcot"}


def test_its_image_has_a_fixed_tag(template: Manifest) -> None:
    (container,) = template["spec"]["containers"]
    assert re.search(r":RELEASE\.2\d{3}-\d\d-\d\dT", container["image"])
    assert yaml.safe_load((ROOT / "k8s/minio/kustomization.yaml").read_text())["kind"] == "Kustomization"


def test_what_the_page_types_on_kind_is_there() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    part = page.partition("## Try it on kind")[2].partition("\n## ")[0]
    lines = [line.strip() for line in part.splitlines() if line.startswith("    ")]
    for line in lines:
        for path in re.findall(r" -[fk] (\S+/\S+)", line):
            assert (ROOT / path).exists(), line
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    typed = [line.split()[1] for line in lines if line.startswith("make ")]
    assert typed == ["images", "push-example", "k8s-doctor", "pages"]
    assert set(typed) <= targets
    order = [
        "create cluster",
        "kind load",
        "namespace.yaml",
        "create secret",
        "k8s/minio",
        "push-example",
        "cpu-smoke  ",
    ]
    places = [part.index(word) for word in order]
    assert places == sorted(places)  # storage and what a run reads, before the run
