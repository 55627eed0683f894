"""Killed at random moments, the chain makes what it makes undisturbed. `make bench-kill` does it sixty times."""

import pytest

from tests.chain.kill import compare, draw
from vcot.settings import STAGES


@pytest.mark.parametrize("seed", range(5))
def test_every_stage_has_its_kill_however_short_it_is(seed: int) -> None:
    took = {"convert": 2.0, "distill": 1.5, "tokenize": 9.0, "train": 900.0, "evaluate": 40.0}
    moments = draw(took, 10, seed)
    assert sum(map(len, moments.values())) == 10
    for stage in STAGES:
        assert 0 <= moments[stage][0] <= took[stage] / 2
        assert all(0 <= moment <= took[stage] for moment in moments[stage])
    assert draw(took, 10, seed) == moments != draw(took, 10, seed + 1)


@pytest.mark.chain
def test_a_kill_of_every_stage_changes_nothing(minio_place: str) -> None:
    result = compare(f"{minio_place}/runs", f"{minio_place}/base", kills=len(STAGES), seed=3)
    assert result["same"], result["differing"]
    assert {f"{stage}: killed" for stage in STAGES} <= result["kills"].keys(), result["kills"]
