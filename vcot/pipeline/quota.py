"""Is there room in the namespace's quotas? A quota that is too small refuses pods, and only an event tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vcot.pipeline.findings import Finding, missing, note, ok
from vcot.pipeline.nodes import quantity, written
from vcot.pipeline.port import Manifest

_MUST_BE_WRITTEN = ("requests.cpu", "cpu", "requests.memory", "memory", "limits.cpu", "limits.memory")
"""A quota on one of these refuses every pod that does not write it."""


def judge_quotas(
    pods: Mapping[str, Manifest], conductor: str, quotas: Sequence[Manifest], limit_ranges: Sequence[Manifest]
) -> list[Finding]:
    """
    Args:
        pods: what runs in it ("train") → its pod spec; the largest has to fit beside the `conductor`, one of them.
        limit_ranges: of the namespace; they write into pods what these leave open.
    """
    if not quotas:
        return [ok("no quota limits the namespace")]
    defaults = _defaults(limit_ranges)
    found = [finding for quota in quotas for finding in _judge(pods, conductor, quota, defaults)]
    return found or [ok("the quotas of the namespace have room for every stage")]


def _judge(
    pods: Mapping[str, Manifest], conductor: str, quota: Manifest, defaults: Mapping[str, Mapping[str, str]]
) -> Iterable[Finding]:
    name = quota["metadata"]["name"]
    if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
        yield note(f"quota {name} is for some pods only (scopes); whether ours are among them was not judged")
        return
    used = (quota.get("status") or {}).get("used") or {}
    for resource, hard in (quota["spec"].get("hard") or {}).items():
        needs = {stage: _needs(pod, resource, defaults) for stage, pod in pods.items()}
        if silent := [stage for stage, need in needs.items() if need is None]:
            yield missing(
                f"quota {name} is on {resource}, and pods that do not write it are refused: {', '.join(silent)}",
                f"write {resource} into the templates with a patch, or add a LimitRange with a default for it",
            )
            continue
        beside = needs.get(conductor) or 0.0
        amounts = {stage: (need or 0.0) + (beside if stage != conductor else 0.0) for stage, need in needs.items()}
        stage = max(amounts, key=lambda each: amounts[each], default=conductor)
        need, most, now = amounts.get(stage, 0.0), quantity(hard), quantity(used.get(resource, "0"))
        what = f"quota {name} allows {written(resource, most)} of {resource}"
        fix = f"ask for {written(resource, need)}, or let {stage} take less"
        if need > most:
            yield missing(f"{what}; {stage} (beside the conductor) needs {written(resource, need)}", fix)
        elif need > most - now:
            yield note(
                f"{what}, of which {written(resource, now)} are in use now; {stage} needs {written(resource, need)} "
                "and would wait for it"
            )


def _needs(pod: Manifest, resource: str, defaults: Mapping[str, Mapping[str, str]]) -> float | None:
    """How much of what the quota counts one pod takes; None where it does not write what it must."""
    if resource in ("pods", "count/pods", "count/jobs.batch"):
        return 1.0
    kind, plain = resource.split(".", 1) if resource.startswith(("requests.", "limits.")) else ("requests", resource)
    amounts = [_of(container, kind, plain, defaults) for container in pod["containers"]]
    if None in amounts and resource in _MUST_BE_WRITTEN:
        return None
    return sum(amount or 0.0 for amount in amounts)


def _of(container: Manifest, kind: str, plain: str, defaults: Mapping[str, Mapping[str, str]]) -> float | None:
    resources = container.get("resources") or {}
    written_down = (resources.get(kind) or {}).get(plain)
    if written_down is None and kind == "requests":
        written_down = (resources.get("limits") or {}).get(plain)
    if written_down is None:
        written_down = defaults[kind].get(plain)
    return None if written_down is None else quantity(written_down)


def _defaults(limit_ranges: Iterable[Manifest]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for one in limit_ranges:
        for limit in one["spec"].get("limits") or []:
            if limit.get("type") == "Container":
                found["limits"] |= limit.get("default") or {}
                found["requests"] |= (limit.get("default") or {}) | (limit.get("defaultRequest") or {})
    return found
