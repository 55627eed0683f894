"""The base is asked as its own family writes boxes, too; "before tuning" is the better of the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings, run
from tests.jobs.evaluated import *  # noqa: F403  (fixtures)
from tests.jobs.evaluated import contract_in, trained
from vcot.errors import GateFailed
from vcot.evaluation import words
from vcot.storage import Store, join

ASK = {"max_new_tokens": 64, "per_device_eval_batch_size": 24, "dtype": "float32"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path, adapters: Any) -> str:
    """Two runs of the rehearsal base with an adapter that changes nothing: `own` in the base's own frame (thousandths),
    `other` in one that it never learned (fractions)."""
    runs = tmp_path_factory.mktemp("runs")
    convert: dict[str, Any] = {"source": "scenes", "scenes": 12, "questions": "point", "validation_share": 0.8}
    run_convert(ConvertSettings(run_uri=str(runs / "own"), **convert))
    for name, frame in (("own", "thousandths"), ("other", "fractions")):
        trained(str(runs / name), base, adapters["nothing"], contract_in(frame, base))
    return str(runs)


def evaluate(runs: str, name: str, **settings: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"samples_uri": join(runs, "own", "convert"), "conditions": "real", **ASK, **settings}
    run(EvaluateSettings(run_uri=join(runs, name), **given))
    found: dict[str, Any] = json.loads(Store().read(join(runs, name, "evaluate", "report.json")))
    return found


def test_a_model_that_fell_below_its_base_does_not_pass_because_the_base_was_asked_in_a_foreign_frame(runs):
    with pytest.raises(GateFailed, match="accuracy_at_50 not worse than the base: it is −"):
        evaluate(runs, "other", require_not_worse_than_base=True)


def test_both_forms_are_shown_and_the_better_one_is_before_tuning(runs):
    report = evaluate(runs, "other")
    results = words.results_of(report)
    assert list(results) == ["base-real", "native-real", "tuned-real"]
    foreign, own, after = (each["accuracy_at_50"]["value"] for each in results.values())
    assert foreign == after == 0
    assert own > 0.5
    change = words.find(report, "differences", "after-before")
    assert change["figures"]["accuracy_at_50"]["value"] == pytest.approx(-own, abs=1e-6)
    assert f"before, it was {round(own * report['samples']['boxes'])} of" in report["verdict"]["headline"]
    assert report["made_with"]["own_form_of_the_base"]["frame"] == "thousandths"
    assert any("asked twice" in note for note in report["verdict"]["notes"])


def test_a_base_that_is_tuned_in_its_own_form_is_asked_once(runs):
    report = evaluate(runs, "own")
    results = words.results_of(report)
    assert list(results) == ["base-real", "tuned-real"]
    assert results["base-real"]["accuracy_at_50"]["value"] > 0.5
    assert report["made_with"]["own_form_of_the_base"] == "that of the tuned model"
