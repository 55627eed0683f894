"""The language of the project: boxes, mentions, traces, and the texts that carry them.

Knows no files, no storage, no model.
"""

from vcot.grounding.boxes import Box, BoxError, BoxFault, Frame, FrameSpec, giou, iou, smart_resize
from vcot.grounding.trace import Mention, Trace

__all__ = [
    "Box",
    "BoxError",
    "BoxFault",
    "Frame",
    "FrameSpec",
    "Mention",
    "Trace",
    "giou",
    "iou",
    "smart_resize",
]
