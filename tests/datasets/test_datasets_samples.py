"""What a user brings: our own Samples, chat messages with boxes in a declared frame, and LLaVA's conversations."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from tests.fakes.rows import ASKED, STAGES, THOUGHT, Given, messages, png, talk, write_parquet
from vcot.errors import SettingsError
from vcot.grounding import FrameSpec
from vcot.records import Image, Rejection, Sample

OURS = {"image": "a.png", "question": "?", "answers": ["2"]}


@pytest.fixture
def scene(given: Given) -> Given:
    given.image("a.png", 200, 100)
    given.image("chartqa/1.png", 200, 100)
    return given


def detail(result: Sample | Rejection) -> str:
    assert isinstance(result, Rejection)
    return result.detail


# ------------------------------------------------------------------------------------------------ our own lines


def test_three_fields_are_enough(scene: Given) -> None:
    sample = scene.sample("samples", {"image": "a.png", "question": "How many?", "answers": ["2", "two"]})
    assert sample.answers == ("2", "two")
    assert (sample.image.width, sample.image.height, len(sample.image.sha256)) == (200, 100, 64)
    assert sample.evidence is None
    assert sample.id == sample.origin.row == "rows.jsonl:1"
    assert scene.sample("samples", OURS | {"evidence": []}).evidence == ()  # annotated as none
    blank = [{"label": " ", "boxes": [[0, 0, 9, 9]]}]
    assert [m.label for m in scene.sample("samples", OURS | {"evidence": blank}).evidence or ()] == ["region"]


def test_a_sample_that_convert_wrote_comes_back_as_it_was(scene: Given) -> None:
    evidence = [{"label": "cup", "boxes": [[1.5, 2, 30, 40], [50, 60, 70, 80]]}]
    row = {
        "image": {"uri": "a.png"}, "question": "Where?", "answers": ["left"], "choices": ["left", "right"],
        "context": "a hint", "evidence": evidence, "reasoning": [["Here is the ", evidence[0], "."]],
        "origin": {"dataset": "mine", "split": "test", "licence": "CC0", "row": "7", "teacher": "me"},
    }  # fmt: skip
    first = scene.sample("samples", row)
    assert first.origin.model_dump() == row["origin"]
    assert scene.sample("samples", json.loads(first.line())) == first


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"evidence": [{"label": "cup", "boxes": [[30, 2, 1, 40]]}]}, "box-inverted"),
        ({"evidence": [{"label": "cup", "boxes": [[1, 2, 300, 40]]}]}, "box-outside"),
        ({"evidence": [{"label": "cup", "boxes": [[0.1, 0.2, 0.3, 0.4]]}]}, "box-too-small"),
        ({"evidence": [{"label": "cup", "boxes": []}]}, "no-box"),
        ({"evidence": [{"label": "cup"}]}, "wrong-shape"),
        ({"evidence": 7}, "wrong-shape"),
        ({"reasoning": [["a", {"label": "cup", "boxes": [[1, 2, 1, 40]]}]]}, "box-empty"),
        ({"reasoning": ["text"]}, "wrong-shape"),
        ({"image": {"uri": "a.png", "width": 100, "height": 200}}, "image-size-differs"),
        ({"image": {"uri": "a.png", "sha256": "0" * 64}}, "image-changed"),
        ({"image": None}, "wrong-shape"),
        ({"image": "http://host/a.png"}, "image-unsupported"),
        ({"answers": ["2", "\0"]}, "no-answer"),
        ({"question": "\u200b"}, "no-question"),
        ({"choices": "A, B"}, "wrong-shape"),
        ({"choices": ["1", "3"]}, "no-answer"),
        ({"metadata": {"camera": {"name": "x"}}}, "wrong-shape"),
        ({"messages": []}, "wrong-shape"),
        ({"origin": {"split": "dev"}}, "wrong-shape"),
    ],
)
def test_refused_samples(scene: Given, changed: dict[str, Any], reason: str) -> None:
    assert scene.reason("samples", OURS | changed) == reason


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "2"}, "a Sample has no 'answer'; did you mean 'answers'? What is your own goes below 'metadata'"),
        ({"version": True}, "version True; this vcot reads versions 1 and 2"),
        ({"question": "y" * 100_001}, "a text of 100,001 characters; 100,000 of one text are read at most"),
        ({"answers": ["y" * 200_000]}, "a text of 200,000 characters; 100,000 of one text are read at most"),
    ],
)
def test_refusals_say_what_would_be_right(scene: Given, changed: dict[str, Any], said: str) -> None:
    assert detail(scene.outcome("samples", OURS | changed)) == said


@pytest.mark.parametrize("row", [OURS, messages("2"), talk(("human", "?"), ("gpt", "2"), image="a.png")])
def test_row_id_holds_no_credentials(scene: Given, row: dict[str, Any]) -> None:
    ids = [f"https://me:hunter2{n}@host/{n}.jpg?X-Amz-Signature=abc{n}" for n in (1, 1, 2)]
    rows = [row | {"id": name, "metadata": {"n": n}} for n, name in enumerate(ids)]
    found = [result.id for result in scene.outcomes("samples", scene.rows(rows), frame="thousandths")]
    assert found[::2] == [f"https://***@host/{n}.jpg?X-Amz-Signature=***" for n in (1, 2)]


@pytest.mark.parametrize("row", [OURS, messages("2")])
def test_metadata_of_the_users_own_goes_with_the_row(scene: Given, row: dict[str, Any]) -> None:
    own = {"camera": "north", "night": True, "shutter": 0.5, "note": None}
    assert scene.sample("samples", row | {"metadata": own}, frame="thousandths").metadata == own
    assert scene.sample("samples", row, frame="thousandths").metadata == {}


@pytest.mark.parametrize(
    "place", ["{outside}/secret.png", "file://{outside}/secret.png", "s3://other/secret.png", "/etc/passwd",
              "{images}/../secret.png", "bytes+{outside}/secret.png#0+80#a.png"],
)  # fmt: skip
def test_rows_do_not_choose_which_files_are_read(scene: Given, place: str) -> None:
    outside = scene.folder / "elsewhere"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png(9, 9))
    refused = scene.outcome("samples", OURS | {"image": place.format(outside=outside, images=scene.images)})
    assert isinstance(refused, Rejection)
    assert refused.reason == "image-missing"
    assert f"lies outside --images-uri {scene.images}" in refused.detail
    for below in (f"{scene.images}/a.png", f"file://{scene.images}/a.png"):
        assert scene.sample("samples", OURS | {"image": below}).image.width == 200


# --------------------------------------------------------------------------------------------- OpenAI messages


@pytest.mark.parametrize(
    ("frame", "numbers"),
    [
        ({"frame": "thousandths"}, "[100, 200, 300, 400]"),
        ({"frame": "pixels"}, "[20, 20, 60, 40]"),
        ({"frame": "fractions"}, "[0.1, 0.2, 0.3, 0.4]"),
        ({"frame": "padded_square"}, "[0.1, 0.35, 0.3, 0.45]"),
        # 200 × 100 → 196 × 112
        ({"frame": "resized_pixels", "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}, "[20, 22, 59, 45]"),
    ],
)
def test_the_declared_frame_says_what_the_numbers_mean(scene: Given, frame: dict[str, Any], numbers: str) -> None:
    sample = scene.sample("samples", messages(f"The <ref>cup</ref><box>{numbers}</box>.\nAnswer: left"), **frame)
    assert sample.true_boxes is not None
    assert sample.true_boxes[0].as_list() == pytest.approx([20, 20, 60, 40], abs=0.5)
    assert (sample.answers, sample.reasoning[0].text) == (("left",), "The cup.")


def test_a_frame_is_never_guessed_also_where_samples_and_messages_stand_in_one_file(scene: Given) -> None:
    for rows in ([OURS, messages("2")], [messages("2"), OURS]):
        found = scene.outcomes("samples", scene.rows(rows), frame="thousandths")
        assert [type(one) for one in found] == [Sample, Sample]
    for chat in (messages("2"), conversation(("human", "?"), ("gpt", REPLY))):
        with pytest.raises(SettingsError, match=r"--frame is missing: rows\.jsonl:2 is a chat message"):
            scene.outcomes("samples", scene.rows([OURS, chat]))


def test_a_reply_that_states_no_answer_is_the_answer(scene: Given) -> None:
    sample = scene.sample("samples", messages("A  cup\nof tea."), frame="thousandths")
    assert (sample.answers, sample.reasoning, sample.evidence) == (("A cup of tea.",), (), None)
    sample = scene.sample("samples", messages("A <ref>cup</ref><box>[1, 2, 30, 40]</box>."), frame="thousandths")
    assert sample.answers == ("A cup.",)
    assert len(sample.reasoning[0].boxes) == 1


def test_images_may_stand_beside_the_messages_or_inside_them(scene: Given) -> None:
    turns = [("system", "Be brief."), ("user", "<image>Where is it?"), ("assistant", "Answer: left")]
    beside = {"messages": [{"role": role, "content": said} for role, said in turns], "images": ["a.png"]}
    assert scene.sample("samples", beside, frame="thousandths").question == "Where is it?"
    inside = f"data:image/png;base64,{base64.b64encode(png(60, 50)).decode()}"
    sample = scene.sample("samples", messages("Answer: left", image=inside), frame="thousandths")
    assert sample.image.uri.endswith(f"/made/{sample.image.sha256}")
    assert (sample.image.width, sample.image.height) == (60, 50)


TURNS = [
    ("user", "Where is the cup?"), ("assistant", "Here: <ref>cup</ref><box>[100, 200, 300, 400]</box>"),
    ("user", "And what is in it?"), ("assistant", "Answer: tea"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("marks", "shown"), [(("<image>", "<image>\n"), [1, 1]), (("", ""), [2, 0]), (("<image><image>", ""), [2, 0])]
)
def test_messages_of_several_images_and_turns_become_one_sample(
    scene: Given, marks: tuple[str, str], shown: list[int]
) -> None:
    said = [(role, mark + text) for (role, text), mark in zip(TURNS, (marks[0], "", marks[1], ""), strict=True)]
    row = {"messages": [{"role": role, "content": text} for role, text in said], "images": ["a.png", "chartqa/1.png"]}
    sample = scene.sample("samples", row, frame="thousandths")
    assert [image.uri.removeprefix(f"{scene.images}/") for image in sample.images] == ["a.png", "chartqa/1.png"]
    assert [sample.turns[0].images, sample.images_asked] == shown
    assert [turn.said.text for turn in sample.turns] == ["Where is the cup?", "Here: cup"]
    assert sample.turns[1].learned
    assert [box.as_list() for box in sample.turns[1].said.boxes] == [[20, 20, 60, 40]]
    assert (sample.question, sample.answers, sample.evidence) == ("And what is in it?", ("tea",), None)
    assert [trace.parts for trace in sample.reasoning] == [()]  # the place was its reasoning: nothing is to be added
    assert scene.sample("samples", json.loads(sample.line())) == sample


def test_a_conversation_shows_up_to_each_round_the_images_of_these(scene: Given) -> None:
    row = talk(
        ("human", "<image>\nWhere is the cup?"), ("gpt", REPLY), ("human", "<image>\nAnd here?"), ("gpt", "Nowhere."),
        images=["a.png", "chartqa/1.png"],
    )  # fmt: skip
    row.pop("image", None)
    first, second = scene.outcomes("samples", scene.rows([row]), frame="thousandths")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert [len(one.images) for one in (first, second)] == [1, 2]
    assert (second.turns[0].images, second.images_asked) == (1, 1)


def test_our_own_lines_may_have_several_images_and_turns(scene: Given) -> None:
    turns = [{"role": "user", "said": "Look.", "images": 1}, {"role": "assistant", "said": ["I do."], "learned": False}]
    row = {"images": ["a.png", {"uri": "chartqa/1.png"}], "question": "?", "answers": ["2"], "turns": turns}
    sample = scene.sample("samples", row)
    assert (len(sample.images), sample.images_asked, sample.turns[1].learned) == (2, 1, False)
    assert scene.reason("samples", row | {"turns": turns[:1]}) == "wrong-shape"
    assert scene.reason("samples", row | {"turns": [{"role": "user"}]}) == "wrong-shape"
    assert scene.reason("samples", row | {"image": "a.png"}) == "wrong-shape"
    assert scene.reason("samples", row | {"images": ["a.png", "gone.png"]}) == "image-missing"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (messages("<ref>cup</ref><box>[100, 200, 50, 400]</box> Answer: left"), "box-inverted"),
        (messages("<ref>cup</ref><box>[100, 200, 1300, 400]</box> Answer: left"), "box-outside"),
        (messages("<ref>cup</ref><box>[100, 200, 300]</box> Answer: left"), "box-malformed"),
        (messages("<ref>cup</ref> Answer: left"), "no-box"),
        (messages(""), "no-answer"),
        ({"messages": None}, "wrong-shape"),
        ({"messages": [{"role": "user", "content": "?"}]}, "wrong-shape"),
        ({"messages": messages("2")["messages"][:1] * 2}, "wrong-shape"),
        ({"messages": [*messages("<box>[9, 9, 2, 2]</box>")["messages"], *messages("2")["messages"]]}, "box-inverted"),
        ({"messages": [{"role": role, "content": "?"} for role in ("user", "assistant")]}, "wrong-shape"),  # no image
    ],
)
def test_refused_messages(scene: Given, row: dict[str, Any], reason: str) -> None:
    assert scene.reason("samples", row, frame="thousandths") == reason


@pytest.mark.parametrize(
    ("frame", "box", "said"),
    [
        ("thousandths", "[100, 200, 50, 400]", ["(inverted): ", "with x1 < x2 and y1 < y2", "runs over 0..1000 on an "
                                                "image of 200 x 100 pixels"]),
        ("pixels", "[1, 2, 900, 40]", ["the frame pixels runs over 0..200 across and 0..100 down"]),
    ],
)  # fmt: skip
def test_a_faulty_box_is_told_with_its_frame_and_what_that_runs_over(
    scene: Given, frame: str, box: str, said: list[str]
) -> None:
    refused = detail(scene.outcome("samples", messages(f"<ref>cup</ref><box>{box}</box> A: x"), frame=frame))
    assert all(each in refused for each in (f"'<box>{box}</box>'", *said))


# ----------------------------------------------------------------------------------------- LLaVA's conversations

REPLY = "The <ref>cup</ref><box>[100, 200, 300, 400]</box> is here.\nAnswer: left"


def conversation(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return talk(*turns) | {"image": "a.png"} | more


@pytest.mark.parametrize(
    "row",
    [
        conversation(("human", "<image>\nWhere is the cup?"), ("gpt", REPLY)),
        conversation(("user", "Where is the cup?\n<image>"), ("assistant", REPLY)),
        conversation(("system", "Be brief."), ("human", "Where is the cup?"), ("gpt", REPLY), image=["a.png"]),
    ],
)
def test_llavas_form_says_what_openais_does(scene: Given, row: dict[str, Any]) -> None:
    sample = scene.sample("samples", row, frame="thousandths")
    same = scene.sample("samples", messages(REPLY), frame="thousandths")
    for field in ("image", "question", "answers", "reasoning", "evidence", "choices", "context"):
        assert getattr(sample, field) == getattr(same, field), field


def test_earlier_rounds_are_turns_that_are_not_learned_again(scene: Given) -> None:
    cup = (("human", "<image>\nWhere is the cup?"), ("gpt", REPLY.partition("\n")[0]))
    row = conversation(*cup, ("human", "And the pot?"), ("gpt", "There is no pot."))
    first, second = scene.outcomes("samples", scene.rows([row]), frame="thousandths")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    asked, replied = second.turns
    assert (asked.role, asked.said.text, asked.images) == ("user", "Where is the cup?", 1)
    assert (replied.role, replied.said.text, replied.learned) == ("assistant", "The cup is here.", False)
    assert replied.said.boxes == first.true_boxes  # as a place, which each base writes in its own numbers
    assert (len(second.images), second.images_asked, second.context) == (1, 0, None)
    assert (second.answers, second.evidence) == (("There is no pot.",), None)


# -------------------------------------------------------------------------- --source llava-cot: reasoning set apart


@pytest.mark.parametrize(
    "row",
    [
        talk(ASKED, ("reason", THOUGHT), ("gpt", "21")),  # LaCoT
        talk(ASKED, ("reason", f"<think>\n{THOUGHT}\n</think>"), ("gpt", "<answer>21</answer>")),
        talk(ASKED, ("reason", STAGES.partition("<CONCLUSION>")[0]), ("gpt", "<CONCLUSION> 21 </CONCLUSION>")),
        talk(ASKED, ("gpt", STAGES)),  # LLaVA-CoT
        talk(ASKED, ("gpt", f"<think>\n{THOUGHT}\n</think>\n\n21")),  # R1-Onevision
        talk(ASKED, ("gpt", f"<think>{THOUGHT}</think><answer> 21 </answer>")),
        talk(ASKED, ("gpt", STAGES), image="cot/chartqa/1.png"),
        talk(("system", "Be brief."), ASKED, ("gpt", STAGES), image=["chartqa/1.png"]),
    ],
)
def test_every_way_to_tell_the_reasoning_apart_gives_the_same(scene: Given, row: dict[str, Any]) -> None:
    sample = scene.sample("llava-cot", row)
    assert sample.question == "How many leaders were killed?"
    assert [trace.text for trace in sample.reasoning] == [THOUGHT]
    assert (sample.answers, sample.evidence, sample.context) == (("21",), None, None)
    assert sample.image.uri.endswith("/images/chartqa/1.png")
    assert sample.origin.dataset == "llava-cot"


def test_parquet_of_r1_onevision_holds_its_images_as_base64(given: Given) -> None:
    row = talk(ASKED, ("gpt", f"<think>{THOUGHT}</think>21"), image=base64.b64encode(png(60, 50)).decode())
    text_only, broken = row | {"image": None}, row | {"image": "no base64!"}
    turn = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
    types = {"id": pa.string(), "image": pa.string(), "conversations": pa.list_(turn)}
    uri = write_parquet(given.folder / "ai2d/train-00000-of-00001.parquet", [row, text_only, broken], types)
    sample, *refused = given.outcomes("llava-cot", uri)
    assert isinstance(sample, Sample)
    assert (sample.image.width, sample.image.height) == (60, 50)
    assert [r.reason.value for r in refused if isinstance(r, Rejection)] == ["no-image", "image-not-an-image"]


def test_each_round_of_a_talk_is_a_sample_that_knows_the_earlier_ones(scene: Given) -> None:
    row = talk(ASKED, ("gpt", STAGES), ("human", "And wounded?"), ("gpt", STAGES.replace("21", "7")))
    first, second = scene.outcomes("llava-cot", scene.rows([row]))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.id, second.id) == ("rows.jsonl:1#1", "rows.jsonl:1#2")
    assert (first.context, first.answers) == (None, ("21",))
    assert (second.question, second.answers) == ("And wounded?", ("7",))
    assert second.context == "Question: How many leaders were killed?\nAnswer: 21"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk(ASKED, ("gpt", "21")), "no-reasoning"),
        (talk(ASKED, ("gpt", "<think></think>21")), "no-reasoning"),
        (talk(ASKED, ("reason", " "), ("gpt", "21")), "no-reasoning"),
        (talk(ASKED, ("gpt", "<think>Long, and cut off")), "no-reasoning"),
        (talk(ASKED, ("gpt", "<think>I see.</think>")), "no-answer"),
        (talk(("human", "<image>"), ("gpt", STAGES)), "no-question"),
        (talk(ASKED, ("gpt", STAGES), image=None), "no-image"),
        (talk(ASKED, ("gpt", STAGES), image=["a.png", "b.png"]), "wrong-shape"),
        (talk(ASKED, ("gpt", STAGES), image="chartqa/2.png"), "image-missing"),
        (talk(ASKED), "wrong-shape"),
        (talk(ASKED, ("reason", "so")), "wrong-shape"),
        (talk(ASKED, ("gpt", 21)), "wrong-shape"),
        ({"conversations": None}, "wrong-shape"),
        ({"conversations": [["human", "?"]]}, "wrong-shape"),
    ],
)
def test_refused_conversations(scene: Given, row: dict[str, Any], reason: str) -> None:
    assert scene.reason("llava-cot", row) == reason


def test_a_refusal_says_which_source_reads_such_rows(scene: Given) -> None:
    refused = detail(scene.outcome("llava-cot", talk(ASKED, ("gpt", "It was 21."))))
    assert "'It was 21.'" in refused
    assert "--source samples" in refused


# ------------------------------------------------------------------- replies in other people's notations (replies.py)

VAN_AND_CAR = (("van", [20, 20, 60, 40]), ("car", [100, 50, 200, 100]))
JSON_LIST = (
    '[\n {"bbox_2d": [100, 200, 300, 400], "label": "van"},\n {"bbox_2d": [500, 500, 1000, 1000], "label": "car"}\n]'
)


def replied(scene: Given, reply: str, question: str = "Where is the cup?", **options: Any) -> Sample:
    """Of a conversation in LLaVA's form, which must say what the same messages do."""
    options = {"frame": "thousandths"} | options
    sample = scene.sample("samples", conversation(("human", f"<image>\n{question}"), ("gpt", reply)), **options)
    same = scene.sample("samples", messages(reply, question), **options)
    assert (sample.answers, sample.reasoning, sample.evidence) == (same.answers, same.reasoning, same.evidence)
    return sample


