"""Quotas that are too small, that are used up now, and that refuse what does not write its limits."""

from __future__ import annotations

import pytest

from vcot.pipeline.quota import judge_quotas


def pod(cpu="4", memory="24Gi", gpu=None):
    limits = {"memory": "48Gi"} | ({"nvidia.com/gpu": gpu} if gpu else {})
    return {
        "containers": [{"name": "main", "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": limits}}]
    }


PODS = {"train": pod(gpu="1"), "convert": pod("1", "2Gi"), "pipeline": pod("50m", "128Mi")}


def quota(hard, used=None, **spec):
    return {"metadata": {"name": "team"}, "spec": {"hard": hard, **spec}, "status": {"used": used or {}}}


def judge(*quotas, ranges=()):
    return [(f.kind, f.words) for f in judge_quotas(PODS, "pipeline", list(quotas), list(ranges))]


def test_without_a_quota_nothing_limits():
    assert judge() == [("ok", "no quota limits the namespace")]


def test_room_enough():
    hard = {"requests.cpu": "5", "requests.memory": "32Gi", "requests.nvidia.com/gpu": "1", "pods": "5", "secrets": "3"}
    assert judge(quota(hard)) == [("ok", "the quotas of the namespace have room for every stage")]


@pytest.mark.parametrize(
    ("hard", "said"),
    [
        (
            {"requests.nvidia.com/gpu": "0"},
            "quota team allows 0 of requests.nvidia.com/gpu; train (beside the conductor) needs 1",
        ),
        ({"requests.cpu": "4"}, "quota team allows 4 of requests.cpu; train (beside the conductor) needs 4.05"),
        ({"limits.memory": "90Gi"}, "quota team allows 90Gi of limits.memory; train (beside the conductor) needs 96Gi"),
        ({"memory": "20Gi"}, "quota team allows 20Gi of memory; train (beside the conductor) needs 24.1Gi"),
        ({"pods": "1"}, "quota team allows 1 of pods; train (beside the conductor) needs 2"),
    ],
)
def test_too_small_for_the_largest_stage(hard, said):
    assert judge(quota(hard)) == [("missing", said)]


def test_used_up_for_now_is_a_note():
    ((kind, words),) = judge(quota({"requests.nvidia.com/gpu": "2"}, {"requests.nvidia.com/gpu": "2"}))
    assert kind == "note"
    assert words.endswith("of which 2 are in use now; train needs 1 and would wait for it")


def test_a_quota_on_what_templates_leave_open_refuses_their_pods():
    ((kind, words),) = judge(quota({"limits.cpu": "100"}))
    assert kind == "missing"
    assert words == ("quota team is on limits.cpu, and pods that do not write it are refused: train, convert, pipeline")
    ranges = [{"spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}}]}}]
    assert judge(quota({"limits.cpu": "100"}), ranges=ranges)[0][0] == "ok"


def test_a_quota_for_some_pods_only_is_not_judged():
    assert judge(quota({"pods": "0"}, scopes=["BestEffort"]))[0][0] == "note"
