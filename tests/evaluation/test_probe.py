"""What a probe changes, what it leaves alone, and what is made of the answers after it; and the second turn of
look-again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fakes.evaluating import frame, sample, scored
from vcot.evaluation.config import PROBES, Probe
from vcot.evaluation.probe import Own, farthest, probed, probes, verdict
from vcot.evaluation.runner import Reply
from vcot.evaluation.ways import FORMS, Form, Prompt, look_again
from vcot.grounding import Box, FrameSpec, Mention, Trace, iou, parse
from vcot.grounding.tags import render
from vcot.records import Completion

FORM = Form("own", "thousandths", "vcot", None, None)
TEXT = (
    "The <ref>gear</ref><box>[100, 100, 300, 300]</box> turns left. "
    "The <ref>lever</ref><box>[600, 600, 700, 900]</box> follows.\nAnswer: left"
)


def own(text: str = TEXT, **changed: Any) -> Own:
    one = changed.pop("sample", sample("a"))
    other = "Another <ref>disc</ref><box>[1, 2, 3, 4]</box>.\nAnswer: up"
    given: dict[str, Any] = {"form": FORM, "others": (other,), "labels": ("gear", "lever", "disc")}
    return Own(one, text, frame(one), **(given | changed))


def prompt() -> Prompt:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    return Prompt(sample("a"), (pixels,), None, FrameSpec("thousandths"))


def prefix(probe: Probe, **changed: Any) -> str:
    found = probed(probe, own(**changed), seed=0)
    assert found is not None
    return found.prefix


def boxes(text: str) -> list[list[float]]:
    return [box.as_list() for box in parse(text, frame(sample("a"))).trace.boxes]


def test_each_probe_changes_one_thing() -> None:
    unchanged = TEXT.removesuffix(" left")
    assert prefix("unchanged") == unchanged
    for box, moved in zip(boxes(TEXT), boxes(prefix("boxes-moved")), strict=True):
        assert iou(Box(*box), Box(*moved)) == 0
        assert [moved[2] - moved[0], moved[3] - moved[1]] == [box[2] - box[0], box[3] - box[1]]
    assert boxes(prefix("boxes-swapped")) == boxes(TEXT)[::-1]
    renamed = prefix("label-changed")
    assert boxes(renamed) == boxes(TEXT)
    assert renamed != unchanged
    assert prefix("cut-to-half") == TEXT.partition(" The <ref>lever")[0] + "\nAnswer:"
    assert prefix("cut-to-nothing") == "Answer:"
    assert prefix("another-rows").startswith("Another <ref>disc")
    for probe in PROBES:
        assert prefix(probe) == prefix(probe)  # the same seed, the same change


def test_another_rows_reasoning_is_not_of_the_same_row_for_all() -> None:
    others = tuple(f"Row {number}.\nAnswer: up" for number in range(3))
    found = [probed("another-rows", own(others=(TEXT, *others)), seed) for seed in range(30)]
    assert {each and each.prefix for each in found} == {f"Row {number}.\nAnswer:" for number in range(3)}


CHAIN = [[0, 0, 200, 200], [200, 0, 400, 200], [400, 0, 600, 200], [400, 200, 600, 400]]


def chain(places: list[list[int]] = CHAIN, dialect: str = "vcot") -> str:
    """A reply that goes from cell to cell."""
    parts = [part for place in places for part in (Mention("cell", (Box(*place),)), ", then ")]
    return render(Trace(tuple(parts[:-1])), frame(sample("a")), dialect) + ".\nAnswer: left"


def test_a_step_is_moved_off_the_route_and_what_follows_is_left_to_the_model() -> None:
    corners = [[0, 800, 200, 1000], [800, 800, 1000, 1000], [800, 0, 1000, 200]]
    cuts = set()
    for seed in range(40):
        text = chain()
        unmoved, moved = (
            probed(probe, own(text, sample=sample("a", None)), seed) for probe in ("step-unmoved", "step-moved")
        )
        assert unmoved is not None
        assert moved is not None
        assert text.startswith(unmoved.prefix)
        assert unmoved.prefix.endswith("]</box>")
        before, after = boxes(unmoved.prefix), boxes(moved.prefix)
        assert before[:-1] == after[:-1]
        assert after[-1] in corners  # the fourth is a cell of the route
        assert moved.prefix.rpartition("[")[0] == unmoved.prefix.rpartition("[")[0]
        cuts.add(len(before))
    assert cuts == {1, 2, 3}  # never at the last


def test_a_step_is_moved_onto_what_the_reply_left_out_of_the_evidence() -> None:
    one = sample("a", [*CHAIN, (700, 500, 900, 700)])
    found = probed("step-moved", own(chain(), sample=one), seed=0)
    assert found is not None
    assert boxes(found.prefix)[-1] == [700, 500, 900, 700]


def test_where_the_whole_image_is_on_the_route_no_step_is_moved() -> None:
    everywhere = [[0, 0, 500, 500], [500, 0, 1000, 500], [500, 500, 1000, 1000], [0, 500, 500, 1000]]
    for probe in ("step-moved", "step-unmoved"):
        assert probed(probe, own(chain(everywhere), sample=sample("a", None)), seed=0) is None


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ('[{"bbox_2d": [0, 0, 90, 90], "label": "a"}, {"bbox_2d": [90, 0, 180, 90], "label": "b"}]', "}"),
        ('[{"bbox_2d": [0, 0, 90, 90], "label": "a"}] then [{"bbox_2d": [90, 0, 180, 90], "label": "b"}]', "}]"),
    ],
)
def test_a_list_of_boxes_is_left_open_where_the_model_left_it_open(said: str, end: str) -> None:
    form = Form("own", "thousandths", "qwen-json", None, None)
    found = probed("step-unmoved", own(f"{said}\nAnswer: left", form=form), seed=0)
    assert found is not None
    assert found.prefix == '[{"bbox_2d": [0, 0, 90, 90], "label": "a"' + end


def changed_pixels(probe: Probe) -> np.ndarray[Any, Any]:
    before, change = prompt(), probed(probe, own(), seed=0)
    assert change is not None
    after = change.of(before)
    assert after.prefix == prefix("unchanged")
    return (np.array(after.images[0]) != np.array(before.images[0])).any(axis=-1)


def test_what_is_hidden_is_what_the_boxes_hold() -> None:
    inside = np.zeros((200, 200), dtype=bool)
    inside[20:60, 20:60] = inside[120:180, 120:140] = True
    hidden, rest, elsewhere = map(changed_pixels, ("region-hidden", "rest-hidden", "elsewhere-hidden"))
    assert not (hidden & ~inside).any()
    assert hidden[inside].mean() > 0.99  # noise is now and then what was there
    assert not (rest & inside).any()
    assert rest[~inside].mean() > 0.99
    assert not (elsewhere & inside).any()
    assert 0.5 < elsewhere.sum() / inside.sum() < 1.05  # whole pixels


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        *((probe, "I see <ref>it</ref><box>[1, 2, 30, 40]</box> here") for probe in PROBES),  # it never answers
        ("boxes-moved", "I see nothing.\nAnswer: left"),
        ("boxes-moved", "All of <ref>it</ref><box>[0, 0, 1000, 1000]</box>.\nAnswer: left"),
        ("boxes-swapped", "The <ref>gear</ref><box>[1, 2, 30, 40]</box>.\nAnswer: left"),
        ("region-hidden", "I see nothing.\nAnswer: left"),
        ("cut-to-half", "One sentence.\nAnswer: left"),
        ("cut-to-nothing", "Answer: left"),
        ("step-moved", "The <ref>gear</ref><box>[1, 2, 30, 40]</box><box>[60, 2, 90, 40]</box>.\nAnswer: left"),
    ],
)
def test_where_there_is_nothing_to_change_nothing_is_asked(probe: Probe, text: str) -> None:
    assert probed(probe, own(text), seed=0) is None


def test_a_box_goes_to_the_farthest_corner() -> None:
    assert farthest(Box(0, 0, 60, 50), 100, 50, random.Random(0)) == Box(40, 0, 100, 50)
    for seed in range(20):  # three corners are free of it
        assert farthest(Box(10, 20, 30, 30), 100, 100, random.Random(seed)) == Box(80, 90, 100, 100)


def reply(name: str, answer: str, probe: Probe | None = None) -> Reply:
    text = f"So.\nAnswer: {answer}"
    said = Completion(text=text, model="subject", finish_reason="stop")
    right = "right" if answer == "left" else "wrong"
    return Reply(
        model="subject", way="ground", condition="real", probe=probe, completion=said,
        score=scored(name, text=text, answer=right),
    )  # fmt: skip


def test_a_model_that_ignores_its_boxes_is_called_so_and_one_that_uses_them_too() -> None:
    names = [f"s{number}" for number in range(240)]
    samples = [sample(name) for name in names]
    before = [reply(name, "left") for name in names]

    def found(moved: str, of: int = 1) -> list[dict[str, Any]]:
        """The answers of one in so many rows are others with boxes moved."""
        replies = {
            "unchanged": [reply(name, "left", "unchanged") for name in names],
            # Of every second row there was nothing to change.
            "boxes-moved": [
                None if n % 2 else reply(name, "left" if n // 2 % of else moved, "boxes-moved")
                for n, name in enumerate(names)
            ],
        }
        return probes(samples, replies, before, seed=0)  # type: ignore[arg-type]

    deaf, hearing = found("left"), found("up")
    for made, share in ((deaf, 0.0), (hearing, 1.0)):
        row = made[1]
        assert (row["probe"], row["control"], row["figures"]["changed"]["rows"]) == ("boxes-moved", "unchanged", 120)
        assert row["figures"]["changed"]["value"] == row["difference"]["changed"]["value"] == share
    assert "It ignores the boxes that it writes" in verdict(deaf)[0]
    assert "It uses the boxes that it writes" in verdict(hearing)[0]
    (partly,) = verdict(found("up", of=3))
    assert partly.startswith("Some of its answers rest on the boxes that it writes: with every box moved, 33% (")
    doubtful = found("up", of=30)
    assert doubtful[1]["difference"]["changed"]["low"] > 0
    assert verdict(doubtful)[0].startswith("It ignores the boxes that it writes: with every box moved, 3% (")


def test_a_step_is_held_against_the_same_cut() -> None:
    names = [f"s{number}" for number in range(120)]
    samples, before = [sample(name) for name in names], [reply(name, "left") for name in names]

    def found(moved: str, unmoved: str = "left") -> list[dict[str, Any]]:
        said = {"unchanged": "left", "step-moved": moved, "step-unmoved": unmoved}
        replies = {probe: [reply(name, answer, probe) for name in names] for probe, answer in said.items()}  # type: ignore[arg-type]
        return probes(samples, replies, before, seed=0)  # type: ignore[arg-type]

    follows = found("up")
    assert [row["control"] for row in follows] == [None, "step-unmoved", "unchanged"]
    assert verdict(follows)[0].startswith(
        "What follows a step depends on where it points: with the box of one moved, 100%"
    )
    # Where the cut alone changes every answer, nothing is known of the step.
    for ignores in (found("left"), found("up", unmoved="up")):
        assert verdict(ignores)[0].startswith("It goes on as if nothing had happened where a step points elsewhere")


# --- look-again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [None, "qwen2.5-vl"])
def test_the_second_turn_shows_the_box_as_the_model_writes_it_and_what_is_in_it(family: str | None) -> None:
    form = FORM if family is None else FORMS[family]
    first = prompt()
    said = "[100, 100, 300, 300]"
    text = f"<ref>gear</ref><box>{said}</box>" if family is None else f'[{{"bbox_2d": {said}, "label": "gear"}}]'
    second = look_again(first, text, form, frame(first.sample))
    assert second is not None
    asked, replied = second.sample.turns
    written = render(replied.said, frame(first.sample), second.dialect)
    assert written == ("<ref></ref><box>[100, 100, 300, 300]</box>" if family is None else text)
    assert (asked.images, second.sample.images_asked, len(second.images)) == (1, 1, 2)
    # 224 pixels of the original at least, whole pixels of the image that is shown, a fifth as large.
    assert second.images[1].size == (44, 44)
    assert look_again(first, "nowhere", form, frame(first.sample)) is None
