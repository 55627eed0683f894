"""Killed at random moments, the chain makes what it makes undisturbed. `make bench-kill` does it sixty times."""

import pytest

from tests.chain.kill import ROOT, compare


@pytest.mark.chain
def test_ten_kills_over_all_stages_change_nothing(minio_place: str) -> None:
    if not (ROOT / "examples/rehearsal/model.safetensors").exists():
        pytest.skip("no rehearsal model in examples/rehearsal")
    result = compare(f"{minio_place}/runs", f"{minio_place}/base", kills=10, seed=3)
    assert result["same"], result["differing"]
    assert sum(count for what, count in result["kills"].items() if what.endswith(": killed")) >= 5
