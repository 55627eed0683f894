"""The rows of the probe's benchmark: the written box alone says what is right for the one model, and for the other the
image alone; and when the benchmark fails."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.probe import SAYS, Drawn, draw, faults, half, row


def answers(model: Any, drawn: list[Drawn], split: str = "train") -> Counter[tuple[Any, ...]]:
    """The half of the written box (where none is, of the true one), the half of the thing, and the answer."""
    rows = [row(model, split, number, one) for number, one in enumerate(drawn)]
    return Counter(
        (half(each["reasoning"][0][1]["boxes"][0] if each["reasoning"] else one.box), half(one.box), each["answers"][0])
        for each, one in zip(rows, drawn, strict=True)
    )


def test_answers_follow_the_written_box_or_the_image_and_the_other_says_nothing() -> None:
    drawn = [draw(number) for number in range(16)]
    top, bottom = "top", "bottom"
    assert answers("needs", drawn) == {(0, 0, top): 4, (0, 1, top): 4, (1, 0, bottom): 4, (1, 1, bottom): 4}
    assert answers("ignores", drawn) == {(0, 0, top): 4, (0, 1, bottom): 4, (1, 0, top): 4, (1, 1, bottom): 4}
    for model in SAYS:  # what both are asked has one right answer, by the image
        assert answers(model, drawn, "test") == {(0, 0, top): 8, (1, 1, bottom): 8}


def report(moved: float, right: float = 0.9, says: str | None = None) -> dict[str, Any]:
    about = {"value": moved, "low": moved - 0.05, "high": moved + 0.05}
    return {
        "results": [{"key": "subject-real", "figures": {"answer_accuracy": {"value": right}}}],
        "probes": [{"probe": "boxes-moved", "figures": {"changed": about}, "difference": {"changed": about}}],
        "verdict": {"notes": [says or SAYS["needs" if moved > 0.5 else "ignores"]]},
    }


def test_models_that_the_probe_does_not_tell_apart_are_a_fault() -> None:
    assert faults({"needs": report(0.9), "ignores": report(0.1)}) == []
    assert len(faults({"needs": report(0.1), "ignores": report(0.9)})) == 4  # two verdicts, two intervals
    assert len(faults({"needs": report(0.9), "ignores": report(0.82, says=SAYS["ignores"])})) == 2
    (fault,) = faults({"needs": report(0.9), "ignores": report(0.1, right=0.7)})
    assert fault == "ignores: 70% of its answers are right, and 80% are wanted"
