"""Frames, tags and rewards over a fixed list of boxes and replies: what each gives, as JSON."""

from __future__ import annotations

from typing import Any

from vcot.grounding import (
    DIALECTS,
    Box,
    FrameSpec,
    Mention,
    Trace,
    giou,
    iou,
    parse,
    render,
    render_reply,
    smart_resize,
)
from vcot.records import Image, Origin, Sample
from vcot.records.rollout import Rollout
from vcot.rewards.answer import answer_reward
from vcot.rewards.boxes import box_reward
from vcot.rewards.form import format_reward

SPECS = (
    FrameSpec("thousandths"), FrameSpec("pixels"), FrameSpec("resized_pixels", 3136, 1003520),
    FrameSpec("padded_square"), FrameSpec("fractions"),
)  # fmt: skip
SIZES = ((640, 480), (333, 777), (2000, 1501))
SHARES = ((0.1, 0.2, 0.5, 0.9), (0.0, 0.0, 1.0, 1.0), (0.333, 0.111, 0.334, 0.777), (0.494, 0.25, 0.506, 0.2603))
GEAR = "I see the <ref>gear</ref><box>[100, 100, 300, 300]</box> turn.\nAnswer: up"
REPLIES = (
    GEAR, "It turns.\nAnswer: up", "", GEAR + " <ref>it</ref><box>[1, 1, 2, 2]</box>", GEAR.replace("up", "down"),
    GEAR.replace("300]", "3000]"), GEAR.replace("[100", "[110"), GEAR.replace("300, 300]", "290, 310]"),
    "<think>" + GEAR.replace("\nAnswer: up", "</think><answer>up</answer>"), GEAR.replace("</box>", ""),
    GEAR.replace("<ref>gear</ref>", "<ref>lever</ref>"),
    GEAR.replace("turn", "and <ref>x</ref><box>[1, 2, 30, 40]</box>"),
)  # fmt: skip


def boxes(width: int, height: int) -> list[Box]:
    found = []
    for x1, y1, x2, y2 in SHARES:
        edges = (round(x1 * width, 1), round(y1 * height, 1), round(x2 * width, 1), round(y2 * height, 1))
        found.append(Box.from_pixels(*edges, width=width, height=height))
    return found


def frames() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for spec in SPECS:
        for width, height in SIZES:
            frame = spec.on(width, height)
            trace = Trace(("See ", Mention("red <gear>", tuple(boxes(width, height))), " here."))
            text = render(trace, frame)
            back = [box.as_list() for box in parse(text, frame).boxes]
            found[f"{spec.name} {width}x{height}"] = {"text": text, "back": back}
    found["smart_resize"] = [smart_resize(w, h, min_pixels=3136, max_pixels=1003520) for w, h in SIZES]
    one, two, *_ = boxes(640, 480)
    found["iou"], found["giou"] = iou(one, two), giou(one, Box(600, 10, 630, 30))
    trace = Trace(("A ", Mention("gear", (one,)), "."))
    frame = SPECS[0].on(640, 480)
    found["dialects"] = {name: dialect.render(trace, frame) for name, dialect in sorted(DIALECTS.items())}
    found["reply"] = render_reply(trace, "up", frame)
    return found


def sample(evidence: tuple[tuple[int, int, int, int], ...] | None, **more: Any) -> Sample:
    return Sample(
        id="1", image=Image(uri="1.png", width=1000, height=1000, sha256="0" * 64), question="Which way?",
        answers=("up",), evidence=None if evidence is None else tuple(Mention("gear", (Box(*b),)) for b in evidence),
        origin=Origin(dataset="scenes", split="train", row="1", licence="CC0-1.0"), **more,
    )  # fmt: skip


def rewards() -> dict[str, Any]:
    samples = {
        "one box": sample(((100, 100, 300, 300),)),
        "two boxes": sample(((100, 100, 300, 300), (500, 500, 700, 900))),
        "absent": sample(()),
        "not annotated": sample(None),
        "choices": sample(((100, 100, 300, 300),), choices=("up", "down")),
    }
    return {
        name: [
            [
                answer_reward(said, truth), answer_reward(said, truth, similar=True), box_reward(said, truth, SPECS[0]),
                box_reward(said, truth, SPECS[0], spare=1), format_reward(said, truth, SPECS[0]),
                format_reward(said, truth, SPECS[0], graded=True),
            ]
            for said in (Rollout(text=text) for text in REPLIES)
        ]
        for name, truth in samples.items()
    }  # fmt: skip
