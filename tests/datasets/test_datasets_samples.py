"""What a user brings: our own Samples, and chat messages with boxes in a declared frame."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from tests.datasets.given import Given, png
from vcot.datasets.row import Row
from vcot.errors import SettingsError
from vcot.records import Rejection, Sample


@pytest.fixture
def scene(given: Given) -> Given:
    given.image("a.png", 200, 100)
    return given


def messages(reply: str, question: Any = "Where is the cup?", image: str = "a.png") -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]}


# ------------------------------------------------------------------------------------------------ our own lines


def test_three_fields_are_enough(scene: Given) -> None:
    sample = scene.sample("samples", {"image": "a.png", "question": "How many?", "answers": ["2", "two"]})
    assert sample.answers == ("2", "two")
    assert (sample.image.width, sample.image.height) == (200, 100)
    assert len(sample.image.sha256) == 64
    assert sample.evidence is None
    assert sample.id == sample.origin.row == "rows.jsonl:1"


def test_a_sample_that_convert_wrote_comes_back_as_it_was(scene: Given) -> None:
    evidence = [{"label": "cup", "boxes": [[1.5, 2, 30, 40], [50, 60, 70, 80]]}]
    row = {
        "image": {"uri": "a.png"}, "question": "Where?", "answers": ["left"], "choices": ["left", "right"],
        "context": "a hint", "evidence": evidence, "reasoning": [["Here is the ", evidence[0], "."]],
        "origin": {"dataset": "mine", "split": "test", "licence": "CC0", "row": "7", "teacher": "me"},
    }  # fmt: skip
    first = scene.sample("samples", row)
    assert first.origin.model_dump() == {
        "dataset": "mine", "split": "test", "row": "7", "licence": "CC0", "teacher": "me",
    }  # fmt: skip
    again = scene.sample("samples", json.loads(first.line()))
    assert again == first


def test_no_annotation_and_annotated_as_absent_are_two_things(scene: Given) -> None:
    row = {"image": "a.png", "question": "Is there a cup?", "answers": ["no"]}
    assert scene.sample("samples", row | {"evidence": None}).evidence is None
    assert scene.sample("samples", row | {"evidence": []}).evidence == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"evidence": [{"label": "cup", "boxes": [[30, 2, 1, 40]]}]}, "box-inverted"),
        ({"evidence": [{"label": "cup", "boxes": [[1, 2, 300, 40]]}]}, "box-outside"),
        ({"evidence": [{"label": "cup", "boxes": []}]}, "no-box"),
        ({"evidence": [{"label": "cup"}]}, "wrong-shape"),
        ({"evidence": 7}, "wrong-shape"),
        ({"reasoning": [["a", {"label": "cup", "boxes": [[1, 2, 1, 40]]}]]}, "box-empty"),
        ({"reasoning": ["text"]}, "wrong-shape"),
        ({"image": {"uri": "a.png", "width": 100, "height": 200}}, "image-size-differs"),
        ({"image": {"uri": "a.png", "sha256": "0" * 64}}, "image-changed"),
        ({"image": {"width": 3}}, "wrong-shape"),
        ({"image": "http://host/a.png"}, "image-unsupported"),
        ({"answers": []}, "no-answer"),
        ({"answers": [""]}, "no-answer"),
        ({"question": ""}, "no-question"),
        ({"choices": "A, B"}, "wrong-shape"),
        ({"anwser": "2"}, "wrong-shape"),
        ({"choices": ["1", "3"]}, "no-answer"),
        ({"question": "\u200b"}, "no-question"),
        ({"answers": ["2", "\0"]}, "no-answer"),
        ({"metadata": ["night"]}, "wrong-shape"),
        ({"metadata": {"camera": {"name": "x"}}}, "wrong-shape"),
        ({"messages": []}, "wrong-shape"),
        ({"origin": {"split": "dev"}}, "wrong-shape"),
    ],
)
def test_samples_that_are_refused(scene: Given, changed: dict[str, Any], reason: str) -> None:
    assert scene.reason("samples", {"image": "a.png", "question": "?", "answers": ["2"]} | changed) == reason


def test_a_misspelt_field_is_told_with_the_right_one(scene: Given) -> None:
    refused = scene.outcome("samples", {"image": "a.png", "question": "?", "answer": "2"})
    assert isinstance(refused, Rejection)
    assert refused.detail == "a Sample has no 'answer'; did you mean 'answers'? What is your own goes below 'metadata'"


@pytest.mark.parametrize("form", ["sample", "messages"])
def test_metadata_of_the_users_own_goes_with_the_row(scene: Given, form: str) -> None:
    row = {"image": "a.png", "question": "?", "answers": ["2"]} if form == "sample" else messages("2")
    own = {"camera": "north", "night": True, "shutter": 0.5, "note": None}
    assert scene.sample("samples", row | {"metadata": own}, frame="thousandths").metadata == own
    assert scene.sample("samples", row, frame="thousandths").metadata == {}


def test_samples_and_messages_may_stand_in_one_file(scene: Given) -> None:
    ours = {"image": "a.png", "question": "How many?", "answers": ["2"]}
    for rows in ([ours, messages("2")], [messages("2"), ours]):
        found = scene.outcomes("samples", scene.rows(rows), frame="thousandths")
        assert [type(one) for one in found] == [Sample, Sample]
    with pytest.raises(SettingsError, match=r"--frame is missing: rows\.jsonl:2 is a chat message"):
        scene.outcomes("samples", scene.rows([ours, messages("2")]))


def test_a_sample_of_another_version_is_not_read_as_ours(scene: Given) -> None:
    row = {"image": "a.png", "question": "?", "answers": ["2"]}
    for version in (9, "1", True):
        refused = scene.outcome("samples", row | {"version": version})
        assert isinstance(refused, Rejection), version
        assert refused.reason.value == "wrong-shape"
        assert refused.detail == f"version {version!r}; this vcot reads version 1"
    assert scene.sample("samples", row | {"version": 1}) == scene.sample("samples", row | {"version": None})


def test_what_a_row_leaves_open_about_its_image_is_filled_in(scene: Given) -> None:
    row = {"image": {"uri": "a.png"}, "question": "?", "answers": ["2"]}
    known = scene.sample("samples", row)
    row["image"] = {"uri": "a.png", "width": None, "height": None, "sha256": None}
    assert scene.sample("samples", row) == known
    row["image"] = {"uri": "a.png", "width": None, "height": 99, "sha256": None}
    assert scene.reason("samples", row) == "image-size-differs"


# --------------------------------------------------------------------------------------------- OpenAI messages


@pytest.mark.parametrize(
    ("frame", "numbers"),
    [
        ({"frame": "thousandths"}, "[100, 200, 300, 400]"),
        ({"frame": "pixels"}, "[20, 20, 60, 40]"),
        ({"frame": "fractions"}, "[0.1, 0.2, 0.3, 0.4]"),
        ({"frame": "padded_square"}, "[0.1, 0.35, 0.3, 0.45]"),
        (
            {"frame": "resized_pixels", "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280},
            "[20, 22, 59, 45]",
        ),  # 200 × 100 → 196 × 112
    ],
)
def test_the_declared_frame_says_what_the_numbers_mean(scene: Given, frame: dict[str, Any], numbers: str) -> None:
    sample = scene.sample("samples", messages(f"The <ref>cup</ref><box>{numbers}</box>.\nAnswer: left"), **frame)
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == pytest.approx([20, 20, 60, 40], abs=0.5)
    assert sample.answers == ("left",)
    assert sample.reasoning[0].text == "The cup."


def test_a_frame_is_never_guessed(scene: Given) -> None:
    with pytest.raises(SettingsError, match="--frame is missing"):
        scene.outcomes("samples", scene.rows([messages("The cup [1, 2, 3, 4]. Answer: left")]))


def test_a_reply_that_states_no_answer_is_the_answer(scene: Given) -> None:
    sample = scene.sample("samples", messages("A  cup\nof tea."), frame="thousandths")
    assert (sample.answers, sample.reasoning, sample.evidence) == (("A cup of tea.",), (), None)
    sample = scene.sample("samples", messages("A <ref>cup</ref><box>[1, 2, 30, 40]</box>."), frame="thousandths")
    assert sample.answers == ("A cup.",)
    assert len(sample.reasoning[0].boxes) == 1


def test_images_may_stand_beside_the_messages_or_inside_them(scene: Given) -> None:
    beside = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>Where is it?"},
            {"role": "assistant", "content": "Answer: left"},
        ],
        "images": ["a.png"],
    }
    assert scene.sample("samples", beside, frame="thousandths").question == "Where is it?"
    inside = f"data:image/png;base64,{base64.b64encode(png(60, 50)).decode()}"
    sample = scene.sample("samples", messages("Answer: left", image=inside), frame="thousandths")
    assert sample.image.uri.endswith(f"/made/{sample.image.sha256}")
    assert (sample.image.width, sample.image.height) == (60, 50)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("<ref>cup</ref><box>[100, 200, 50, 400]</box> Answer: left", "box-inverted"),
        ("<ref>cup</ref><box>[100, 200, 1300, 400]</box> Answer: left", "box-outside"),
        ("<ref>cup</ref><box>[100, 200, 300]</box> Answer: left", "box-malformed"),
        ("<ref>cup</ref> Answer: left", "no-box"),
        ("", "no-answer"),
    ],
)
def test_replies_that_are_refused(scene: Given, reply: str, reason: str) -> None:
    assert scene.reason("samples", messages(reply), frame="thousandths") == reason


def test_a_faulty_box_is_told_with_its_frame_and_what_that_runs_over(scene: Given) -> None:
    refused = scene.outcome(
        "samples", messages("<ref>cup</ref><box>[100, 200, 50, 400]</box> A: x"), frame="thousandths"
    )
    assert isinstance(refused, Rejection)
    assert "'<box>[100, 200, 50, 400]</box>' (inverted): " in refused.detail
    assert "[x1, y1, x2, y2] with x1 < x2 and y1 < y2" in refused.detail
    assert "the frame thousandths runs over 0..1000 on an image of 200 x 100 pixels" in refused.detail
    row = messages("<ref>cup</ref><box>[1, 2, 900, 40]</box> Answer: x")
    refused = scene.outcome("samples", row, frame="pixels")
    assert isinstance(refused, Rejection)
    assert "the frame pixels runs over 0..200 across and 0..100 down" in refused.detail


@pytest.mark.parametrize(
    "turns",
    [
        [],
        None,
        [{"role": "user", "content": "?"}],
        [{"role": role, "content": "?"} for role in ("user", "assistant", "user", "assistant")],
        [{"role": role, "content": "?"} for role in ("user", "assistant")],  # no image
    ],
)
def test_talks_of_another_shape(scene: Given, turns: Any) -> None:
    assert scene.reason("samples", {"messages": turns}, frame="thousandths") == "wrong-shape"


# ----------------------------------------------------------------------------------------- LLaVA's conversations


def talk(*turns: tuple[str, Any], image: Any = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": "7", "image": image, "conversations": [{"from": who, "value": said} for who, said in turns]} | more


REPLY = "The <ref>cup</ref><box>[100, 200, 300, 400]</box> is here.\nAnswer: left"


@pytest.mark.parametrize(
    "row",
    [
        talk(("human", "<image>\nWhere is the cup?"), ("gpt", REPLY)),
        talk(("user", "Where is the cup?\n<image>"), ("assistant", REPLY)),
        talk(("system", "Be brief."), ("human", "Where is the cup?"), ("gpt", REPLY), image=["a.png"]),
        {"images": ["a.png"]}
        | {k: v for k, v in talk(("human", "Where is the cup?"), ("gpt", REPLY)).items() if k != "image"},
    ],
)
def test_llavas_form_says_what_openais_does(scene: Given, row: dict[str, Any]) -> None:
    sample = scene.sample("samples", row, frame="thousandths")
    same = scene.sample("samples", messages(REPLY), frame="thousandths")
    for field in ("image", "question", "answers", "reasoning", "evidence", "choices", "context"):
        assert getattr(sample, field) == getattr(same, field), field
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == [20, 20, 60, 40]


def test_llavas_boxes_need_a_declared_frame_too(scene: Given) -> None:
    with pytest.raises(SettingsError, match="--frame is missing"):
        scene.outcomes("samples", scene.rows([talk(("human", "?"), ("gpt", REPLY))]))
    padded = scene.sample(
        "samples", talk(("human", "?"), ("gpt", "<ref>cup</ref><box>[0.1, 0.35, 0.3, 0.45]</box> Answer: x")),
        frame="padded_square",
    )  # fmt: skip
    assert padded.true_boxes is not None
    assert padded.true_boxes[0].as_list() == pytest.approx([20, 20, 60, 40])


def test_rounds_become_samples_and_no_frames_numbers_stand_in_their_context(scene: Given) -> None:
    row = talk(
        ("human", "<image>\nWhere is the cup?"), ("gpt", REPLY.partition("\n")[0]), ("human", "And the pot?"),
        ("gpt", "There is no pot."),
    )  # fmt: skip
    first, second = scene.outcomes("samples", scene.rows([row]), frame="thousandths")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.question, second.question) == ("Where is the cup?", "And the pot?")
    assert second.context == "Question: Where is the cup?\nAnswer: The cup is here."
    assert (second.answers, second.evidence) == (("There is no pot.",), None)


def test_a_talk_about_no_image_is_refused(scene: Given) -> None:
    row = talk(("human", "What is a cup?"), ("gpt", "A vessel."), image=None)
    assert scene.reason("samples", row, frame="thousandths") == "no-image"


# ------------------------------------------------------------------------------------------------------- anything

_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = (
    "image", "question", "answers", "evidence", "reasoning", "origin", "choices", "context", "id", "messages", "images",
    "conversations", "dataset", "answer", "bboxs", "width", "height", "split", "thought", "possible_answers",
    "lecture", "hint", "solution", "rationales", "direct_answers", "correct_choice_idx", "image_id", "expression",
    "img_path", "bbox", "dataset_name", "answer",
)  # fmt: skip


@pytest.mark.parametrize("source", ["samples", "viscot", "scienceqa", "aokvqa", "refcoco", "llava-cot"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@generated(row=st.dictionaries(st.sampled_from(_FIELDS), _JUNK), fixed=st.booleans())
def test_whatever_a_row_says_it_is_kept_or_refused(scene: Given, source: str, row: dict[str, Any], fixed: bool) -> None:
    """Never an exception: a stage of a million rows does not end because of one."""
    from vcot.datasets import DATASETS
    from vcot.datasets.reading import one

    whole = {"image": "a.png", "question": "?", "answers": ["2"], "answer": "2", "dataset": "vsr"} if fixed else {}
    read = DATASETS[source]
    desk = scene.desk(source, **({"frame": "thousandths"} if source == "samples" else {}))
    found = Row("x:1", whole | row)
    for each in read.expand(found) if read.expand else (found,):
        result = one(each, desk)
        assert isinstance(result, Sample | Rejection)
        assert result.line()


# ------------------------------------------------------------------------------------- what rows may not choose


@pytest.mark.parametrize(
    "place", ["{outside}/secret.png", "file://{outside}/secret.png", "s3://other/secret.png", "/etc/passwd",
              "{images}/../secret.png", "bytes+{outside}/secret.png#0+80#a.png"],
)  # fmt: skip
def test_rows_do_not_choose_which_files_are_read(scene: Given, place: str) -> None:
    outside = scene.folder / "elsewhere"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png(9, 9))
    place = place.format(outside=outside, images=scene.images)
    refused = scene.outcome("samples", {"image": place, "question": "What?", "answers": ["x"]})
    assert isinstance(refused, Rejection)
    assert refused.reason == "image-missing"
    assert f"lies outside --images-uri {scene.images}" in refused.detail


def test_a_whole_place_below_the_folder_of_images_is_read(scene: Given) -> None:
    for place in (f"{scene.images}/a.png", f"file://{scene.images}/a.png"):
        assert scene.sample("samples", {"image": place, "question": "What?", "answers": ["x"]}).image.width == 200


@pytest.mark.parametrize(("field", "size"), [("question", 100_001), ("context", 50_000_000), ("answers", 200_000)])
def test_texts_that_no_model_reads_are_refused(scene: Given, field: str, size: int) -> None:
    row: dict[str, Any] = {"image": "a.png", "question": "What?", "answers": ["x"]}
    row[field] = ["y" * size] if field == "answers" else "y" * size
    refused = scene.outcome("samples", row)
    assert isinstance(refused, Rejection)
    assert refused.detail == f"a text of {size:,} characters; 100,000 of one text are read at most"


@pytest.mark.parametrize("image", [None, 5, {}, {"uri": 5}])
def test_an_image_that_is_none_is_told_by_the_name_that_the_row_has_for_it(scene: Given, image: Any) -> None:
    refused = scene.outcome("samples", {"image": image, "question": "What?", "answers": ["x"]})
    assert isinstance(refused, Rejection)
    assert refused.detail.startswith("image is a path")


def test_a_label_without_words_is_a_region(scene: Given) -> None:
    row = {"image": "a.png", "question": "?", "answers": ["x"], "evidence": [{"label": " ", "boxes": [[0, 0, 9, 9]]}]}
    assert [mention.label for mention in scene.sample("samples", row).evidence or ()] == ["region"]
