"""A new promotion reaches what serves it: Deployments whose pods fetch a promoted model when they start.

Which promotion is served stands in an annotation of a Deployment's pod template. To change it is a rollout like any
other: new pods are up before old ones go, `kubectl rollout status` shows it, `kubectl rollout undo` takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.subjects import promoted_stage, promotion_at
from vcot.pipeline.client import ClusterClient
from vcot.records.shards import TRAIN
from vcot.storage import Store

PROMOTION = "vcot/promotion"


def roll_out(store: Store, cluster: ClusterClient, pointer_uri: str, deployments: Sequence[str]) -> list[str]:
    """Has the Deployments serve the newest promotion of a line, and returns the one that was changed, if any.

    One after the other, in this order: the next is changed by a later call that finds all pods of those before it up
    with that promotion. So a page never reads a model by the contract of one that is still to come, or never does.

    Where `pointer_uri` names one promotion, their pods take that and no other, and nothing is done.

    Raises InputError: nothing was promoted, the model is not what was promoted, or there is no such Deployment.
    """
    wanted = promotion_at(store, pointer_uri)
    promoted_stage(store, wanted.promotion.train_uri, TRAIN, wanted.promotion.train_sha256, wanted)
    if pointer_uri.endswith(".json"):
        logging.get().info("one promotion is named, and stays", promotion=pointer_uri)
        return []
    for name in deployments:
        deployment = cluster.get("Deployment", name)
        if deployment is None:
            raise InputError(f"there is no Deployment {name} in namespace {cluster.namespace}")
        template = deployment["spec"]["template"].get("metadata") or {}
        if (template.get("annotations") or {}).get(PROMOTION) == wanted.uri:
            if _is_up(deployment):
                logging.get().info("the newest promotion is served", deployment=name, promotion=wanted.uri)
                continue
            logging.get().info("a promotion is being rolled out", deployment=name, promotion=wanted.uri)
            return []
        # Also where nothing is written yet, though its pods have taken the newest: a revision without a name could not
        # be gone back to.
        change = {"metadata": {"annotations": {PROMOTION: wanted.uri}}}
        cluster.patch("Deployment", name, {"spec": {"template": change}})
        logging.get().info("a new promotion is rolled out", deployment=name, promotion=wanted.uri)
        return [name]
    return []


def _is_up(deployment: Mapping[str, Any]) -> bool:
    """Whether its rollout is over, as `kubectl rollout status` judges."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return seen and all(
        status.get(count, 0) == wanted for count in ("replicas", "updatedReplicas", "availableReplicas")
    )