def places(sample: Sample) -> list[tuple[str, list[float]]]:
    return [(m.label, [round(edge, 3) for edge in box.as_list()]) for m in sample.evidence or () for box in m.boxes]


@pytest.mark.parametrize(
    ("reply", "answer", "found"),
    [
        (f"```json\n{JSON_LIST}\n```", "2", VAN_AND_CAR), (JSON_LIST, "2", VAN_AND_CAR),
        (f'{{"objects": {JSON_LIST}}}', "2", VAN_AND_CAR),
        (f"<answer>\n```json\n{JSON_LIST}\n```\n</answer>", "2", VAN_AND_CAR),
        ('{\n"bbox_2d": [100, 200, 300, 400]\n}', "top left", [("region", [20, 20, 60, 40])]),
        ("<|box_start|>(100,200),(300,400)<|box_end|>", "top left", [("region", [20, 20, 60, 40])]),
        ("[100, 200, 300, 400]", "top left", [("region", [20, 20, 60, 40])]),
        ("[[100, 200, 300, 400], [500, 500, 1000, 1000]]", "2", [("region", b) for _, b in VAN_AND_CAR]),
        ("Answer: [100, 200, 300, 400]", "top left", [("region", [20, 20, 60, 40])]),
        # Gemini: [ymin, xmin, ymax, xmax]
        ('```json\n[{"box_2d": [200, 500, 400, 900], "label": "van"}]\n```', "top right",
         [("van", [100, 20, 180, 40])]),
    ],
)  # fmt: skip
def test_reply_of_places_is_a_grounding_answer(
    scene: Given, reply: str, answer: str, found: Sequence[tuple[str, list[float]]]
) -> None:
    sample = replied(scene, reply)
    assert (sample.answers, places(sample)) == ((answer,), list(found))
    assert "```" not in sample.reasoning[0].text
    assert "{" not in sample.reasoning[0].text


