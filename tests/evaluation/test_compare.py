"""Is a model worse than it was? Rows are paired, luck is no regression, a clear fall is one."""

from __future__ import annotations

import random

import pytest

from tests.evaluation.evaluation_samples import scored
from tests.fakes.markers import stage_marker
from vcot.errors import InputError
from vcot.evaluation.compare import changes, compare, comparison_gates, judge_gates
from vcot.evaluation.metrics import measure
from vcot.evaluation.subjects import Finished
from vcot.records import Score

SETTINGS = {"max_new_tokens": 64, "quantization": "none", "dtype": "float32", "per_device_eval_batch_size": 8,
            "max_samples": None, "seed": 0, "split": "auto", "synonyms": []}  # fmt: skip
BASELINE = Finished("s3://b/runs/one/evaluate", stage_marker("evaluate", SETTINGS), "ab" * 32)


def rows(answers: str, boxes: str) -> list[Score]:
    """One Score per letter: r(ight), w(rong), a(bsent); and 1 or 0 of one true box found."""
    kinds = {"r": "right", "w": "wrong", "a": "absent"}
    return [
        scored(f"row-{n}", answer=kinds[a], matched=int(b), ious=(0.8 if b == "1" else 0.1,))  # type: ignore[arg-type]
        for n, (a, b) in enumerate(zip(answers, boxes, strict=True))
    ]


def compared(now: list[Score], before: list[Score], **other):
    return compare(
        now, before, **({"baseline": BASELINE, "settings": SETTINGS, "max_left_out_share": 0.05, "seed": 0} | other)
    )


def passed(comparison) -> dict[str, bool]:
    return {gate["gate"].split()[0]: gate["passed"] for gate in comparison_gates(comparison)}


def test_the_same_again_is_a_tie_and_passes():
    before = rows("rrrwa" * 8, "11100" * 8)
    comparison = compared(list(before), before)
    assert comparison["regressions"] == []
    assert comparison["figures"]["accuracy_at_50"]["difference"]["value"] == 0
    assert passed(comparison) == {"accuracy_at_50": True, "answer_accuracy": True}


def test_a_clear_fall_is_a_regression_and_says_its_numbers():
    before, now = rows("r" * 40, "1" * 36 + "0" * 4), rows("r" * 40, "1" * 16 + "0" * 24)
    comparison = compared(now, before)
    assert comparison["regressions"] == ["accuracy_at_50"]
    failed = [gate["words"] for gate in comparison_gates(comparison) if not gate["passed"]]
    assert len(failed) == 1
    assert failed[0].startswith("regression of accuracy_at_50: 90 % → 40 %, −50 points (−65 to −35) on 40 rows")
    assert "s3://b/runs/one/evaluate" in failed[0]
    assert len(comparison["boxes_lost"]) == 20
    assert changes(comparison)["change_accuracy_at_50"][0] == -0.5


def test_one_image_that_falls_is_no_regression_however_many_rows_it_has():
    """Ten images with six rows each; all rows of one fall. Drawn row by row that would be sure."""

    def about(image: int, found: str) -> list[Score]:
        each = rows("r" * 6, found * 6)
        return [s.model_copy(update={"sample": f"{image}-{s.sample}", "image": f"{image}"}) for s in each]

    before = [score for image in range(10) for score in about(image, "1")]
    now = [*about(0, "0"), *before[6:]]
    assert compared(now, before)["regressions"] == []


def test_all_lost_has_no_spread_and_is_a_regression_all_the_same():
    comparison = compared(rows("w" * 30, "0" * 30), rows("r" * 30, "1" * 30))
    assert comparison["regressions"] == ["accuracy_at_50", "answer_accuracy"]


def test_rows_are_paired():
    """Eight of 60 rows fall while the rest stays as hard or easy as it was: the intervals of the two overlap widely,
    that of the paired difference does not reach 0."""
    dice = random.Random(0)
    found = ["1" if dice.random() < 0.5 else "0" for _ in range(60)]
    ones = [index for index, each in enumerate(found) if each == "1"][:8]
    worse = ["0" if index in ones else each for index, each in enumerate(found)]
    now, before = rows("r" * 60, "".join(worse)), rows("r" * 60, "".join(found))
    apart = measure({"now": now, "before": before}).figures
    assert apart["now"]["accuracy_at_50"].high > apart["before"]["accuracy_at_50"].low
    assert compared(now, before)["regressions"] == ["accuracy_at_50"]


