"""Questions are asked once: units, marks, and the cache of what the base says."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image as Pillow

from tests.evaluation.evaluation_samples import drawn, frame, said, sample
from vcot.errors import InputError, Interrupted
from vcot.evaluation.controls import partners
from vcot.evaluation.replies import Interview, read_replies, units
from vcot.records import Completion, Folder, StageMark
from vcot.records.shards import run_shards
from vcot.settings import Settings
from vcot.storage import Store

CONDITIONS = ("real", "blank", "shuffled")


class EvaluateSettings(Settings):
    stage: ClassVar[str] = "evaluate"


class Answers:
    """A model that says what colour stands in the middle of what it is shown, and remembers what it was asked."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[tuple[str, str, Pillow.Image]] = []
        self.dies_after = dies_after

    def __call__(self, model, samples, pictures):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise Interrupted("killed")
        self.asked += [(model, s.id, p) for s, p in zip(samples, pictures, strict=True)]
        return [
            Completion(text=said([], f"{p.getpixel((80, 60))}"), model=model, finish_reason="stop") for p in pictures
        ]

    @property
    def count(self) -> Counter:
        return Counter(model for model, _, _ in self.asked)


@pytest.fixture
def samples(tmp_path):
    colours = ("red", "green", "blue", "black", "orange")
    return [
        sample(
            colour, None, image=drawn(tmp_path, colour, (40, 30, 120, 90), colour), answers=[colour],
            question=f"What colour is disc {number}?",
        )
        for number, colour in enumerate(colours)
    ]  # fmt: skip


def interview(tmp_path: Path, samples, answers, size=2, native=False, **more) -> Interview:
    asked = {"base": "b" * 64, "max_new_tokens": 16, "contract": {"frame": "thousandths"}}
    return Interview(
        store=Store(), samples=samples, partners=partners(samples, 0), ask=answers, frame=frame,
        units=units(len(samples), CONDITIONS, size, native=native), cache_uri=str(tmp_path / "_cache"),
        asked_of_base=asked | more, asked_natively={"instruction": "Point at it."} if native else {},
    )  # fmt: skip


def evaluate(tmp_path: Path, name: str, talk: Interview) -> tuple[Folder, StageMark]:
    run_uri = str(tmp_path / name)
    folder = Folder(talk.store, run_uri, "evaluate")
    mark = run_shards(
        folder, EvaluateSettings(run_uri=run_uri), inputs={}, shards=len(talk.units), work=talk.hold,
        max_rejected_share=0.05,
    )  # fmt: skip
    assert mark is not None
    return folder, mark


def test_every_sample_is_asked_of_both_models_under_every_condition(tmp_path, samples):
    answers = Answers()
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, answers))
    replies = list(read_replies(Store(), folder.uri, mark.shards))
    assert Counter((r.model, r.condition) for r in replies) == {
        (m, c): 5 for m in ("base", "tuned") for c in CONDITIONS
    }
    assert [r.score.sample for r in replies[:5]] == [s.id for s in samples]
    assert [model for model, _, _ in answers.asked] == ["base"] * 15 + ["tuned"] * 15
    assert mark.tally.rows == mark.tally.kept == 30


def test_blank_and_shuffled_change_what_the_model_is_shown(tmp_path, samples):
    answers = Answers()
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, answers))
    seen = {
        (r.condition, r.score.sample): r.completion.text
        for r in read_replies(Store(), folder.uri, mark.shards)
        if r.model == "tuned"
    }
    for one in samples:
        assert seen["blank", one.id] == said([], "(128, 128, 128)")
        assert seen["shuffled", one.id] != seen["real", one.id]
    assert {seen["shuffled", s.id] for s in samples} == {seen["real", s.id] for s in samples}


def test_a_second_run_asks_the_base_nothing_and_says_the_same(tmp_path, samples):
    first, second = Answers(), Answers()
    one, mark = evaluate(tmp_path, "one", interview(tmp_path, samples, first))
    two, other = evaluate(tmp_path, "two", interview(tmp_path, samples, second))
    assert first.count == {"base": 15, "tuned": 15}
    assert second.count == {"tuned": 15}
    assert [s.files for s in mark.shards] == [s.files for s in other.shards]
    assert list(read_replies(Store(), one.uri, mark.shards)) == list(read_replies(Store(), two.uri, other.shards))


@pytest.mark.parametrize("change", [{"base": "c" * 64}, {"max_new_tokens": 17}, {"contract": {"frame": "pixels"}}])
def test_another_base_or_another_way_of_asking_is_asked_anew(tmp_path, samples, change):
    evaluate(tmp_path, "one", interview(tmp_path, samples, Answers()))
    again = Answers()
    evaluate(tmp_path, "two", interview(tmp_path, samples, again, **change))
    assert again.count["base"] == 15