def test_place_without_label_takes_that_of_the_question(scene: Given) -> None:
    sample = replied(
        scene, "<|box_start|>(100,200),(300,400)<|box_end|>", "Find <|object_ref_start|>sheep<|object_ref_end|>"
    )
    assert (sample.question, places(sample)) == ("Find sheep", [("sheep", [20, 20, 60, 40])])


def test_plain_box_is_read_in_the_declared_frame(scene: Given) -> None:
    assert places(replied(scene, "[0.1,0.2,0.3,0.4]", frame="fractions")) == [("region", [20, 20, 60, 40])]
    assert places(replied(scene, "[0.1,0.35,0.3,0.45]", frame="padded_square")) == [("region", [20, 20, 60, 40])]
    fractions = conversation(("human", "?"), ("gpt", "[0.39,0.21,0.60,0.50]"))
    assert scene.reason("samples", fractions, frame="pixels") == "box-too-small"
    assert scene.reason("samples", fractions, frame="thousandths") == "box-outside"


LOOKED = "I look at the <ref>cat</ref><box>[100, 200, 300, 400]</box>."


@pytest.mark.parametrize(
    "reply",
    [
        f"<think>{LOOKED}</think>\n\nIt sleeps.", f"<think>\n{LOOKED}\n</think><answer>It sleeps.</answer>",
        f"{LOOKED}\n</think>\n\nIt sleeps.", f"<Thinking>{LOOKED}</Thinking>\nAnswer: It sleeps.",
    ],
)  # fmt: skip
def test_thinking_is_reasoning_apart_from_the_answer(scene: Given, reply: str) -> None:
    sample = replied(scene, reply)
    assert (sample.answers, [trace.text for trace in sample.reasoning]) == (("It sleeps.",), ["I look at the cat."])
    assert places(sample) == [("cat", [20, 20, 60, 40])]


