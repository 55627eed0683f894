"""Overlay serve-cpu: the promoted model of the smoke run is fetched and served, and the page asks it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, Manifest, Overlay
from tests.cluster.configuration import ROOT
from tests.cluster.conftest import Smoke
from tests.cluster.test_reevaluation import promote_by_hand
from vcot.demo.examples import drawn
from vcot.evaluation.subjects import newest
from vcot.pipeline.rollout import PROMOTION
from vcot.storage import Store

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ARGS = "/spec/template/spec/containers/0/args"


def test_the_promoted_model_is_served_and_the_page_asks_it(smoke: Smoke, namespace: Cluster, tmp_path: Path) -> None:
    pointers = f"s3://vcot/{namespace.namespace}/pointers"
    promote_by_hand(pointers, smoke.run_id, samples_of=smoke.run_id)
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay = Overlay(tmp_path / "k8s/overlays/serve-cpu", "serving")
    line = {"name": "settings-serving", "behavior": "merge", "literals": [f"POINTER_URI={pointers}/latest"]}
    overlay.edit(lambda k: k.update(namespace=namespace.namespace, configMapGenerator=[line]))
    suspended = {"op": "add", "path": "/spec/suspend", "value": True}  # it is started below
    overlay.patch("CronJob", "rollout", suspended).apply(namespace)

    (model,) = namespace.until("the model answers", lambda: ready(namespace, "model"), 150)
    taken = model["status"]["initContainerStatuses"][0]["state"]["terminated"]["message"]
    promotion = newest(Store(), f"{pointers}/latest").uri
    assert json.loads(taken)["promotion"] == promotion
    # On the node of these tests no Service is routed and no name resolved; elsewhere the address does as well.
    args = ["jobs.demo", "--subject", f"http://{model['status']['podIP']}:8000/v1#vcot", "--host", "0.0.0.0"]
    overlay.patch("Deployment", "page", {"op": "replace", "path": ARGS, "value": args}).apply(namespace)
    namespace.run("rollout", "status", "deployment/page", "--timeout=90s")
    with forwarded(namespace, "deployment/page", 7860) as address:
        about = json.loads(DIRECT.open(f"{address}/about", timeout=30).read())
        assert (about["ready"], about["model"]) == (True, "vcot")
        events = ask(address)
        (done,) = (event for event in events if event["on"] == "done")
        assert done["tokens"] > 0
        assert events[-1]["on"] == "end"

    for number, name in enumerate(("model", "page")):
        namespace.run("create", "job", f"now-{number}", "--from=cronjob/rollout")
        namespace.completes(f"now-{number}", 60)
        told = [promoted(namespace, each) for each in ("model", "page")]
        assert told == [promotion, promotion if name == "page" else None]
        namespace.run("rollout", "status", f"deployment/{name}", "--timeout=150s")


def promoted(cluster: Cluster, name: str) -> str | None:
    template = cluster.get("Deployment", name)["spec"]["template"]
    found: str | None = template["metadata"].get("annotations", {}).get(PROMOTION)
    return found


def ready(cluster: Cluster, name: str) -> list[Manifest]:
    pods = [pod for pod in cluster.list("Pod", serving=name) if "deletionTimestamp" not in pod["metadata"]]
    conditions = {c["type"]: c["status"] for pod in pods for c in pod["status"].get("conditions", ())}
    return pods if conditions.get("Ready") == "True" else []


@contextlib.contextmanager
def forwarded(cluster: Cluster, what: str, port: int) -> Iterator[str]:
    """The address under which kubectl port-forward brings it here."""
    command = [*cluster.kubectl, "--namespace", cluster.namespace, "port-forward", what, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found is None:
                pytest.fail(f"kubectl port-forward said {line!r}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


def ask(address: str) -> list[dict[str, Any]]:
    """The events of one reply about an image of the page's own examples."""
    example, boundary = next(iter(drawn())), uuid.uuid4().hex
    fields = {"question": example.question, "ways": "ground", "samples": "1"}
    parts = [f'Content-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()]
    image = b'Content-Disposition: form-data; name="image"; filename="i.png"\r\nContent-Type: image/png\r\n\r\n'
    parts.append(image + example.data + b"\r\n")
    body = b"".join(f"--{boundary}\r\n".encode() + part for part in parts) + f"--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with DIRECT.open(urllib.request.Request(f"{address}/ask", body, kind), timeout=60) as answer:
        return [json.loads(line[6:]) for line in answer.read().split(b"\n\n") if line.startswith(b"data: ")]
