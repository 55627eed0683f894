"""The same trace as other models and papers write it.

    vcot           <ref>gear</ref><box>[100, 200, 300, 400]</box>
    obj-bbox       <obj>gear</obj><bbox>[100, 200, 300, 400]</bbox>                          two-level grounding
    qwen-special   <|object_ref_start|>gear<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>
    qwen-vl        <ref>gear</ref><box>(100,200),(300,400)</box>                             first generation
    qwen-json      [{"bbox_2d": [100, 200, 300, 400], "label": "gear"}]                      Qwen2.5-VL, Qwen3-VL

A dialect is a way to write. Reading needs none: the one reader in `tags` understands them all, which is why
every Dialect has the same `parse`. Which numbers stand in the text is another matter and said by the frame;
Qwen2.5-VL for example wants resized_pixels, the other Qwens thousandths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from vcot.grounding.boxes import Frame
from vcot.grounding.tags import SPELLINGS, Parsed, escape, parse, write
from vcot.grounding.trace import Mention, Trace


@dataclass(frozen=True)
class Dialect:
    """A name, and how a trace is written under it."""

    name: str
    write: Callable[[Trace, Frame], str]

    def render(self, trace: Trace, frame: Frame) -> str:
        """The trace in this dialect. Raises BoxError if a box does not belong to the frame's image."""
        return self.write(trace, frame)

    def parse(self, text: str, frame: Frame) -> Parsed:
        """The trace that a text holds, whatever its dialect; see tags.parse. Never raises."""
        return parse(text, frame)


def _write_json(trace: Trace, frame: Frame) -> str:
    """Prose as it is; each run of mentions as a list with one object per box.

    Objects of a list that follow each other under one label are read as one mention, so where the same label is
    mentioned twice in a row, the second begins a new list.
    """
    text = ""
    last: str | Mention = ""
    for part in trace.parts:
        if isinstance(part, str):
            text += escape(part)
        else:
            label = json.dumps(part.label, ensure_ascii=False)
            objects = [f'{{"bbox_2d": {frame.format(box)}, "label": {label}}}' for box in part.boxes]
            if isinstance(last, Mention) and last.label != part.label:
                text = text.removesuffix("]") + ", "
            else:
                text += "["
            text += ", ".join(objects) + "]"
        last = part
    return text


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        **{name: Dialect(name, partial(write, spelling=spelling)) for name, spelling in SPELLINGS.items()},
        "qwen-json": Dialect("qwen-json", _write_json),
    }
)