def test_thinking_may_end_in_places(scene: Given) -> None:
    sample = replied(scene, f"<think>Two things.</think><answer>{JSON_LIST}</answer>")
    assert (sample.answers, places(sample)) == (("2",), list(VAN_AND_CAR))
    assert sample.reasoning[0].text == "Two things.\nvancar"


def test_thinking_of_earlier_turns_keeps_no_tags(scene: Given) -> None:
    first = messages(f"<think>{LOOKED}</think>It sleeps.")["messages"]
    sample = scene.sample("samples", {"messages": [*first, *messages("Answer: 2")["messages"]]}, frame="thousandths")
    assert sample.turns[1].said.text == "I look at the cat.\nIt sleeps."


@pytest.mark.parametrize(
    "place",
    ["<loc0100><loc0500><loc0300><loc0900> cat", '[{"point_2d": [100, 200], "label": "cup"}]', "<point x='1' y='2'>",
     '{"x1": 1, "y1": 2, "x2": 3, "y2": 4}', '{"x": 1, "y": 2, "width": 3, "height": 4}', "<loc_12><loc_13> cat",
     '{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}', "at [0.39, 0.21, 0.60, 0.50] there", '{"cat": [1, 2, 3, 4]}',
     "the cat (10,20),(30,40)", "<|det|>[[1, 2, 3, 4]]<|/det|>", "a cat<|im_end|>", "Answer: at (1, 2, 30, 40)"],
)  # fmt: skip
def test_places_in_unread_notations_are_refused(scene: Given, place: str) -> None:
    for row in (
        messages(place), conversation(("human", "?"), ("gpt", place)),
        {"messages": [*messages(f"{place}\nAnswer: 2")["messages"], *messages("2")["messages"]]},
    ):  # fmt: skip
        for frame in ("thousandths", "fractions"):
            assert scene.reason("samples", row, frame=frame) == "box-notation"