def test_only_what_changed_is_asked_anew(tmp_path, samples):
    """Another question, a picture with one other pixel: the unit that holds it is asked again, the others are not."""
    evaluate(tmp_path, "one", interview(tmp_path, samples, Answers(), size=1))
    changed = [samples[0].model_copy(update={"question": "What colour?"}), *samples[1:]]
    again = Answers()
    evaluate(tmp_path, "two", interview(tmp_path, changed, again, size=1))
    assert {name for model, name, _ in again.asked if model == "base"} == {samples[0].id}


def test_where_pictures_lie_is_no_part_of_the_question(tmp_path, samples):
    evaluate(tmp_path, "one", interview(tmp_path, samples, Answers()))
    (tmp_path / "elsewhere").mkdir()
    moved = []
    for one in samples:
        target = tmp_path / "elsewhere" / Path(one.image.uri).name
        target.write_bytes(Path(one.image.uri).read_bytes())
        moved.append(one.model_copy(update={"image": one.image.model_copy(update={"uri": str(target)})}))
    again = Answers()
    evaluate(tmp_path, "two", interview(tmp_path, moved, again))
    assert again.count == {"tuned": 15}


def test_the_same_question_about_the_same_picture_is_asked_once(tmp_path, samples):
    """Blank pictures of one size are one picture."""
    same = [one.model_copy(update={"question": "What colour?"}) for one in samples]
    folder, mark = evaluate(tmp_path, "one", interview(tmp_path, same, answers := Answers(), size=5))
    assert answers.count == {"base": 5 + 1 + 5, "tuned": 5 + 1 + 5}
    blank = [r for r in read_replies(Store(), folder.uri, mark.shards) if r.condition == "blank"]
    assert [r.score.sample for r in blank] == 2 * [one.id for one in samples]


def test_a_spoilt_cache_is_made_again(tmp_path, samples):
    evaluate(tmp_path, "one", interview(tmp_path, samples, Answers()))
    for kept in (tmp_path / "_cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:-9])
    again = Answers()
    evaluate(tmp_path, "two", interview(tmp_path, samples, again))
    evaluate(tmp_path, "three", interview(tmp_path, samples, last := Answers()))
    assert again.count["base"] == 15
    assert last.count["base"] == 0


def test_a_killed_evaluation_goes_on_with_the_first_unit_that_is_not_done(tmp_path, samples):
    dying = Answers(dies_after=18)
    with pytest.raises(Interrupted):
        evaluate(tmp_path, "run", interview(tmp_path, samples, dying))
    rest = Answers()
    _, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, rest))
    _, calm = evaluate(tmp_path, "calm", interview(tmp_path, samples, Answers()))
    assert len(dying.asked) + len(rest.asked) == 30
    assert [s.files for s in mark.shards] == [s.files for s in calm.shards]


def test_a_row_without_its_picture_is_refused_with_the_reason(tmp_path, samples):
    Path(samples[2].image.uri).write_bytes(b"<html>gone</html>")
    talk = interview(tmp_path, samples, Answers())
    run_uri = str(tmp_path / "run")
    folder = Folder(talk.store, run_uri, "evaluate")
    settings = EvaluateSettings(run_uri=run_uri)
    mark = run_shards(folder, settings, inputs={}, shards=len(talk.units), work=talk.hold, max_rejected_share=0.5)
    assert mark is not None
    # Its own picture under three conditions, and once as the picture of another row; of both models.
    assert mark.tally.rejected == {"image-changed": 8}
    assert mark.tally.kept == 22


def test_a_truncated_shard_of_replies_is_refused(tmp_path, samples):
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, Answers()))
    path = Path(folder.uri) / mark.shards[0].files[0].name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated or was changed"):
        list(read_replies(Store(), folder.uri, mark.shards))


def test_replies_that_were_judged_by_other_rules_are_refused_with_what_to_do(tmp_path, samples):
    folder, mark = evaluate(tmp_path, "run", interview(tmp_path, samples, Answers()))
    file = mark.shards[0].files[0]
    path = Path(folder.uri) / file.name
    older = gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"version":2', b'"version":1'))
    path.write_bytes(older)
    known = file.model_copy(update={"sha256": hashlib.sha256(older).hexdigest(), "size": len(older)})
    with pytest.raises(InputError, match=r"run/evaluate was made by a version of vcot .* \(--baseline-uri\)"):
        list(read_replies(Store(), folder.uri, [mark.shards[0].model_copy(update={"files": (known,)})]))


def test_units_cover_every_sample_once_and_the_base_comes_first():
    made = units(10, CONDITIONS, 4)
    assert [(u.first, u.last) for u in made[:3]] == [(0, 4), (4, 8), (8, 10)]
    assert len(made) == 2 * 3 * 3
    assert [u.model for u in made] == ["base"] * 9 + ["tuned"] * 9
    assert dataclasses.astuple(made[-1]) == ("tuned", "shuffled", 8, 10)
