"""The audit page: what is learned and what is not, seen at a glance."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from vcot.errors import InputError
from vcot.grounding import Mention
from vcot.records.page import TRUE, data_uri, fill, overlay, page
from vcot.records.shards import Tally
from vcot.records.spread import percentile
from vcot.tokens.audit import Piece, View
from vcot.tokens.contract import Contract
from vcot.tokens.tally import Counts, histogram


def numbers(counts: Counts, tally: Tally, contract: Contract) -> dict[str, Any]:
    """What stands in report.json.

    Raises InputError where examples were made and nothing in them is learned.
    """
    if counts.examples and not counts.learned:
        raise InputError(f"nothing is learned in any of {counts.examples} examples")
    return {
        "examples": {"train": counts.splits["train"], "validation": counts.splits["validation"]},
        "tokens": {
            "all": counts.tokens,
            "learned": counts.learned,
            "learned_share": round(counts.learned / counts.tokens, 4) if counts.tokens else 0.0,
            "per_example": _spread(counts.lengths),
            "histogram": histogram(counts.lengths),
        },
        "visual_tokens": {"per_example": _spread(counts.visual), "histogram": histogram(counts.visual)},
        "by_text": counts.by_text,
        "shrunk": counts.shrunk,
        "refused": tally.rejected,
        "refused_alternatives": dict(counts.lost_alternatives),
        "rows": tally.rows,
        "test_rows_left_out": counts.test_rows,
        "contract": contract.model_dump(mode="json"),
    }


def _spread(counts: dict[int, int]) -> dict[str, int]:
    return {
        "min": min(counts, default=0),
        "p50": percentile(counts, 0.5),
        "p95": percentile(counts, 0.95),
        "max": max(counts, default=0),
    }


def report_page(found: dict[str, Any], views: Sequence[View]) -> str:
    lead = (
        "What training will get: questions and pictures as tokens, and which of them the model learns to write. "
        "Everything below is read back from the stored examples."
    )
    body = fill(
        _BODY,
        found=found,
        contract=found["contract"],
        css=Markup(_CSS),
        bars=_bars(found["tokens"]["histogram"]),
        visual_bars=_bars(found["visual_tokens"]["histogram"]),
        cards=[_card(one) for one in views],
        one_visual_token=found["contract"]["patch_size"] * found["contract"]["merge_size"],
    )
    return page("Tokenize: what is learned", body, lead=lead)


def _bars(steps: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    most = max((n for *_, n in steps), default=1) or 1
    return [{"label": f"{a}–{b}" if b > a else f"{a}", "n": n, "width": round(260 * n / most)} for a, b, n in steps]


def _card(one: View) -> dict[str, Any]:
    example = one.example
    boxes = one.parsed.boxes
    labels = [label for mention in one.parsed.trace.mentions for label in _numbered(mention)]
    picture = None
    if one.picture is not None:
        drawn = overlay(one.picture, {TRUE: boxes}, {TRUE: labels}, original=one.original, longest_side=360)
        picture = {"uri": data_uri(drawn), "size": one.picture.size}
    return {
        "id": example.id,
        "split": example.split,
        "shrunk": example.shrunk,
        "tokens": len(example.ids),
        "learned": example.learned,
        "visual": sum(p.tokens for p in one.pieces if p.control and "×" in p.text),
        "boxes": len(boxes),
        "faults": [f"{fault.kind}: {fault.text}" for fault in one.parsed.faults],
        "original": one.original,
        "picture": picture,
        "by_text": one.original is None,
        "stream": Markup("".join(map(_piece, one.pieces))),
    }


def _numbered(mention: Mention) -> list[str]:
    """The name at the first of its boxes, numbers in the order of the text at the others."""
    count = len(mention.boxes)
    return [f"{mention.label} 1" if count > 1 else mention.label, *(str(n) for n in range(2, count + 1))]


def _piece(piece: Piece) -> str:
    """A token as a span. Line breaks are shown and made; the digits of a number stay on one line."""
    kind = f"t {'l' if piece.learned else 'm'}{' c' if piece.control else ''}"
    text = html.escape(piece.text).replace("\n", "⏎")
    after = "<br>" if piece.text.endswith("\n") else "" if piece.text[-1:].isalnum() else "<wbr>"
    return f'<span class="{kind}">{text}</span>{after}'


_CSS = """
.stream { font: 13px/1.9 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: break-word; }
.t { border-radius: 3px; padding: 1px 0; box-shadow: inset 1px 0 0 #fff; white-space: pre-wrap; }
.m { background: #eceff2; color: #57606a; }
.l { background: #b7e4c0; color: #0b3d17; }
.c { font-style: italic; opacity: .8; }
.key { padding: 1px 6px; }
"""

_BODY = """
<style>{{ css }}</style>
<div class="tiles">
  <div class="tile"><b>{{ "{:,}".format(found.examples.train) }}</b><span>examples to train on</span></div>
  <div class="tile"><b>{{ "{:,}".format(found.examples.validation) }}</b><span>to validate on</span></div>
  <div class="tile"><b>{{ "{:.0%}".format(found.tokens.learned_share) }}</b><span>of all tokens are learned</span></div>
  <div class="tile"><b>{{ found.tokens.per_example.max }}</b>
    <span>tokens in the longest; {{ contract.max_length }} are allowed</span></div>
  <div class="tile"><b>{{ found.visual_tokens.per_example.p50 }}</b>
    <span>visual tokens in the median picture</span></div>
  {% if found.by_text %}
  <div class="tile"><b>{{ "{:,}".format(found.by_text) }}</b><span>ask by text alone, without a picture</span></div>
  {% endif %}
  <div class="tile"><b>{{ found.shrunk }}</b><span>pictures made smaller to fit</span></div>
  <div class="tile"><b>{{ found.refused.values() | sum }}</b>
    <span>of {{ "{:,}".format(found.rows) }} rows refused</span></div>
</div>

<h2>Examples, token by token</h2>
<p>Every shaded piece is one token.
<span class="t m key">Grey</span> is what the model is given: instructions, picture, question.
<span class="t l key">Green</span> is what it learns to write: its reasoning with boxes, the answer, and where to stop.
The boxes on the pictures are drawn from the green text alone. If they do not lie on the things that the text names,
the declared frame of coordinates (<code>{{ contract.frame.name }}</code>) is wrong.</p>
{% for card in cards %}
<div class="card">
  <h3 style="margin-top:0">{{ card.id }}</h3>
  <p class="soft small">{{ card.split }} · {{ card.tokens }} tokens, {{ card.learned }} of them learned
  {% if card.picture %} · {{ card.visual }} visual tokens · original {{ card.original[0] }}×{{ card.original[1] }},
  seen at {{ card.picture.size[0] }}×{{ card.picture.size[1] }} pixels{% endif %}
  {% if card.shrunk %} · <b>made smaller to fit</b>{% endif %}{% if card.by_text %} · by text alone{% endif %}
  · {{ card.boxes }} box{{ "" if card.boxes == 1 else "es" }}
  {% for fault in card.faults %} · <b style="color:var(--pred)">{{ fault }}</b>{% endfor %}</p>
  <div class="{{ "beside" if card.picture else "" }}">
    {% if card.picture %}
    <figure><img src="{{ card.picture.uri }}" alt="the picture as the model sees it"></figure>
    {% endif %}
    <div class="stream">{{ card.stream }}</div>
  </div>
</div>
{% endfor %}

<h2>How long</h2>
<div class="grid">
<div><h3>Tokens per example</h3>
<table class="small bars">{% for bar in bars %}<tr><td class="n mono">{{ bar.label }}</td>
<td><span class="bar" style="width:{{ bar.width }}px"></span> {{ bar.n }}</td></tr>{% endfor %}</table></div>
<div><h3>Visual tokens per picture</h3>
<table class="small bars">{% for bar in visual_bars %}<tr><td class="n mono">{{ bar.label }}</td>
<td><span class="bar" style="width:{{ bar.width }}px"></span> {{ bar.n }}</td></tr>{% endfor %}</table></div>
</div>

<h2>What was left out</h2>
<table>
{% for reason, n in found.refused.items() %}
<tr><td>rows refused: {{ reason }}</td><td class="n">{{ n }}</td></tr>{% endfor %}
{% for reason, n in found.refused_alternatives.items() %}
<tr><td>reasonings refused of rows that were kept: {{ reason }}</td><td class="n">{{ n }}</td></tr>{% endfor %}
<tr><td>rows kept for the final test, not made into examples</td><td class="n">{{ found.test_rows_left_out }}</td></tr>
{% if not found.refused %}<tr><td>rows refused</td><td class="n">0</td></tr>{% endif %}
</table>

<h2>The contract</h2>
<p>What these examples assume. Training and evaluation refuse a base model that does not fit.</p>
<table>
<tr><td>mode</td><td>{{ contract.mode }}</td></tr>
<tr><td>coordinates</td><td><code>{{ contract.frame.name }}</code></td></tr>
<tr><td>picture after resizing</td><td>{{ "{:,}".format(contract.min_pixels) }} to
{{ "{:,}".format(contract.max_pixels) }} pixels;
{{ one_visual_token }}×{{ one_visual_token }} pixels are one visual token</td></tr>
<tr><td>longest example</td><td>{{ contract.max_length }} tokens; nothing is cut</td></tr>
<tr><td>instruction below the question</td><td>{{ contract.instruction or "none" }}</td></tr>
<tr><td>tokenizer</td><td><code>{{ contract.tokenizer_sha256[:16] }}…</code></td></tr>
<tr><td>chat template</td><td><code>{{ contract.template_sha256[:16] }}…</code></td></tr>
</table>
"""