@pytest.mark.parametrize(
    "question", ["Describe this region: [0.39, 0.21, 0.6, 0.5].", "What is in <box>[1, 2, 30, 40]</box>?", "<loc0100>?",
                 "And <|box_start|>(1,2),(30,40)<|box_end|>?"],
)  # fmt: skip
def test_questions_that_name_places_are_refused(scene: Given, question: str) -> None:
    assert scene.reason("samples", messages("A man.", question), frame="thousandths") == "box-notation"
    asked = {"messages": [*messages("A man.", question)["messages"], *messages("2")["messages"]]}
    assert scene.reason("samples", asked, frame="thousandths") == "box-notation"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("<think>I look", "no-answer"), ("<think>I look</think>", "no-answer"), ("[]", "no-answer"),
     ("```json\n[]\n```", "no-answer"), ("<SUMMARY>x</SUMMARY><CONCLUSION>y</CONCLUSION>", "wrong-shape"),
     ("<answer>a</answer><answer>b</answer>", "wrong-shape")],
)  # fmt: skip
def test_replies_without_an_answer_are_refused(scene: Given, reply: str, reason: str) -> None:
    assert scene.reason("samples", conversation(("human", "?"), ("gpt", reply)), frame="thousandths") == reason


@pytest.mark.parametrize("reply", ["It costs 5 (1 of 3).", "x < 3 and {y}", "Rows [1, 2] and (3, 4, 5).", "1, 2, 3, 4"])
def test_ordinary_numbers_are_no_places(scene: Given, reply: str) -> None:
    assert replied(scene, reply).answers == (reply,)


