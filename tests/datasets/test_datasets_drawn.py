"""Drawn scenes as Samples."""

from __future__ import annotations

from pathlib import Path

from tests.datasets.given import Given
from vcot.grounding import place
from vcot.records import Sample


def test_three_scenes(given: Given) -> None:
    results = given.outcomes("scenes", scenes=3, questions=("where", "count", "presence"))
    samples = [r for r in results if isinstance(r, Sample)]
    assert [s.id for s in samples] == ["scene:000000", "scene:000001", "scene:000002"]
    assert all(Path(s.image.uri).exists() for s in samples)
    where, count, presence = samples
    assert where.true_boxes is not None
    assert count.true_boxes is not None
    if where.true_boxes:
        assert where.answers == (place(where.true_boxes[0], where.image.width, where.image.height),)
    assert count.answers == (str(len(count.true_boxes)),)
    assert presence.answers == ("yes" if presence.true_boxes else "no",)


def test_a_scene_is_the_same_in_every_shard_and_run_and_another_with_another_seed(given: Given, tmp_path: Path) -> None:
    def digests(seed: int, readers: int) -> list[str]:
        results = Given(tmp_path / f"{seed}-{readers}").outcomes("scenes", scenes=4, seed=seed, readers=readers)
        return [r.image.sha256 for r in results if isinstance(r, Sample)]

    assert digests(1, 1) == digests(1, 3)
    assert not set(digests(1, 1)) & set(digests(2, 1))
