"""Where the kills of `make bench-kill` fall; CI makes seven of them, one in each stage and in each training."""

from tests.chain.kill import NAMES, draw


def test_every_stage_has_its_kill_however_short_it_is() -> None:
    took = {
        "convert": 2.0,
        "distill": 1.5,
        "tokenize": 9.0,
        "train": 900.0,
        "evaluate": 40.0,
        "grpo": 60.0,
        "gfn": 50.0,
    }
    for seed in range(5):
        moments = draw(took, 10, seed)
        assert sum(map(len, moments.values())) == 10
        for stage in NAMES:
            assert 0 <= moments[stage][0] <= took[stage] / 2
            assert all(0 <= moment <= took[stage] for moment in moments[stage])
        assert draw(took, 10, seed) == moments != draw(took, 10, seed + 1)
