"""How a base is asked where nobody has tuned it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.evaluating import FakeModel, by_text, drawn, evaluate, frame, runner, said, sample
from tests.fakes.markers import CONTRACT
from vcot.errors import InputError
from vcot.evaluation.baselines import Baselines
from vcot.evaluation.compare import judge_gates
from vcot.evaluation.config import EvaluationConfig
from vcot.evaluation.metrics import score
from vcot.evaluation.models import FAMILIES, own_form
from vcot.evaluation.page import headline
from vcot.evaluation.report import build, gather
from vcot.evaluation.runner import read_replies
from vcot.grounding import Box, Mention, Trace, render
from vcot.records import Completion
from vcot.storage import Store


def form_of(folder, named="auto", contract=CONTRACT, **files: Any):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return own_form(Store(), str(folder), named, contract)


@pytest.mark.parametrize(
    ("family", "model_type", "frame_name", "dialect"),
    [
        ("qwen2-vl", "qwen2_vl", "thousandths", "qwen-special"),
        ("qwen2.5-vl", "qwen2_5_vl", "resized_pixels", "qwen-json"),
        ("qwen3-vl", "qwen3_vl", "thousandths", "qwen-json"),
    ],
)
def test_a_family_is_known_by_its_config_and_its_replies_are_read(tmp_path, family, model_type, frame_name, dialect):
    form = form_of(tmp_path, config={"model_type": model_type})
    assert form == FAMILIES[family] == form_of(tmp_path, family)
    assert (form.frame, form.dialect) == (frame_name, dialect)
    assert "box" in form.below(sample("a"))
    assert "box" not in form.below(by_text("t"))  # what has no image is not asked for boxes
    # A box in the family's own frame and notation, about an image that the model sees at another size.
    one = sample("a", [(100, 100, 300, 300)])
    one = one.model_copy(update={"image": one.image.model_copy(update={"width": 1600, "height": 900})})
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
    assert form_of(tmp_path, "qwen2.5-vl") == FAMILIES["qwen2.5-vl"]
    (tmp_path / "contract.json").write_text('{"contract": {"frame": {"name": "inches"}}}')
    with pytest.raises(InputError, match=r"contract.json does not say how the base writes boxes .*inches.*--base-form"):
        form_of(tmp_path)


@pytest.mark.parametrize(
    ("named", "model_type", "changed"),
    [
        ("auto", "llava", {}),
        ("as-tuned", "qwen2_5_vl", {}),
        ("auto", "qwen2_5_vl", {"mode": "text"}),
        ("auto", "own", {"instruction": "Point at it."}),  # tuned in the base's own form
    ],
)
def test_where_there_is_nothing_to_ask_otherwise_the_base_is_asked_once(tmp_path, named, model_type, changed):
    if model_type == "own":
        told = CONTRACT.model_dump(mode="json") | changed
        (tmp_path / "contract.json").write_text(json.dumps({"contract": told}))
    contract = CONTRACT.model_copy(update=changed)
    assert form_of(tmp_path, named, contract, config={"model_type": model_type}) is None


class Native(FakeModel):
    """A base that points only when it is asked in its own form, and a tuned model that finds a quarter."""

    def ask(self, model, samples, images):
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
    asked = runner(tmp_path, samples, answers := Native(), size=24, native=True)
    folder, mark = evaluate(tmp_path, "run", asked)
    assert answers.count == {"base": 72, "native": 24, "tuned": 72}
    evidence = gather(samples, read_replies(Store(), folder.uri, mark.shards), Baselines(), frame)
    report = build(evidence, split="test", seed=0, made_with={"max_new_tokens": 16})
    boxes, answered = judge_gates(report, EvaluationConfig(require_not_worse_than_base=True))
    assert (boxes["passed"], answered["passed"]) == (False, True)  # 6 of 24 against 24 of 24, and 24 against none
    found = headline(report)
    assert (found["accuracy_at_50"], found["base_accuracy_at_50"], found["base_answer_accuracy"]) == (0.25, 1, 0)
    assert "it was 24 of 24" in report["verdict"]["headline"]
    again = Native()
    evaluate(tmp_path, "again", runner(tmp_path, samples, again, size=24, native=True))
    assert again.count == {"tuned": 72}  # what the base said in either form is kept
