"""The CronJob of component reevaluate: it fires, passes on the promoted model, and fails on a worse one with 20."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.cluster.cluster import Cluster, Manifest, Overlay
from vcot.evaluation.finished import Finished
from vcot.evaluation.promotion import promote
from vcot.evaluation.subject import moment
from vcot.storage import Store, join

MINUTES = 60.0


def test_it_passes_on_a_good_model_and_fails_on_a_worse_one(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    runs = f"s3://vcot/{namespace.namespace}/runs"
    good = short(overlay("good"), runs, epochs=12).settings("evaluate", promote="true")
    good.apply(namespace)
    namespace.completes(good.pipeline, 10 * MINUTES)
    worse = short(overlay("worse"), runs, epochs=1)
    worse.conductor("--from-run", "good:tokenize").apply(namespace)
    namespace.completes(worse.pipeline, 5 * MINUTES)

    nightly = short(overlay("good"), runs, epochs=12).settings("evaluate", promote="true")
    nightly.edit(lambda k: k.setdefault("components", []).append("../../components/reevaluate"))
    nightly.patch("CronJob", "reevaluate", {"op": "replace", "path": "/spec/schedule", "value": "* * * * *"})
    nightly.apply(namespace)
    first = fired(namespace, set())
    passed = namespace.completes(first["metadata"]["name"], 4 * MINUTES)
    assert not passed["status"].get("failed")

    promote_by_hand(runs, "worse", as_if_it_had_passed="good")
    before = {job["metadata"]["name"] for job in scheduled(namespace)}
    second = fired(namespace, before)
    end = namespace.fails(second["metadata"]["name"], 4 * MINUTES)
    assert end["reason"] == "PodFailurePolicy"
    assert "exit code 20" in end["message"]
    (pod,) = namespace.pods_of(second["metadata"]["name"])
    message = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    assert message["exit"] == 20
    assert "baseline" in message["message"]
    folder = f"{runs}/reevaluate/{moment(second['metadata']['name'])}"
    there = [entry.uri for entry in Store().list(folder)]
    assert any(uri.endswith("comparison.md") for uri in there), there


def short(overlay: Overlay, runs: str, epochs: int) -> Overlay:
    (overlay.folder / "run.env").write_text(f"RUN_ID={overlay.run_id}\nRUNS_URI={runs}\n")
    return overlay.settings("train", epochs=epochs)


def scheduled(cluster: Cluster) -> list[Manifest]:
    jobs: list[Manifest] = json.loads(cluster.run("get", "jobs", "-o", "json"))["items"]
    return [job for job in jobs if job["metadata"]["name"].startswith("reevaluate-")]


def fired(cluster: Cluster, before: set[str]) -> Manifest:
    """The first Job that the schedule makes beside those."""
    return dict(
        cluster.until(
            "the schedule fires",
            lambda: next((job for job in scheduled(cluster) if job["metadata"]["name"] not in before), None),
            4 * MINUTES,
        )
    )


def promote_by_hand(runs: str, run: str, *, as_if_it_had_passed: str) -> None:
    """What no gate would let through: a worse model is now the newest promoted one."""
    store = Store()
    train = Finished.at(store, join(runs, run, "train"))
    evaluation = Finished.at(store, join(runs, run, "evaluate"))
    samples = Finished.at(store, join(runs, as_if_it_had_passed, "convert"))
    facts = train.mark.facts
    base = {"uri": facts["base_uri"], "sha256": facts["base_sha256"]}
    promote(
        store,
        join(runs, "pointers", "latest"),
        train=train,
        base=base,
        evaluation=evaluation,
        samples=samples,
        gates=["none"],
    )
