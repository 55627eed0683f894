"""Questions are asked once: units, marks, and the cache of what the base says."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.evaluating import CONDITIONS, FakeModel, drawn, evaluate, runner, said, sample
from vcot.errors import InputError, Interrupted
from vcot.evaluation.runner import read_replies, units
from vcot.records import Completion
from vcot.storage import Store


@pytest.fixture
def samples(tmp_path):
    return [
        sample(
            colour, None, image=drawn(tmp_path, colour, (40, 30, 120, 90), colour), answers=[colour],
            question=f"What colour is disc {number}?",
        )
        for number, colour in enumerate(("red", "green", "blue", "black", "orange"))
    ]  # fmt: skip


def replies(folder, mark):
    return list(read_replies(Store(), folder.uri, mark.shards))


def test_every_sample_is_asked_of_both_models_under_every_condition(tmp_path, samples):
    model = FakeModel()
    folder, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, model))
    found = replies(folder, mark)
    assert Counter((r.model, r.condition) for r in found) == {
        (m, c): 5 for m in ("base", "subject") for c in CONDITIONS
    }
    assert [r.score.sample for r in found[:5]] == [s.id for s in samples]
    assert [name for name, _, _ in model.asked] == ["base"] * 15 + ["subject"] * 15
    assert mark.row_counts.rows == mark.row_counts.kept == 30
    seen = {(r.condition, r.score.sample): r.completion.text for r in found if r.model == "subject"}
    for one in samples:
        assert seen["blank", one.id] == said([], "(128, 128, 128)")
        assert seen["shuffled", one.id] != seen["real", one.id]
    assert {seen["shuffled", s.id] for s in samples} == {seen["real", s.id] for s in samples}


def test_the_base_is_asked_anew_only_where_the_question_changed(tmp_path, samples):
    """Another base, another way of asking, another question; not: where images lie, or what another sample asks."""

    def asked(samples, size=1, **changed):
        evaluate(
            tmp_path,
            f"run{len(list(tmp_path.iterdir()))}",
            runner(tmp_path, samples, model := FakeModel(), size, **changed),
        )
        return {name for who, name, _ in model.asked if who == "base"}

    names = {one.id for one in samples}
    assert asked(samples) == names
    for changed in ({"base": "c" * 64}, {"max_new_tokens": 17}, {"contract": {"frame": "pixels"}}):
        assert asked(samples, **changed) == names
    other = [samples[0].model_copy(update={"question": "What colour?"}), *samples[1:]]
    assert asked(other) == {samples[0].id}
    moved = []
    for one in samples:
        target = Path(one.image.uri).rename(tmp_path / f"moved-{one.id}.png")
        moved.append(one.model_copy(update={"images": (one.image.model_copy(update={"uri": str(target)}),)}))
    assert asked(moved) == set()


def test_equal_questions_about_equal_images_are_asked_once(tmp_path, samples):
    """Blank images of one size are one image."""
    same = [one.model_copy(update={"question": "What colour?"}) for one in samples]
    folder, mark = evaluate(tmp_path, "one", runner(tmp_path, same, model := FakeModel(), size=5))
    assert model.count == {"base": 5 + 1 + 5, "subject": 5 + 1 + 5}
    blank = [r for r in replies(folder, mark) if r.condition == "blank"]
    assert [r.score.sample for r in blank] == 2 * [one.id for one in samples]


class Stepping(FakeModel):
    """Goes on from cell to cell to the right until there are three, and answers where the last one begins."""

    def ask(self, model, prompts, decoding):
        return [[Completion(text=self.after(one.prefix), model=model, finish_reason="stop")] for one in prompts]

    def after(self, prefix):
        steps, text = [int(x) for x in re.findall(r"<box>\[(\d+)", prefix)], ""
        while len(steps) < 3:
            x = steps[-1] + 100 if steps else 0
            steps.append(min(x, 900))
            text += f" <ref>cell</ref><box>[{steps[-1]}, 0, {steps[-1] + 100}, 200]</box>"
        return text + (f" {steps[-1]}" if prefix.endswith("Answer:") else f"\nAnswer: {steps[-1]}")


def test_a_model_writes_all_that_follows_a_step_and_is_judged_by_the_whole(tmp_path, samples):
    runs = runner(tmp_path, samples, Stepping())
    runs.units = units(len(samples), ("subject",), ("ground",), ("real",), 5, probe=True)
    found = {(r.probe, r.score.sample): r.score for r in replies(*evaluate(tmp_path, "run", runs))}
    for one in samples:
        before, moved, unmoved = (found[probe, one.id] for probe in (None, "step-moved", "step-unmoved"))
        assert unmoved.text == before.text == found["unchanged", one.id].text
        assert moved.text.endswith("\nAnswer: 900")
        assert [len(each.mentions) for each in (before, moved)] == [3, 3]


def test_a_spoilt_cache_is_made_again(tmp_path, samples):
    evaluate(tmp_path, "one", runner(tmp_path, samples, FakeModel()))
    for kept in (tmp_path / "_cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:-9])
    evaluate(tmp_path, "two", runner(tmp_path, samples, again := FakeModel()))
    evaluate(tmp_path, "three", runner(tmp_path, samples, last := FakeModel()))
    assert (again.count["base"], last.count["base"]) == (15, 0)


def test_a_killed_evaluation_goes_on_with_the_first_unit_that_is_not_done(tmp_path, samples):
    with pytest.raises(Interrupted):
        evaluate(tmp_path, "run", runner(tmp_path, samples, dying := FakeModel(dies_after=18)))
    _, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, rest := FakeModel()))
    _, calm = evaluate(tmp_path, "calm", runner(tmp_path, samples, FakeModel()))
    assert len(dying.asked) + len(rest.asked) == 30
    assert [s.files for s in mark.shards] == [s.files for s in calm.shards]


def test_a_row_without_its_image_is_rejected_with_the_reason(tmp_path, samples):
    Path(samples[2].image.uri).write_bytes(b"<html>gone</html>")
    _, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, FakeModel()), share=0.5)
    # Its own image under three conditions, and once as the image of another row; of both models.
    assert mark.row_counts.rejected == {"image-changed": 8}
    assert mark.row_counts.kept == 22


def test_a_row_whose_image_is_gone_does_not_speak_for_equal_questions(tmp_path, samples):
    same = [one.model_copy(update={"question": "What colour?"}) for one in samples]
    for gone in samples[:2]:
        Path(gone.image.uri).unlink()
    folder, mark = evaluate(tmp_path, "one", runner(tmp_path, same, FakeModel(), size=5), share=0.6)
    blank = [r.score.sample for r in replies(folder, mark) if r.condition == "blank" and r.model == "subject"]
    assert blank == [one.id for one in samples[2:]]


def test_replies_judged_by_other_rules_are_refused_with_what_to_do(tmp_path, samples):
    folder, mark = evaluate(tmp_path, "run", runner(tmp_path, samples, FakeModel()))
    file = mark.shards[0].files[0]
    path = Path(folder.uri) / file.name
    older = gzip.compress(gzip.decompress(path.read_bytes()).replace(b'"version":2', b'"version":1'))
    path.write_bytes(older)
    known = file.model_copy(update={"sha256": hashlib.sha256(older).hexdigest(), "size": len(older)})
    with pytest.raises(InputError, match=r"run/evaluate was made by a version of vcot .* \(--fail-if-worse-than\)"):
        list(read_replies(Store(), folder.uri, [mark.shards[0].model_copy(update={"files": (known,)})]))
