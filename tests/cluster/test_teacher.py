"""A teacher that writes the reasoning, asked from a pod: its key stands in a Secret that distill alone sees."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.cluster import Cluster, Overlay

KEY = "a-key-that-no-log-shows"


def test_distill_asks_the_teacher_of_the_secret(namespace: Cluster, overlay: Callable[[str], Overlay], node) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "teacher-credentials"}}
    namespace.apply(secret | {"stringData": {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": node.teacher}})
    asked = node.ask("asked")
    run = overlay(f"taught-{namespace.namespace[-8:]}")
    # The scripted teacher knows answers by their questions, and many images are asked the same one.
    run.settings("distill", teacher="openai", model="scripted", answer_from_evidence="false")
    run.orchestrator("--until", "distill").apply(namespace)
    namespace.completes(run.pipeline, 180)
    assert node.ask("asked") - asked >= 137  # a request at least for each row that is not held out
    logs = namespace.logs(f"{run.run_id}-distill-shards")
    assert '"stage": "distill"' in logs
    assert KEY not in logs + namespace.logs(run.pipeline)
    for job in namespace.list("Job", run=run.run_id):
        sources = job["spec"]["template"]["spec"]["containers"][0]["envFrom"]
        secrets = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
        assert ("teacher-credentials" in secrets) == (job["metadata"]["labels"]["vcot/stage"] == "distill")
