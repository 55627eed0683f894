"""Jobs made from a stage's template, as `kubectl create job --from=cronjob/…` makes them, with a change or two."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.cluster import Cluster, Manifest


def from_template(
    cluster: Cluster, stage: str, name: str, *, command: list[str] | None = None, args: list[str] | None = None,
    variables: dict[str, str] | None = None, **spec: Any,
) -> Manifest:  # fmt: skip
    """A Job of the template stage-<stage>, not yet created.

    Args:
        variables: beat those of the template.
        spec: fields of the Job's own spec, as backoffLimit.
    """
    template = cluster.get("cronjobs", f"stage-{stage}")
    assert template is not None
    job = copy.deepcopy(template["spec"]["jobTemplate"])
    job |= {"apiVersion": "batch/v1", "kind": "Job"}
    job["metadata"] = {**job.get("metadata", {}), "name": name}
    job["spec"] |= spec
    main = container(job)
    if command is not None:
        main["command"] = command
    if args is not None:
        main["args"] = args
    given = variables or {}
    kept = [v for v in main.get("env", ()) if v["name"] not in given]
    main["env"] = [*kept, *({"name": n, "value": v} for n, v in given.items())]
    return job


def container(job: Manifest) -> Manifest:
    found: Manifest = job["spec"]["template"]["spec"]["containers"][0]
    return found


def python(program: str) -> dict[str, Any]:
    """For `from_template`: the same image and rights, another program."""
    return {"command": ["python", "-c", program], "args": []}
