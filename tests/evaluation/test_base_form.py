"""How a base is asked where nobody has tuned it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.evaluating import by_text, frame, sample
from tests.fakes.markers import CONTRACT
from vcot.errors import InputError
from vcot.evaluation.metrics import score
from vcot.evaluation.models import forms_of
from vcot.evaluation.ways import FORMS, as_reply
from vcot.grounding import Box, Mention, Trace, render
from vcot.storage import Store


def form_of(folder, named="auto", contract=CONTRACT, **files: Any):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return forms_of(Store(), str(folder), named, contract).get("native")


@pytest.mark.parametrize(
    ("family", "model_type", "frame_name", "dialect"),
    [
        ("qwen2-vl", "qwen2_vl", "thousandths", "qwen-special"),
        ("qwen2.5-vl", "qwen2_5_vl", "resized_pixels", "qwen-json"),
        ("qwen3-vl", "qwen3_vl", "thousandths", "qwen-json"),
        ("internvl", "internvl", "thousandths", "vcot"),
    ],
)
def test_a_family_is_known_by_its_config_and_its_replies_are_read(tmp_path, family, model_type, frame_name, dialect):
    form = form_of(tmp_path, config={"model_type": model_type})
    assert form == FORMS[family] == form_of(tmp_path, family)
    assert (form.frame, form.dialect) == (frame_name, dialect)
    assert "box" in form.below(sample("a"))
    assert "box" not in form.below(by_text("t"))  # what has no image is not asked for boxes
    # A box in the family's own frame and notation, about an image that the model sees at another size.
    one = sample("a", [(100, 100, 300, 300)])
    one = one.model_copy(update={"images": (one.image.model_copy(update={"width": 1600, "height": 900}),)})
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
    assert form_of(tmp_path, "qwen2.5-vl") == FORMS["qwen2.5-vl"]
    (tmp_path / "contract.json").write_text('{"contract": {"frame": {"name": "inches"}}}')
    with pytest.raises(InputError, match=r"does not say how the model writes boxes .*inches.*--native-form"):
        form_of(tmp_path)


@pytest.mark.parametrize("roles", [(("rationale",), ()), ((), ("rationale",))])
def test_a_base_whose_rationales_are_no_turns_of_their_own_is_asked_so_too(tmp_path, roles):
    """And one whose are, where those of the tuned model are not."""
    tuned, own = (CONTRACT.model_copy(update={"roles": each}) for each in roles)
    (tmp_path / "contract.json").write_text(json.dumps({"contract": own.model_dump(mode="json")}))
    found = form_of(tmp_path, "auto", tuned, config={"model_type": "own"})
    assert found is not None
    assert (found.roles, found.frame) == (own.roles, "thousandths")


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


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        *((reply, "right") for reply in ("down", "**down**", "B", "The answer is B.", "B\n\nIt falls.")),
        *((f"<think>Up?\nNo.</think>{reply}", "right") for reply in ("B", "\n\nB\n\nIt falls.", "\ndown")),
        *((reply, "absent") for reply in ("<think>Up? No.</think>", "")),
        *((reply, "unreadable") for reply in ("up or down", "A\nB", "It falls.")),
        ("up", "wrong"),
    ],
)
def test_direct_replies_are_scored_by_what_follows_reasoning(reply, answer):
    one = sample("a").model_copy(update={"answers": ("down",), "choices": ("up", "down")})
    assert score(as_reply(reply, "direct"), one, frame(one)).answer == answer
