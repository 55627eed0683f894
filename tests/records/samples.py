"""A small Sample for tests."""

from __future__ import annotations

from vcot.grounding import Box, Mention, Trace
from vcot.records import Image, Origin, Sample

MENTION = Mention("red gear", (Box(1.5, 2.0, 30.25, 40.0),))


def sample(number: int, **changes: object) -> Sample:
    values: dict[str, object] = {
        "id": f"s{number}",
        "image": Image(uri="s3://b/x.png", width=100, height=80, sha256="0" * 64),
        "question": "Where is the red gear?",
        "answers": ("left",),
        "reasoning": (Trace(("The ", MENTION, " is at the left.")),),
        "evidence": (MENTION,),
        "origin": Origin(dataset="drawn", split="train", row=str(number), licence="MIT"),
    }
    return Sample(**(values | changes))  # type: ignore[arg-type]
