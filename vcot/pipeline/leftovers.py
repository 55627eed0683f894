"""Settings of runs that are gone: each apply with other lines makes ConfigMaps of another name, and removes none."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from vcot import log
from vcot.pipeline.port import Cluster, Refused

HOLDS_SETTINGS = "vcot/holds=settings"
"""Label of what kustomize generates for us, whatever hash its name ends in."""
YOUNG = timedelta(days=1)
"""An apply makes ConfigMaps first and then what names them."""


def remove_old_settings(cluster: Cluster, now: datetime) -> None:
    """Deletes ConfigMaps with settings that no template, no Job and no frozen plan names; a day old, at least."""
    try:
        old = [
            one["metadata"]["name"]
            for one in cluster.list("ConfigMap", labels=HOLDS_SETTINGS)
            if now - datetime.fromisoformat(one["metadata"]["creationTimestamp"]) > YOUNG
        ]
        if not old:
            return
        # After that list: what is named meanwhile is seen here
        naming = [one for kind in ("CronJob", "Job") for one in cluster.list(kind)]
        naming += cluster.list("ConfigMap", labels="vcot/run")
        text = json.dumps(naming)
        for name in old:
            if name not in text:  # it ends in a hash, so that no other word holds it
                cluster.delete("ConfigMap", name)
    except Refused as error:
        log.get().warning(f"settings of earlier runs are left where they are: {error}")
