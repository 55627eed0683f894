"""Which shard a process makes: its flag under both names, its variable, and the index that a Job gives its pods."""

from __future__ import annotations

import os

import pytest

from jobs.convert import ConvertSettings
from jobs.train import TrainSettings
from vcot.errors import SettingsError

GIVEN = ("--run-uri", "r", "--source", "scenes")
SHARDS = (*GIVEN, "--part", "shards")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("VCOT_") or n == "JOB_COMPLETION_INDEX"]:
        monkeypatch.delenv(name)


def load(*flags: str) -> ConvertSettings:
    return ConvertSettings.load(flags)[0]


def test_index_and_count_have_two_names_each() -> None:
    one = load(*SHARDS, "--shard", "3", "--num-shards", "8")
    other = load(*SHARDS, "--shard-index", "3", "--shard-count", "8")
    assert one == other
    assert (one.shard, one.num_shards) == (3, 8)


def test_in_a_pod_the_index_is_that_of_its_job_where_nobody_says_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "5")
    assert load(*SHARDS).shard == 5
    for part in ("all", "prepare", "finish"):  # pods of train on several nodes have one, too
        assert load(*GIVEN, "--part", part).shard is None
    assert TrainSettings.load(["--run-uri", "r", "--base-uri", "b"])[0].shard is None
    monkeypatch.setenv("VCOT_PART", "shards")
    assert load(*GIVEN).shard == 5
    monkeypatch.setenv("VCOT_SHARD", "6")
    assert load(*SHARDS).shard == 6
    assert load(*SHARDS, "--shard-index", "7").shard == 7


def test_a_shard_without_its_part_is_refused_by_the_name_in_the_help() -> None:
    with pytest.raises(SettingsError, match="--shard=3: one shard alone needs --part shards"):
        load(*GIVEN, "--shard-index", "3")
