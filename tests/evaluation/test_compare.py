"""Is a model worse than it was? Rows are paired, luck is no regression, a clear fall is one; several on one page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.evaluating import drawn, frame, said, sample, scored
from vcot.errors import InputError
from vcot.evaluation import comparison_page
from vcot.evaluation.compare import Run, compare, names
from vcot.evaluation.gates import judge_comparison
from vcot.evaluation.metrics import score
from vcot.records import Score
from vcot.storage import Store

SETTINGS = {"max_new_tokens": 64, "quantization": "none", "ask": ["ground"], "suite": []}
KINDS = {"r": "right", "w": "wrong", "a": "absent"}


def rows(answers: str, boxes: str) -> list[Score]:
    """One Score per letter: r(ight), w(rong), a(bsent); and 1 or 0 of one true box found."""
    return [
        scored(f"row-{n}", answer=KINDS[a], matched=int(b), ious=(0.8 if b == "1" else 0.1,))
        for n, (a, b) in enumerate(zip(answers, boxes, strict=True))
    ]


def run(name: str, scores: list[Score], **changes: Any) -> Run:
    ways = {"ground": {each.sample: each for each in scores}}
    made_with = {"subject": f"{name}'s model", "samples": "nowhere"}
    return replace(Run(name, f"s3://b/runs/{name}/evaluate", SETTINGS, ways, made_with), **changes)  # type: ignore[arg-type]


def compared(before: list[Score] | Run, *now: list[Score] | Run, **other: Any) -> dict[str, Any]:
    given = zip(("first", "second", "third"), (before, *now), strict=False)
    runs = [each if isinstance(each, Run) else run(name, each) for name, each in given]
    return compare(runs, other.pop("samples", {}), **({"max_left_out_share": 0.05, "seed": 0} | other))


ALL = rows("r" * 40, "1" * 40)


@pytest.mark.parametrize(
    ("now", "before", "regressions", "said"),
    [
        (rows("rrrwa" * 8, "11100" * 8), rows("rrrwa" * 8, "11100" * 8), [], "is not shown to differ from"),
        (rows("w" * 30, "0" * 30), rows("r" * 30, "1" * 30), ["accuracy_at_50", "answer_accuracy"], "is worse than"),
        (rows("r" * 40, "1" * 16 + "0" * 24), ALL, ["accuracy_at_50"], "is worse than"),
        (ALL, rows("r" * 40, "1" * 16 + "0" * 24), [], "is better than"),
        (rows("w" * 40, "1" * 40), rows("r" * 40, "0" * 40), ["answer_accuracy"], "is worse in one and better in"),
    ],
)
def test_a_clear_fall_is_a_regression_and_a_tie_is_none(now, before, regressions, said):
    comparison = compared(before, now)
    assert comparison["changes"][0]["regressions"] == regressions
    assert {gate["gate"].split()[0]: gate["passed"] for gate in judge_comparison(comparison)} == {
        name: name not in regressions for name in ("accuracy_at_50", "answer_accuracy")
    }
    assert f"second {said}" in comparison_page.sentences(comparison)[0]


def test_a_regression_says_its_numbers():
    now, before = rows("r" * 40, "1" * 16 + "0" * 24), rows("r" * 40, "1" * 36 + "0" * 4)
    comparison = compared(before, run("second", now, settings=SETTINGS | {"max_new_tokens": 128}))
    assert comparison["runs"][1]["asked_otherwise"] == ["max_new_tokens is 128, of first it is 64"]
    gate = judge_comparison(comparison)[0]
    assert gate["words"].startswith("regression of accuracy_at_50: 90 % → 40 %, −50 points (−65 to −35) on 40 rows")
    assert "s3://b/runs/second/evaluate against s3://b/runs/first/evaluate" in gate["words"]
    assert len(comparison["changes"][0]["boxes_lost"]) == 20
    assert comparison_page.headline(comparison)["changes"]["second"]["accuracy_at_50"] == [-0.5, -0.65, -0.35]
    page = comparison_page.markdown(comparison, "s3://b/comparison.html")
    assert "| found | 90 % | 40 % | −50 points (−65 to −35) | 40 true boxes |" in page
    assert "## second: fewer true boxes found: 20\n" in page


def test_of_several_each_is_compared_with_the_first():
    comparison = compared(ALL, rows("r" * 20 + "w" * 20, "1" * 40), rows("r" * 40, "0" * 40))
    assert [one["regressions"] for one in comparison["changes"]] == [["answer_accuracy"], ["accuracy_at_50"]]
    assert [gate["passed"] for gate in judge_comparison(comparison)] == [True, False, False, True]
    assert names(["s3://b/one/evaluate", "s3://b/two", "s3://c/x/two/evaluate"]) == ["b/one", "b/two", "x/two"]


def test_rows_that_cannot_be_paired_are_left_out_up_to_the_allowed_share_or_where_common_rows_are_asked_for():
    annotated_anew = ALL[0].model_copy(update={"true_boxes": 2, "ious": (0.8, 0.0)})
    for now, left_out in ((ALL[:-2], 2), ([annotated_anew, *ALL[1:]], 1)):
        comparison = compared(ALL, now)
        assert (comparison["rows"], comparison["left_out"]) == (40 - left_out, left_out)
    with pytest.raises(InputError, match=r"37 of 40 rows are the same in all\. Evaluate the same samples"):
        compared(ALL, ALL[:-3])
    assert compared(ALL, ALL[:-3], common=True)["rows"] == 37
    other = [score.model_copy(update={"sample": f"other-{score.sample}"}) for score in ALL]
    with pytest.raises(InputError, match="0 of 40 rows are the same in all"):
        compared(ALL, other, common=True)
    asked = run("second", ALL)
    with pytest.raises(InputError, match=r"no way to ask in common .*first/.*: ground; .*second/.*: direct"):
        compared(ALL, replace(asked, scores={"direct": asked.scores["ground"]}))


def test_rows_that_changed_open_to_both_overlays(tmp_path):
    """One lost its answer, one found its box; what did not change is not on the page."""
    boxes = [[100, 100, 300, 300], [600, 600, 900, 900]]  # thousandths of an image of 160 x 120
    samples = {
        name: sample(name, [[16, 12, 48, 36]], image=drawn(tmp_path, name, (16, 12, 48, 36), "red", (160, 120)))
        for name in ("lost", "won", "same")
    }
    samples = {name: one.model_copy(update={"question": f"Where is <{name}>?"}) for name, one in samples.items()}

    def judged(name: str, text: str) -> Score:
        return score(text, samples[name], frame(samples[name]))

    first = [judged("lost", said([boxes[0]])), judged("won", said([boxes[1]])), judged("same", said([boxes[0]]))]
    second = [judged("lost", said([boxes[0]], "right")), judged("won", said([boxes[0]])), first[2]]
    runs = [run("first", first), run("second", second)]
    comparison = compare(runs, samples, max_left_out_share=0, seed=0)
    assert (comparison["changes"][0]["answers_lost"], comparison["changes"][0]["boxes_won"]) == (["lost"], ["won"])
    (found,) = comparison_page.rows(Store(), comparison, runs, samples, 8)
    assert [(kind, [row.id for row in each]) for kind, each in found[1]] == [
        ("answers_lost", ["lost"]), ("boxes_won", ["won"]),
    ]  # fmt: skip
    won = found[1][1][1][0]
    assert won.sides[0].image != won.sides[1].image  # boxes of either on the same image
    page = comparison_page.html(comparison, [found])
    assert page.count("<details") == 2
    assert page.count("data:image/jpeg") == 4
    assert "Where is &lt;lost&gt;?" in page
    assert "<same>" not in page
    assert "Where is &lt;same&gt;?" not in page


def test_suites_are_compared_by_their_sets_and_their_own_measures():
    samples = {f"row-{n}": sample(f"row-{n}") for n in range(40)}
    origin = sample("any").origin.model_copy(update={"dataset": "treebench"})
    of = {name: one.model_copy(update={"origin": origin}) for name, one in samples.items()}
    asked = SETTINGS | {"suite": ["grounded-reasoning"]}
    first, second = run("first", ALL, settings=asked), run("second", rows("r" * 40, "0" * 40), settings=asked)
    comparison = compare([first, second], of, max_left_out_share=0, seed=0)
    tables = comparison["tables"]
    assert [(table["suite"], table["set"], table["rows"]) for table in tables] == [
        (None, "all rows", 40), ("grounded-reasoning", "treebench", 40),
    ]  # fmt: skip
    assert tables[1]["runs"][1]["difference"]["f1"]["value"] == -1
    assert "grounded-reasoning, treebench" in str(comparison_page.tables(comparison)[1].title)
