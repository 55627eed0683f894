"""Settings of runs that are gone: each apply with other lines makes ConfigMaps of another name, and removes none."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta

from vcot import log
from vcot.pipeline.port import Cluster, Manifest, Refused

HOLDS_SETTINGS = "vcot/holds=settings"
"""Label of what kustomize generates for us, whatever hash its name ends in."""
YOUNG = timedelta(days=1)
"""An apply makes ConfigMaps first and then what names them."""


APPLY = 15.0
"""Seconds that an apply needs from the ConfigMaps, which it may find unchanged, to what names them."""


def remove_old_settings(cluster: Cluster, now: datetime, wait: Callable[[float], None]) -> None:
    """Deletes ConfigMaps with settings that no template, no Job and no frozen plan names; a day old, at least.

    No look before can tell of an apply that has just found one of them as it should be, so one follows: what is named
    by then is put back.
    """
    try:
        old = [
            one
            for one in cluster.list("ConfigMap", labels=HOLDS_SETTINGS)
            if now - datetime.fromisoformat(one["metadata"]["creationTimestamp"]) > YOUNG
        ]
        if not old:
            return
        named = _naming(cluster)  # after that list: what is named meanwhile is seen here
        gone = [one for one in old if one["metadata"]["name"] not in named]
        for one in gone:
            cluster.delete("ConfigMap", one["metadata"]["name"])
        if not gone:
            return
        try:
            wait(APPLY)
        finally:
            named = _naming(cluster)
            for one in gone:
                if one["metadata"]["name"] in named:
                    _put_back(cluster, one)
    except Refused as error:
        log.get().warning(f"settings of earlier runs are left where they are: {error}")


def _naming(cluster: Cluster) -> str:
    """All that may name settings, as text; their names end in a hash, so that no other word holds one."""
    naming = [one for kind in ("CronJob", "Job") for one in cluster.list(kind)]
    naming += cluster.list("ConfigMap", labels="vcot/run")
    return json.dumps(naming)


def _put_back(cluster: Cluster, one: Manifest) -> None:
    metadata = {name: one["metadata"][name] for name in ("name", "labels", "annotations") if name in one["metadata"]}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": one.get("data") or {}}
    try:
        cluster.create("ConfigMap", manifest)
    except Refused as error:  # component hardening lets the conductor write no settings
        log.get().warning(
            f"ConfigMap {metadata['name']} was removed while an apply named it again ({error}): apply once more"
        )
