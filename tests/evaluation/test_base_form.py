"""How a base is asked where nobody has tuned it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.evaluation.evaluation_samples import FakeModel, by_text, drawn, evaluate, frame, runner, said, sample
from tests.fakes.markers import CONTRACT
from vcot.errors import InputError
from vcot.evaluation.base_form import FAMILIES, own_form
from vcot.evaluation.baselines import Baselines
from vcot.evaluation.compare import judge_gates
from vcot.evaluation.report import build, gather
from vcot.evaluation.runner import read_replies
from vcot.evaluation.scoring import score
from vcot.evaluation.table import headline
from vcot.grounding import Box, Mention, Trace, render
from vcot.records import Completion
from vcot.storage import Store


def form_of(folder, named="auto", contract=CONTRACT, **files: Any):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return own_form(Store(), str(folder), named, contract)


@pytest.mark.parametrize(
    ("model_type", "family", "frame", "dialect"),
    [
        ("qwen2_vl", "qwen2-vl", "thousandths", "qwen-special"),
        ("qwen2_5_vl", "qwen2.5-vl", "resized_pixels", "qwen-json"),
        ("qwen3_vl", "qwen3-vl", "thousandths", "qwen-json"),
    ],
)
def test_a_family_is_known_by_its_config(tmp_path, model_type, family, frame, dialect):
    form = form_of(tmp_path, config={"model_type": model_type})
    assert form == FAMILIES[family] == form_of(tmp_path, family)
    assert (form.frame, form.dialect) == (frame, dialect)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_in_the_familys_own_frame_and_notation_is_read(family):
    """A box drawn in the native form, about an image that the model sees at another size."""
    one = sample("a", [(100, 100, 300, 300)]).model_copy(update={"question": "Where is it?"})
    one = one.model_copy(update={"image": one.image.model_copy(update={"width": 1600, "height": 900})})
    form = FAMILIES[family]
    native = one.frame(form.spec(CONTRACT))
    written = render(Trace((Mention("gear", (Box(100, 100, 300, 300),)),)), native, form.dialect)
    found = score(f"```json\n{written}\n```\nAnswer: left", one, native)
    assert (found.matched, found.answer) == (1, "right")
    assert found.ious[0] > 0.97


def test_what_the_folder_says_of_itself_goes_before_its_family(tmp_path):
    told = {"contract": CONTRACT.model_dump(mode="json") | {"instruction": "Point at it."}}
    (tmp_path / "contract.json").write_text(json.dumps(told))
    form = form_of(tmp_path, config={"model_type": "qwen2_5_vl"})
    assert (form.frame, form.instruction, form.by_text) == ("thousandths", "Point at it.", "Point at it.")
    assert form_of(tmp_path, contract=CONTRACT.model_copy(update={"instruction": "Point at it."})) is None
    assert form_of(tmp_path, "qwen2.5-vl") == FAMILIES["qwen2.5-vl"]
    (tmp_path / "contract.json").write_text('{"contract": {"frame": {"name": "inches"}}}')
    with pytest.raises(InputError, match=r"contract.json does not say how the base writes boxes .*inches.*--base-form"):
        form_of(tmp_path)


def test_where_there_is_nothing_to_ask_otherwise_the_base_is_asked_once(tmp_path):
    assert form_of(tmp_path, config={"model_type": "llava"}) is None
    assert form_of(tmp_path, "as-tuned", config={"model_type": "qwen2_5_vl"}) is None
    assert form_of(tmp_path, contract=CONTRACT.model_copy(update={"mode": "text"})) is None


def test_a_question_by_text_alone_is_not_asked_for_boxes():
    for form in FAMILIES.values():
        assert "bounding box" in form.below(sample("a")) or "bbox" in form.below(sample("a"))
        assert "box" not in form.below(by_text("t"))
        assert form.below(by_text("t")).endswith('"Answer:".')


class Native(FakeModel):
    """A base that points only when it is asked in its own form, and a tuned model that finds half."""

    def __call__(self, model, samples, images):
        self.asked += [(model, s.id, p) for s, p in zip(samples, images, strict=True)]
        texts = []
        for one in samples:
            numbers = [round(n) for n in frame(one).numbers(one.true_boxes[0])]
            finds = model == "native" or (model == "tuned" and int(one.id) % 4 == 0)
            texts.append(said([numbers] if finds else [], "left" if model == "tuned" else "there"))
        return [Completion(text=text, model=model, finish_reason="stop") for text in texts]


def test_gates_and_headline_go_by_the_better_of_the_two_forms(tmp_path):
    box = (40, 30, 120, 90)
    samples = [
        sample(f"{n}", [box], image=drawn(tmp_path, f"{n}", box, f"rgb({9 * n}, 0, 0)"), question=f"Where is disc {n}?")
        for n in range(24)
    ]
    talk = runner(tmp_path, samples, answers := Native(), size=24, native=True)
    folder, mark = evaluate(tmp_path, "run", talk)
    assert [len([1 for m, *_ in answers.asked if m == model]) for model in ("base", "native", "tuned")] == [72, 24, 72]
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Baselines(), frame)
    report = build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})
    boxes, answered = judge_gates(report, not_worse_than_base=True)
    assert (boxes["passed"], answered["passed"]) == (False, True)  # 6 of 24 against 24 of 24, and 24 against none
    found = headline(report)
    assert (found["accuracy_at_50"], found["base_accuracy_at_50"], found["base_answer_accuracy"]) == (0.25, 1, 0)
    assert "it was 24 of 24" in report["verdict"]["headline"]
    again = Native()
    evaluate(tmp_path, "again", runner(tmp_path, samples, again, size=24, native=True))
    assert again.count == {"tuned": 72}  # what the base said in either form is kept