@pytest.mark.parametrize(
    "piece", ["[1", "[ ", "1", "(1,2)", "(1,2) ", " ", "[1,2,3,4],", "<answer>", "<answer></answer>", "<ref>", '"a":',
              "<think>", "</think>", "```json", '"x" ', "<|", '{"'],
)  # fmt: skip
def test_hostile_replies_take_linear_time(piece: str) -> None:
    from vcot.datasets import replies
    from vcot.datasets.inputs import Refused

    image = Image(uri="a", width=200, height=100, sha256="0" * 64)
    for text in (piece * (40_000 // len(piece)), "(1,2)" + piece * (40_000 // len(piece)), "[" + piece * 9_000):
        started = time.process_time()
        for read in (replies.read_question, lambda text: replies.read_reply(text, image, FrameSpec("pixels"), text)):
            with contextlib.suppress(Refused):
                read(text)
        assert time.process_time() - started < 2


@pytest.mark.parametrize(("angle", "is_read"), [("30", False), ("-0.5", False), ("0", True), ("0.0", True)])
def test_rotated_boxes_in_replies_are_refused(scene: Given, angle: str, is_read: bool) -> None:
    row = messages(f'[{{"bbox_2d": [100, 200, 300, 400], "label": "cup", "rotation": {angle}}}]')
    result = scene.outcome("samples", row, frame="thousandths")
    assert isinstance(result, Sample) is is_read
    assert is_read or "a box is rotated; replace it by the upright box" in detail(result)
