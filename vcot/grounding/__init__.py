"""The language of the project: boxes, mentions, traces, and the texts that carry them.

Knows no files, no storage, no model.
"""

from vcot.grounding.boxes import (
    Box,
    BoxError,
    BoxFault,
    Frame,
    FrameName,
    FrameSpec,
    Match,
    Pairable,
    giou,
    iou,
    match,
    match_at,
    overlap,
    place,
    smart_resize,
)
from vcot.grounding.tags import DIALECTS, Fault, Parsed, Reply, parse, read_reply, render, render_reply, split_answer
from vcot.grounding.trace import Mention, Trace
