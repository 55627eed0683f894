"""Which model counts: promoted once by the evaluation that it passed, found again on each occasion."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.markers import stage_marker
from vcot.errors import InputError
from vcot.evaluation.subjects import Finished, moment, newest, promote, promoted
from vcot.records import Folder
from vcot.records.shards import STAGES
from vcot.storage import Store, join

ASKED = {"split": "auto", "max_samples": None, "seed": 0}


def finished(uri: str) -> Finished:
    """A stage's marker as its finish writes it."""
    run_uri, _, stage = uri.rpartition("/")
    kind = next(kind for kind in STAGES if kind.name == stage)
    Folder(Store(), run_uri, kind).finish(stage_marker(stage, settings={"uri": uri}))
    return Finished.at(Store(), uri)


def earn(place: str, run: str, pointer: str = "latest"):
    """Promotes the model of a run with these stages."""
    run_uri = join(place, "runs", run)
    Store().write(join(run_uri, "evaluate", "report.json"), b"{}")
    return promote(
        Store(),
        pointers(place, pointer),
        train=finished(join(run_uri, "train")),
        base={"uri": "s3://b/base", "sha256": "00" * 32},
        evaluation=finished(join(run_uri, "evaluate")),
        samples=finished(join(run_uri, "convert")),
        gates=["looks"],
    )


def again(place: str, occasion: str = "reevaluate-29920626", **other):
    given = {"samples_uri": None, "fail_if_worse_than": None, "asked": ASKED, "pointer_uri": pointers(place)} | other
    return promoted(Store(), join(place, "runs", "again"), occasion=occasion, **given)


def pointers(place: str, name: str = "latest") -> str:
    return join(place, "runs", "pointers", name)


def test_promotions_are_numbered_and_say_what_was_promoted(any_place):
    with pytest.raises(InputError, match="no model was promoted yet; run a chain with VCOT_EVALUATE_PROMOTE=true"):
        again(any_place)
    one, two = earn(any_place, "one"), earn(any_place, "two")
    assert one.uri.endswith("/pointers/latest/0000000001.json")
    assert two.uri.endswith("/pointers/latest/0000000002.json")
    assert earn(any_place, "one") == one  # run again, an evaluation does not bring its model back
    assert newest(Store(), pointers(any_place)) == two
    said = json.loads(Store().read(two.uri))
    assert said["train_uri"] == join(any_place, "runs", "two", "train")
    assert said["train_sha256"] == Store().digest(join(said["train_uri"], "_done", "stage.json"))
    assert said["report_sha256"] == Store().digest(join(said["evaluation_uri"], "report.json"))


def test_of_many_promotions_at_once_none_is_lost(any_place):
    runs = [f"run-{number}" for number in range(4)]
    with ThreadPoolExecutor(8) as pool:  # every run twice: a zombie beside its replacement
        made = list(pool.map(lambda run: earn(any_place, run), [*runs, *runs]))
    assert len({pointer.uri for pointer in made}) == len(runs)
    assert {pointer.promotion.train_uri for pointer in made} == {join(any_place, "runs", run, "train") for run in runs}


def change_marker(stage_uri: str) -> None:
    uri = join(stage_uri, "_done", "stage.json")
    Store().write(uri, Store().read(uri).replace(b'"metadata"', b' "metadata"'))


def test_an_evaluation_that_was_made_again_is_another_one_and_a_damaged_promotion_is_named(folder_place):
    """The old pointer names a model that is no longer there; only the new one can be evaluated again."""
    one = earn(folder_place, "one")
    change_marker(one.promotion.evaluation_uri)
    assert earn(folder_place, "one").uri.endswith("/0000000002.json")
    Path(one.uri.removeprefix("file://")).unlink()  # numbers may have gaps
    assert earn(folder_place, "three").uri.endswith("/0000000003.json")
    Store().write(join(pointers(folder_place), "0000000001.json"), b'{"version": 1}')
    with pytest.raises(InputError, match=r"0000000001\.json is not a promotion: train_uri: field required"):
        again(folder_place)


def test_the_newest_is_evaluated_on_what_it_was_promoted_on_and_compared_with_the_first(folder_place):
    one, two = earn(folder_place, "one"), earn(folder_place, "two")
    found = again(folder_place)
    assert found.train.uri == two.promotion.train_uri
    assert found.samples.uri == two.promotion.samples_uri
    assert found.baseline is not None
    assert found.baseline.uri == one.promotion.evaluation_uri
    assert (found.metadata["pointer"], found.metadata["occasion"]) == (two.uri, "20261121T0506Z")
    assert found.inputs[two.uri] == two.sha256
    assert found.run_uri.startswith(join(folder_place, "runs", "again", "20261121T0506Z") + "/")
    # Samples and baseline can be pinned; another choice of samples is another evaluation.
    samples, baseline = (finished(join(folder_place, "kept", stage)) for stage in ("convert", "evaluate"))
    pinned = again(folder_place, samples_uri=samples.uri, fail_if_worse_than=baseline.uri)
    assert (pinned.samples, pinned.baseline) == (samples, baseline)
    others = [pinned, again(folder_place, asked=ASKED | {"max_samples": 5})]
    assert len({each.run_uri for each in [again(folder_place), found, *others]}) == 3


def test_an_occasion_looks_once_and_the_next_one_anew(any_place):
    one = earn(any_place, "one")
    before = again(any_place)
    two = earn(any_place, "two")
    assert again(any_place) == before
    assert before.metadata["pointer"] == one.uri
    assert again(any_place, "reevaluate-29920686").metadata["pointer"] == two.uri


def test_two_lines_of_models_on_the_same_occasion_are_not_confused(folder_place):
    """Two scheduled Jobs of the same minute, each with a line of its own."""
    one, small = earn(folder_place, "one"), earn(folder_place, "two", "small")
    assert again(folder_place).metadata["pointer"] == one.uri
    pointer_uri = pointers(folder_place, "small")
    found = again(folder_place, "reevaluate-small-29920626", pointer_uri=pointer_uri)
    assert (found.metadata["pointer"], found.train.uri) == (small.uri, small.promotion.train_uri)
    elsewhere = pointer_uri.replace("pointers", "elsewhere")
    Store().write(join(elsewhere, "0000000001.json"), Store().read(small.uri))
    with pytest.raises(InputError, match=r"small\.json is about .*; use another --occasion"):
        again(folder_place, pointer_uri=elsewhere)


def test_what_changed_after_it_was_promoted_is_refused(folder_place):
    one = earn(folder_place, "one")
    again(folder_place)
    change_marker(one.promotion.train_uri)
    with pytest.raises(InputError, match=r"train is not what .*0000000001.json promoted"):
        again(folder_place)
    Path(one.uri.removeprefix("file://")).unlink()
    assert earn(folder_place, "two").uri == one.uri
    with pytest.raises(InputError, match=r"0000000001\.json was replaced since .*latest\.json was written"):
        again(folder_place)


@pytest.mark.parametrize(
    ("word", "when"),
    [
        ("reevaluate-29920626", "20261121T0506Z"),
        ("29920626", "20261121T0506Z"),
        ("reevaluate-by-hand", "reevaluate-by-hand"),
        ("nightly-20261121", "nightly-20261121"),  # a date
        ("20261121", "20261121"),
    ],
)
def test_a_jobs_name_tells_its_scheduled_time(word, when):
    assert moment(word) == when
