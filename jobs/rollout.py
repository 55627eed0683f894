"""Deployments that serve a promoted model get the newest one: `python -m jobs.rollout`, in a pod of the cluster."""

from __future__ import annotations

import os
from typing import ClassVar

from vcot.errors import SettingsError
from vcot.settings import CommaSeparated, Declared, setting
from vcot.stage import launch, stop, summary


class RolloutSettings(Declared):
    """Writes the newest promotion into the annotation vcot/promotion of each Deployment's pod template, where another
    one stands there, which starts a rollout. The pods fetch that promotion (jobs.fetch).

    Needs the variable POD_NAMESPACE, and the rights to get and patch these Deployments.
    """

    stage: ClassVar[str] = "rollout"

    pointer_uri: str = setting(
        description="line of promoted models, as s3://vcot/runs/pointers/latest; where it names one promotion "
        "(….json), nothing is changed", min_length=1,
    )  # fmt: skip
    deployments: CommaSeparated = setting(("model", "page"), "Deployments that serve it, separated by commas")

    @property
    def run_name(self) -> str:
        return "rollout"


def run(settings: RolloutSettings) -> None:
    from vcot.pipeline.client import connect
    from vcot.pipeline.orchestrator import Clock
    from vcot.pipeline.rollout import roll_out
    from vcot.storage import Store

    namespace = os.environ.get("POD_NAMESPACE")
    if not namespace:
        raise SettingsError("POD_NAMESPACE is not set: the namespace of the Deployments, as k8s/serving sets it")
    cluster = connect(namespace, Clock(), stop)
    summary(rolled_out=roll_out(Store(), cluster, settings.pointer_uri, settings.deployments))


if __name__ == "__main__":
    launch(RolloutSettings, run)
