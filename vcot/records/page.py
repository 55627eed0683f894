"""One style for every page that a stage writes: self-contained, no script, readable on a phone and in print.

page("Tokenize", body, lead="what this page shows")         → the whole HTML file
fill("<p>{{ n }} rows</p>", n=3)                            → HTML; values are escaped
overlay(picture, {TRUE: boxes}, {TRUE: labels}, original=(1695, 2200))   → the picture with boxes drawn
data_uri(picture)                                           → what <img src="…"> takes
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from vcot.grounding import Box

TRUE = "#1a9850"
"""Colour of what is true, or of what is learned."""
PREDICTED = "#d9480f"
"""Colour of what a model said."""


@dataclass(frozen=True)
class Remark:
    """What is said of a result at a glance. `good`: nothing to do; else somebody should look."""

    good: bool
    text: str


def page(title: str, body: str, *, lead: str = "") -> str:
    """A whole HTML file. `body` is HTML (from `fill`); `lead` is plain text under the title."""
    return str(fill(_PAGE, title=title, body=Markup(body), lead=lead, css=Markup(_CSS)))


def fill(template: str, /, **values: Any) -> Markup:
    """A Jinja2 template with its values escaped; an unknown name is an error, not an empty place."""
    return Markup(_ENVIRONMENT.from_string(template).render(**values))


def share(part: float, whole: float) -> str:
    """In percent, with a digit where it would else look like none or all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if 0 < percent < 10 or 90 < percent < 100 else f"{percent:.0f} %"


def data_uri(picture: Image.Image, *, quality: int = 80) -> str:
    """The picture as a JPEG inside the page."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def overlay(
    picture: Image.Image,
    boxes_by_colour: Mapping[str, Sequence[Box]],
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    original: tuple[int, int] | None = None,
    longest_side: int = 480,
) -> Image.Image:
    """A copy of the picture with boxes drawn on it, later colours above earlier ones.

    Args:
        picture: at any size.
        labels: texts beside the boxes, one per box of that colour; "" for none.
        original: (width, height) of the image in whose pixels the boxes are; default: the picture's own.
        longest_side: pixels of the result's longer side, so that small pictures can be seen and large ones
            do not fill the page.
    """
    width, height = original or picture.size
    scale = longest_side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    canvas = picture.convert("RGB").resize(size, resample)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(11, longest_side // 34))
    tags = []
    for colour, boxes in boxes_by_colour.items():
        texts = (labels or {}).get(colour, ())
        for number, box in enumerate(boxes):
            x1, x2 = (x * canvas.width / width for x in (box.x1, box.x2))
            y1, y2 = (y * canvas.height / height for y in (box.y1, box.y2))
            draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=5)
            draw.rectangle((x1, y1, x2, y2), outline=colour, width=3)
            if number < len(texts) and texts[number]:
                tags.append(((x1, y1), texts[number], colour))
    for at, text, colour in tags:  # after all boxes, so that no box crosses a label out
        _tag(draw, canvas, at, text, colour, font)
    return canvas


def _tag(
    draw: ImageDraw.ImageDraw, canvas: Image.Image, at: tuple[float, float], text: str, colour: str, font: Any
) -> None:
    """The label above the box's corner, moved into the picture where it would stand outside."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(0.0, at[0]), max(0.0, canvas.width - width))
    y = at[1] - height if at[1] >= height else at[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)


_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{{ body }}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light; --ink: #1f2328; --soft: #656d76; --line: #d8dee4; --true: #1a9850; --pred: #d9480f; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 4px; }
.lead { color: var(--soft); max-width: 70ch; margin-top: 0; }
.soft { color: var(--soft); }
.small { font-size: 14px; }
code, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 14px; }
table { border-collapse: collapse; margin: 12px 0; font-size: 15px; }
th, td { text-align: left; padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 14px; margin-top: 4px; }
img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; min-width: 150px; }
.tile b { display: block; font-size: 22px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin: 16px 0; break-inside: avoid; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; }
.beside { display: grid; grid-template-columns: minmax(220px, 360px) 1fr; gap: 20px; align-items: start; }
@media (max-width: 700px) { .beside { grid-template-columns: 1fr; } }
table.bars td { border: 0; padding: 1px 12px 1px 0; }
.bar { background: #4c8bf5; height: 12px; border-radius: 2px; display: inline-block; vertical-align: middle; }
"""

ROWS_CSS = Markup("""
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
nav { margin: 12px 0 0; font-size: 14px; }
nav a { margin-right: 14px; white-space: nowrap; }
.wide { overflow-x: auto; }
.remarks { list-style: none; padding: 0; margin: 16px 0; }
.remarks li { padding: 3px 0 3px 28px; position: relative; }
.remarks li::before { position: absolute; left: 4px; font-weight: 700; }
.remarks .good::before { content: "✓"; color: var(--true); }
.remarks .look::before { content: "!"; color: var(--pred); left: 8px; }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; margin: 12px 0; }
.rows .card { margin: 0; padding: 0; overflow: hidden; font-size: 14px; }
.rows .card.no { border-color: #f0b79f; }
.rows figure { background: #f3f5f7; display: flex; justify-content: center; align-items: center; height: 250px; }
.rows img { border-radius: 0; max-height: 100%; }
.rows .none { color: var(--soft); padding: 0 16px; text-align: center; overflow-wrap: anywhere; }
.rows .text { padding: 10px 14px 12px; }
.text p { margin: 0 0 6px; }
.text summary { color: var(--soft); cursor: pointer; }
.said { unicode-bidi: isolate; overflow-wrap: anywhere; white-space: pre-wrap; }
.id { overflow-wrap: anywhere; }
.nowrap { white-space: nowrap; }
td.name { min-width: 90px; }
.chip { display: inline-block; border-radius: 10px; padding: 0 9px; font-size: 13px; line-height: 20px; color: #fff; }
@media (max-width: 700px) {
  main { padding: 20px 14px 40px; }
  th, td { padding-right: 12px; }
}
@media print {
  main { max-width: none; padding: 0; }
  nav { display: none; }
  body { font-size: 12px; }
}
""")
"""What pages about rows of data add: remarks, and a card for each row that is shown."""