def test_rows_of_one_side_are_left_out_and_counted_up_to_the_allowed_share():
    before = rows("r" * 40, "1" * 40)
    comparison = compared(before[:-2], before)
    assert (comparison["rows"], comparison["left_out"]) == (38, 2)
    with pytest.raises(InputError, match="37 of 40 rows are the same in both; pin an evaluation of the same samples"):
        compared(before[:-3], before)


def test_a_row_that_was_annotated_anew_is_another_row():
    before = rows("r" * 40, "1" * 40)
    anew = before[0].model_copy(update={"true_boxes": 2, "ious": (0.8, 0.0)})
    assert compared([anew, *before[1:]], before)["left_out"] == 1


def test_a_baseline_about_something_else_is_refused():
    other = [score.model_copy(update={"sample": f"other-{score.sample}"}) for score in rows("r" * 4, "1" * 4)]
    with pytest.raises(InputError, match="cannot be the baseline: 0 of 4 rows"):
        compared(rows("r" * 4, "1" * 4), other)


def test_what_was_asked_otherwise_is_told():
    before = rows("r" * 4, "1" * 4)
    comparison = compared(before, before, settings=SETTINGS | {"max_new_tokens": 128})
    assert comparison["asked_otherwise"] == ["max_new_tokens was 64 and is 128"]


def test_without_boxes_answers_are_judged_alone():
    plain = [
        score.model_copy(update={"true_boxes": None, "ious": (), "matched": 0}) for score in rows("r" * 9, "0" * 9)
    ]
    assert passed(compared(plain, plain)) == {"answer_accuracy": True}


# --- the gate of a promotion -------------------------------------------------------------------------------


def figure(value: float | None, low: float | None, high: float | None) -> dict:
    return {
        "value": value,
        "low": low,
        "high": high,
        "rows": 50,
        "count": 50,
        "of": "true boxes",
        "interval": "bootstrap",
    }


def report(**differences) -> dict:
    """What the gate reads of a report: key of a difference → (boxes, answers)."""
    names = ("accuracy_at_50", "answer_accuracy")
    measured = [
        {"key": key.replace("_", "-"), "figures": {name: figure(*each) for name, each in zip(names, pair, strict=True)}}
        for key, pair in differences.items()
    ]
    reached = {"key": "tuned-real", "figures": {name: figure(0.8, 0.7, 0.9) for name in names}}
    return {"results": [reached], "differences": measured}


CLEAR, NONE = (0.6, 0.5, 0.7), (0.02, -0.03, 0.06)


@pytest.mark.parametrize(
    ("blank", "wrong", "passes"),
    [
        ((CLEAR, CLEAR), (CLEAR, CLEAR), [True, True]),
        ((CLEAR, NONE), (CLEAR, NONE), [True, True]),  # boxes come from looking, answers from habit
        ((NONE, CLEAR), (CLEAR, CLEAR), [False, True]),
        ((CLEAR, CLEAR), (NONE, CLEAR), [True, False]),
        (((0.5, None, None), CLEAR), (CLEAR, CLEAR), [False, True]),  # no interval, nothing clear
    ],
)
def test_a_promoted_model_must_look(blank, wrong, passes):
    gates = judge_gates(report(real_blank=blank, real_wrong=wrong), depends_on_image=True)
    assert [gate["passed"] for gate in gates] == passes


def test_what_was_not_measured_is_not_passed():
    gates = judge_gates(report(), depends_on_image=True)
    assert [gate["passed"] for gate in gates] == [False, False]
    assert gates[0]["words"] == "accuracy_at_50 clearly better on real images than on blank ones: not measured"


def test_without_boxes_the_answers_must_come_from_looking():
    made = report(real_blank=(NONE, CLEAR), real_wrong=(NONE, CLEAR))
    made["results"][0]["figures"]["accuracy_at_50"]["value"] = None
    gates = judge_gates(made, depends_on_image=True)
    assert [gate["passed"] for gate in gates] == [True, True]
    assert "answer_accuracy" in gates[0]["gate"]
