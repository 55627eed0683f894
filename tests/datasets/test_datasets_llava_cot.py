"""Reasoning without boxes, in the shapes of LLaVA-CoT-100k, R1-Onevision and LaCoT's files, written by this test."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa
import pytest

from tests.datasets.given import Given, png
from tests.datasets.parquet import write
from vcot.records import Rejection, Sample

STAGES = (
    "<SUMMARY> I will read the chart. </SUMMARY>\n\n<CAPTION> A bar chart. </CAPTION>\n\n"
    "<REASONING> The tallest bar is 21. </REASONING>\n\n<CONCLUSION> 21 </CONCLUSION>"
)
THOUGHT = "I will read the chart.\n\nA bar chart.\n\nThe tallest bar is 21."


def talk(*turns: tuple[str, Any], image: Any = "chartqa/1.png", **more: Any) -> dict[str, Any]:
    return {"id": "x", "image": image, "conversations": [{"from": who, "value": said} for who, said in turns]} | more


ASKED = ("human", "<image>\nHow many leaders were killed?")


@pytest.fixture
def chart(given: Given) -> Given:
    given.image("chartqa/1.png", 200, 100)
    return given


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
def test_every_way_to_tell_the_reasoning_apart_gives_the_same(chart: Given, row: dict[str, Any]) -> None:
    sample = chart.sample("llava-cot", row)
    assert sample.question == "How many leaders were killed?"
    assert [trace.text for trace in sample.reasoning] == [THOUGHT]
    assert sample.answers == ("21",)
    assert sample.evidence is None
    assert sample.context is None
    assert sample.image.uri.endswith("/images/chartqa/1.png")
    assert sample.origin.dataset == "llava-cot"


def test_parquet_of_r1_onevision_holds_its_images_as_base64(given: Given) -> None:
    row = talk(ASKED, ("gpt", f"<think>{THOUGHT}</think>21"), image=base64.b64encode(png(60, 50)).decode())
    text_only, broken = row | {"image": None}, row | {"image": "no base64!"}
    turn = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
    types = {"id": pa.string(), "image": pa.string(), "conversations": pa.list_(turn)}
    uri = write(given.folder / "ai2d/train-00000-of-00001.parquet", [row, text_only, broken], types)
    sample, *refused = given.outcomes("llava-cot", uri)
    assert isinstance(sample, Sample)
    assert (sample.image.width, sample.image.height) == (60, 50)
    assert sample.image.uri.endswith(f"/made/{sample.image.sha256}")
    assert [r.reason.value for r in refused if isinstance(r, Rejection)] == ["no-image", "image-not-an-image"]


def test_each_round_of_a_talk_is_a_sample_that_knows_the_earlier_ones(chart: Given) -> None:
    row = talk(ASKED, ("gpt", STAGES), ("human", "And wounded?"), ("gpt", STAGES.replace("21", "7")))
    first, second = chart.outcomes("llava-cot", chart.rows([row]))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.id, second.id) == ("rows.jsonl:1#1", "rows.jsonl:1#2")
    assert (first.context, first.answers) == (None, ("21",))
    assert second.question == "And wounded?"
    assert second.context == "Question: How many leaders were killed?\nAnswer: 21"
    assert second.answers == ("7",)


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
        (talk(ASKED, ("gpt", STAGES), image=[]), "no-image"),
        (talk(ASKED, ("gpt", STAGES), image=["a.png", "b.png"]), "wrong-shape"),
        (talk(ASKED, ("gpt", STAGES), image="chartqa/2.png"), "image-missing"),
        (talk(ASKED, ("gpt", STAGES), image="../../etc/passwd"), "image-missing"),
        (talk(ASKED), "wrong-shape"),
        (talk(("gpt", "Hello."), ASKED), "wrong-shape"),
        (talk(ASKED, ("reason", "so")), "wrong-shape"),
        (talk(ASKED, ("gpt", 21)), "wrong-shape"),
        (talk(), "wrong-shape"),
        ({"conversations": None}, "wrong-shape"),
        ({"conversations": [["human", "?"]]}, "wrong-shape"),
    ],
)
def test_rows_that_are_refused(chart: Given, row: dict[str, Any], reason: str) -> None:
    assert chart.reason("llava-cot", row) == reason


def test_a_refusal_says_which_source_reads_such_rows(chart: Given) -> None:
    refused = chart.outcome("llava-cot", talk(ASKED, ("gpt", "It was 21.")))
    assert isinstance(refused, Rejection)
    assert "'It was 21.'" in refused.detail
    assert "--source samples" in refused.detail
