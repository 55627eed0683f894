"""A new promotion reaches what serves it: Deployments whose pods fetch a promoted model when they start.

Which promotion is served stands in an annotation of a Deployment's pod template. To change it is a rollout like any
other: new pods are up before old ones go, `kubectl rollout status` shows it, `kubectl rollout undo` takes it back.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcot import logging
from vcot.errors import InputError
from vcot.evaluation.subjects import promotion_at, unchanged
from vcot.pipeline.client import ClusterClient
from vcot.records.shards import TRAIN
from vcot.storage import Store

PROMOTION = "vcot/promotion"


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
    changed = []
    for name in deployments:
        deployment = cluster.get("Deployment", name)
        if deployment is None:
            raise InputError(f"there is no Deployment {name} in namespace {cluster.namespace}")
        template = deployment["spec"]["template"].get("metadata") or {}
        if (template.get("annotations") or {}).get(PROMOTION) == wanted.uri:
            logging.get().info("the newest promotion is served", deployment=name, promotion=wanted.uri)
            continue
        # Also where nothing is written yet, though its pods have taken the newest: a revision without a name could not
        # be gone back to.
        change = {"metadata": {"annotations": {PROMOTION: wanted.uri}}}
        cluster.patch("Deployment", name, {"spec": {"template": change}})
        logging.get().info("a new promotion is rolled out", deployment=name, promotion=wanted.uri)
        changed.append(name)
    return changed
