"""A new promotion reaches what serves it: Deployments whose pods fetch a promoted model when they start.

Which promotion is served stands in an annotation of a Deployment's pod template. To change it is a rollout like any
other: new pods are up before old ones go, `kubectl rollout status` shows it, `kubectl rollout undo` takes it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.subjects import promotion_at, unchanged
from vcot.pipeline.client import ClusterClient, Manifest
from vcot.records.shards import TRAIN
from vcot.storage import Store

PROMOTION = "vcot/promotion"
CLOCKS = 300.0
"""Seconds by which the clocks of the cluster and of whoever promoted may differ."""


def roll_out(store: Store, cluster: ClusterClient, pointer_uri: str, deployments: Sequence[str]) -> list[str]:
    """Has the Deployments serve the newest promotion of a line, and returns those that were changed.

    Where `pointer_uri` names one promotion, their pods take that and no other, and nothing is done.

    Raises InputError: nothing was promoted, the model is not what was promoted, or there is no such Deployment.
    """
    wanted = promotion_at(store, pointer_uri)
    unchanged(store, wanted.promotion.train_uri, TRAIN, wanted.promotion.train_sha256, wanted)
    if pointer_uri.endswith(".json"):
        logging.get().info("one promotion is named, and stays", promotion=pointer_uri)
        return []
    promoted = datetime.fromisoformat(wanted.promotion.promoted).timestamp()
    changed = []
    for name in deployments:
        deployment = cluster.get("Deployment", name)
        if deployment is None:
            raise InputError(f"there is no Deployment {name} in namespace {cluster.namespace}")
        if _serves(deployment, wanted.uri, promoted):
            logging.get().info("the newest promotion is served", deployment=name, promotion=wanted.uri)
            continue
        template = {"metadata": {"annotations": {PROMOTION: wanted.uri}}}
        cluster.patch("Deployment", name, {"spec": {"template": template}})
        logging.get().info("a new promotion is rolled out", deployment=name, promotion=wanted.uri)
        changed.append(name)
    return changed


def _serves(deployment: Manifest, uri: str, promoted: float) -> bool:
    """Without the annotation its pods have taken what was the newest when they started, so one that was promoted before
    there was a Deployment is what they serve."""
    template = deployment["spec"]["template"].get("metadata") or {}
    there = (template.get("annotations") or {}).get(PROMOTION)
    if there is not None:
        return bool(there == uri)
    created = datetime.fromisoformat(deployment["metadata"]["creationTimestamp"]).timestamp()
    return promoted + CLOCKS < created
