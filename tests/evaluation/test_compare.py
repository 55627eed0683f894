"""Is a model worse than it was? Rows are paired, luck is no regression, a clear fall is one."""

from __future__ import annotations

import pytest

from tests.fakes.evaluating import scored
from tests.fakes.markers import stage_marker
from vcot.errors import InputError
from vcot.evaluation.compare import changes, compare, comparison_gates, markdown
from vcot.evaluation.subjects import Finished
from vcot.records import Score

SETTINGS = {"max_new_tokens": 64, "quantization": "none", "dtype": "float32", "per_device_eval_batch_size": 8,
            "max_samples": None, "seed": 0, "split": "auto", "synonyms": []}  # fmt: skip
BASELINE = Finished("s3://b/runs/one/evaluate", stage_marker("evaluate", SETTINGS), "ab" * 32)
KINDS = {"r": "right", "w": "wrong", "a": "absent"}


def rows(answers: str, boxes: str) -> list[Score]:
    """One Score per letter: r(ight), w(rong), a(bsent); and 1 or 0 of one true box found."""
    return [
        scored(f"row-{n}", answer=KINDS[a], matched=int(b), ious=(0.8 if b == "1" else 0.1,))
        for n, (a, b) in enumerate(zip(answers, boxes, strict=True))
    ]


def compared(now: list[Score], before: list[Score], **other):
    given = {"baseline": BASELINE, "settings": SETTINGS, "max_left_out_share": 0.05, "seed": 0} | other
    return compare(now, before, **given)


ALL = rows("r" * 40, "1" * 40)


@pytest.mark.parametrize(
    ("now", "before", "regressions"),
    [
        (rows("rrrwa" * 8, "11100" * 8), rows("rrrwa" * 8, "11100" * 8), []),
        (rows("w" * 30, "0" * 30), rows("r" * 30, "1" * 30), ["accuracy_at_50", "answer_accuracy"]),  # no spread
        (rows("r" * 40, "1" * 16 + "0" * 24), ALL, ["accuracy_at_50"]),
    ],
)
def test_a_clear_fall_is_a_regression_and_a_tie_is_none(now, before, regressions):
    comparison = compared(now, before)
    assert comparison["regressions"] == regressions
    assert {gate["gate"].split()[0]: gate["passed"] for gate in comparison_gates(comparison)} == {
        name: name not in regressions for name in ("accuracy_at_50", "answer_accuracy")
    }


def test_a_regression_says_its_numbers():
    now, before = rows("r" * 40, "1" * 16 + "0" * 24), rows("r" * 40, "1" * 36 + "0" * 4)
    comparison = compared(now, before, settings=SETTINGS | {"max_new_tokens": 128})
    assert comparison["asked_otherwise"] == ["max_new_tokens was 64 and is 128"]
    gate = comparison_gates(comparison)[0]
    assert gate["words"].startswith("regression of accuracy_at_50: 90 % → 40 %, −50 points (−65 to −35) on 40 rows")
    assert "s3://b/runs/one/evaluate" in gate["words"]
    assert len(comparison["boxes_lost"]) == 20
    assert changes(comparison)["accuracy_at_50"]["value"] == -0.5
    page = markdown(comparison, made_with={"subject": "lora"}, page_uri="s3://b/report.html")
    assert "| found | 90 % | 40 % | −50 points (−65 to −35) | 40 true boxes |" in page
    assert "## Rows with fewer boxes found: 20\n" in page


def test_rows_that_cannot_be_paired_are_left_out_up_to_the_allowed_share():
    annotated_anew = ALL[0].model_copy(update={"true_boxes": 2, "ious": (0.8, 0.0)})
    for now, left_out in ((ALL[:-2], 2), ([annotated_anew, *ALL[1:]], 1)):
        comparison = compared(now, ALL)
        assert (comparison["rows"], comparison["left_out"]) == (40 - left_out, left_out)
    with pytest.raises(InputError, match="37 of 40 rows are the same in both; pin an evaluation of the same samples"):
        compared(ALL[:-3], ALL)
    other = [score.model_copy(update={"sample": f"other-{score.sample}"}) for score in ALL]
    with pytest.raises(InputError, match="cannot be the baseline: 0 of 40 rows"):
        compared(ALL, other)
