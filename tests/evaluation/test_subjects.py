"""Which model counts: promoted once by the evaluation that it passed, found again on each occasion."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.markers import stage_marker
from vcot.errors import InputError
from vcot.evaluation.subjects import Finished, first, moment, newest, promote, promoted, trained
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
        join(place, "runs", "pointers", pointer),
        train=finished(join(run_uri, "train")),
        base={"uri": "s3://b/base", "sha256": "00" * 32},
        evaluation=finished(join(run_uri, "evaluate")),
        samples=finished(join(run_uri, "convert")),
        gates=["looks"],
    )


def again(place: str, occasion: str = "reevaluate-29920626", **other):
    pointer_uri = join(place, "runs", "pointers", "latest")
    given = {"samples_uri": None, "baseline_uri": None, "asked": ASKED, "pointer_uri": pointer_uri} | other
    return promoted(Store(), join(place, "runs", "again"), occasion=occasion, **given)


def test_promotions_are_numbered_and_say_what_was_promoted(any_place):
    one, two = earn(any_place, "one"), earn(any_place, "two")
    assert one.uri.endswith("/pointers/latest/0000000001.json")
    assert two.uri.endswith("/pointers/latest/0000000002.json")
    pointer_uri = join(any_place, "runs", "pointers", "latest")
    assert newest(Store(), pointer_uri) == two
    assert first(Store(), pointer_uri) == one
    said = json.loads(Store().read(two.uri))
    assert said["train_uri"] == join(any_place, "runs", "two", "train")
    assert said["train_sha256"] == Store().digest(join(said["train_uri"], "_done", "stage.json"))
    assert said["report_sha256"] == Store().digest(join(said["evaluation_uri"], "report.json"))


def test_an_evaluation_that_is_run_again_does_not_bring_its_model_back(any_place):
    one, two = earn(any_place, "one"), earn(any_place, "two")
    assert earn(any_place, "one") == one
    assert newest(Store(), join(any_place, "runs", "pointers", "latest")) == two


def test_of_many_at_once_none_is_lost(any_place):
    runs = [f"run-{number}" for number in range(6)]
    with ThreadPoolExecutor(12) as pool:  # every run twice: a zombie beside its replacement
        pointers = list(pool.map(lambda run: earn(any_place, run), [*runs, *runs]))
    assert len({pointer.uri for pointer in pointers}) == len(runs)
    assert {pointer.promotion.train_uri for pointer in pointers} == {
        join(any_place, "runs", run, "train") for run in runs
    }


def test_a_promotion_that_was_deleted_does_not_keep_the_next_from_being_made(folder_place):
    """Numbers may have gaps; to try a number that is taken would go on for ever."""
    one = earn(folder_place, "one")
    earn(folder_place, "two")
    Path(one.uri.removeprefix("file://")).unlink()
    assert earn(folder_place, "three").uri.endswith("/0000000003.json")


def test_an_evaluation_that_was_deleted_and_made_again_is_another_one(folder_place):
    """The old pointer names a model that is no longer there; only the new one can be evaluated again."""
    earn(folder_place, "one")
    marker = Path(folder_place.removeprefix("file://"), "runs", "one", "evaluate", "_done", "stage.json")
    marker.write_bytes(marker.read_bytes().replace(b'"metadata"', b' "metadata"'))
    assert earn(folder_place, "one").uri.endswith("/0000000002.json")


def test_nothing_promoted_yet_is_told_with_what_to_do(any_place):
    with pytest.raises(InputError, match="no model was promoted yet; run a chain with VCOT_EVALUATE_PROMOTE=true"):
        again(any_place)


def test_what_is_no_promotion_is_told(moto_place):
    uri = join(moto_place, "runs", "pointers", "latest", "0000000001.json")
    Store().write(uri, b'{"version": 1}')
    with pytest.raises(InputError, match=r"0000000001\.json is not a promotion: train_uri: field required"):
        again(moto_place)


def test_the_newest_is_evaluated_on_what_it_was_promoted_on_and_compared_with_the_first(any_place):
    one, two = earn(any_place, "one"), earn(any_place, "two")
    found = again(any_place)
    assert found.train.uri == two.promotion.train_uri
    assert found.samples.uri == two.promotion.samples_uri
    assert found.baseline is not None
    assert found.baseline.uri == one.promotion.evaluation_uri
    assert found.facts["pointer"] == two.uri
    assert found.facts["occasion"] == "20261121T0506Z"
    assert found.inputs[two.uri] == two.sha256
    assert found.run_uri.startswith(join(any_place, "runs", "again", "20261121T0506Z") + "/")


def test_samples_and_baseline_can_be_pinned(any_place):
    earn(any_place, "one")
    samples, baseline = finished(join(any_place, "kept", "convert")), finished(join(any_place, "kept", "evaluate"))
    found = again(any_place, samples_uri=samples.uri, baseline_uri=baseline.uri)
    assert (found.samples, found.baseline) == (samples, baseline)
    assert found.run_uri != again(any_place).run_uri


def test_an_occasion_looks_once_and_the_next_one_anew(any_place):
    one = earn(any_place, "one")
    before = again(any_place)
    two = earn(any_place, "two")
    assert again(any_place) == before
    assert before.facts["pointer"] == one.uri
    assert again(any_place, "reevaluate-29920686").facts["pointer"] == two.uri


def test_two_lines_of_models_on_the_same_occasion_are_not_confused(any_place):
    """Two scheduled Jobs of the same minute, each with a line of its own."""
    one, small = earn(any_place, "one"), earn(any_place, "two", "small")
    assert again(any_place).facts["pointer"] == one.uri
    pointer_uri = join(any_place, "runs", "pointers", "small")
    found = again(any_place, "reevaluate-small-29920626", pointer_uri=pointer_uri)
    assert found.facts["pointer"] == small.uri
    assert found.train.uri == small.promotion.train_uri
    elsewhere = pointer_uri.replace("pointers", "elsewhere")
    Store().write(join(elsewhere, "0000000001.json"), Store().read(small.uri))
    with pytest.raises(InputError, match=r"small\.json is about .*; use another --occasion"):
        again(any_place, pointer_uri=elsewhere)


def test_a_promotion_that_was_replaced_after_an_occasion_has_seen_it_is_refused(folder_place):
    one = earn(folder_place, "one")
    again(folder_place)
    Path(one.uri.removeprefix("file://")).unlink()
    assert earn(folder_place, "two").uri == one.uri
    with pytest.raises(InputError, match=r"0000000001\.json was replaced since .*latest\.json was written"):
        again(folder_place)


def test_another_choice_of_samples_goes_elsewhere(any_place):
    earn(any_place, "one")
    assert again(any_place).run_uri == again(any_place).run_uri
    assert again(any_place).run_uri != again(any_place, asked=ASKED | {"max_samples": 5}).run_uri


def test_a_model_that_was_made_again_since_is_refused(any_place):
    pointer = earn(any_place, "one")
    uri = join(pointer.promotion.train_uri, "_done", "stage.json")
    Store().write(uri, Store().read(uri).replace(b'"metadata"', b' "metadata"'))
    with pytest.raises(InputError, match=r"train is not what .*0000000001.json promoted"):
        again(any_place)


@pytest.mark.parametrize(
    ("word", "when"),
    [
        ("reevaluate-29920626", "20261121T0506Z"),
        ("a-b-c-29920626", "20261121T0506Z"),
        ("29920626", "20261121T0506Z"),
        ("reevaluate-by-hand", "reevaluate-by-hand"),
        ("nightly-20261121", "nightly-20261121"),  # a date
        ("20261121", "20261121"),
        ("reevaluate-7", "reevaluate-7"),
    ],
)
def test_a_jobs_name_tells_its_scheduled_time(word, when):
    assert moment(word) == when


def test_a_model_by_name_lies_where_it_did_before(any_place):
    run_uri = join(any_place, "runs", "one")
    train, samples = finished(join(run_uri, "train")), finished(join(run_uri, "convert"))
    found = trained(Store(), run_uri, train_uri=None, samples_uri=None, baseline_uri=None)
    assert (found.run_uri, found.train, found.samples, found.baseline) == (run_uri, train, samples, None)
    elsewhere = trained(
        Store(), join(any_place, "runs", "two"), train_uri=train.uri, samples_uri=samples.uri, baseline_uri=None
    )
    assert elsewhere.train == train
