"""The page's HTML and what it adds to the style of all pages."""

from __future__ import annotations

from markupsafe import Markup

from vcot.records.page import ROWS_CSS

CSS = ROWS_CSS + Markup("""
:root { --train: #2f6fde; --validation: #7aa7f7; --test: #b3bcc7; --refused: #d9480f; }
.full { min-width: 100%; }
.full td { vertical-align: middle; }
.stack { display: flex; height: 14px; min-width: 140px; }
.stack i { display: block; min-width: 1px; }
.train { background: var(--train); }
.validation { background: var(--validation); }
.test { background: var(--test); }
.refused { background: var(--refused); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; vertical-align: -1px; margin-right: 4px; }
.legend span:not(.key) { margin-right: 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 12px 40px; }
.chart { break-inside: avoid; }
.chart h3 { margin-bottom: 0; }
.chart p { margin: 0 0 6px; }
.chart table { width: 100%; margin: 0; font-size: 14px; table-layout: fixed; }
.chart td { border: 0; padding: 1px 8px 1px 0; white-space: nowrap; line-height: 20px; vertical-align: middle; }
.chart td:first-child { width: 122px; text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.chart td:last-child { width: 76px; padding: 0; text-align: right; font-variant-numeric: tabular-nums; }
.chart .bar { display: block; min-width: 1px; }
.rows figure.close { height: 84px; border-top: 1px solid var(--line); }
.text details { margin: 0 0 6px; }
.chip.test, .chip.validation { color: var(--ink); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 16px; }
.pair { break-inside: avoid; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: center; }
.pair .none { color: var(--soft); font-size: 13px; background: #f3f5f7; padding: 16px 8px; overflow-wrap: anywhere; }
td.name, h2.name { overflow-wrap: anywhere; }
@media (max-width: 700px) {
  .tile { min-width: 0; flex: 1 1 40%; padding: 8px 12px; }
  .full th:last-child, .full td:last-child { display: none; }
  .charts, .rows, .pairs { grid-template-columns: minmax(0, 1fr); }
  .rows figure { height: auto; min-height: 60px; max-height: 340px; }
}
@media print {
  table, code, .mono, .small, .chip, .tile span, .chart table, .rows .card, figcaption { font-size: 11px; }
  th, td { padding-right: 10px; }
  .rows { grid-template-columns: repeat(4, 1fr); gap: 8px; }
  .rows figure { height: 170px; }
  .charts { grid-template-columns: 1fr 1fr; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
}
""")

_MACROS = """
{% macro number(n) %}{{ "{:,}".format(n) }}{% endmacro %}

{% macro key(split) %}<span class="key {{ split }}"></span>{% endmacro %}

{% macro chart(one) %}
<div class="chart"><h3>{{ one.name }}</h3>
<p class="soft small">{{ one.about }}</p>
{% if one.n %}
<table>
{% for label, n, width in one.bars %}
<tr><td>{{ label }}</td><td><span class="bar" style="width:{{ "%.1f" % width }}%"></span></td>
<td>{{ number(n) }}</td></tr>
{% endfor %}
</table>
<p class="soft small">{{ number(one.n) }} {{ one.counted }}{% if one.spread %}: {{ one.spread }}{% endif %}</p>
{% else %}
<p class="small">There are none.</p>
{% endif %}
</div>
{% endmacro %}

{% macro picture(card) %}
{% if card.picture %}
<figure><img src="{{ card.picture }}" alt="the picture of {{ card.row.row }} with its boxes"></figure>
{% if card.close %}
<figure class="close"><img src="{{ card.close }}" alt="the boxes of {{ card.row.row }} from close by"></figure>
{% endif %}
{% else %}
<figure><div class="none">{{ card.note }}</div></figure>
{% endif %}
{% endmacro %}

{% macro size(row) %}
{% if row.image %} · <span class="nowrap">{{ row.image.width }} × {{ row.image.height }} px</span>{% endif %}
{% endmacro %}
"""

_BEGINNING = """
<p class="lead">Rows of <b>{{ found.source }}</b> that became Samples, and those that were refused, with the reason.
If the boxes on the pictures below lie on what the questions are about, the rows were understood.</p>
<nav><a href="#rows">Rows</a> <a href="#texts">Boxes, texts, pictures</a> <a href="#split">Split and duplicates</a>
{% for shelf in shelves %}
<a href="#set-{{ loop.index }}">{{ tail(shelf.dataset, 24) }}</a>
{% endfor %}
</nav>
<div class="tiles">
<div class="tile"><b>{{ number(found.tally.rows) }}</b><span>rows came in</span></div>
<div class="tile"><b>{{ number(found.tally.kept) }}</b>
<span>were kept, {{ share(found.tally.kept, found.tally.rows) }}</span></div>
<div class="tile"><b>{{ number(found.tally.rejected_rows) }}</b><span>were refused</span></div>
<div class="tile"><b>{{ number(found.pictures.values() | sum) }}</b><span>pictures are used</span></div>
<div class="tile"><b>{{ number(kept_rows.train) }}</b><span>rows to train on</span></div>
<div class="tile"><b>{{ number(kept_rows.validation) }} + {{ number(kept_rows.test) }}</b>
<span>to validate and test on</span></div>
</div>
<ul class="remarks">
{% for remark in remarks %}
<li class="{{ "good" if remark.good else "look" }}">{{ remark.text }}</li>
{% endfor %}
</ul>
"""

_ROWS = """
<h2 id="rows">Rows</h2>
<p class="small soft legend">{% for split in splits %}{{ key(split) }}<span>{{ split }}</span>{% endfor %}
{{ key("refused") }}<span>refused</span></p>
<div class="wide"><table class="full">
<tr><th>dataset</th><th class="n">rows in</th>
{% for split in splits %}<th class="n">{{ split }}</th>{% endfor %}
<th class="n">refused</th><th style="width:30%"></th></tr>
{% for row in rows %}
<tr><td class="name">{{ row.name }}</td><td class="n">{{ number(row.rows.rows) }}</td>
{% for split in splits %}<td class="n">{{ number(row.rows.kept.get(split, 0)) }}</td>{% endfor %}
<td class="n">{{ number(row.rows.rejected_rows) }} <span class="soft">({{ row.share }})</span></td>
<td><div class="stack">
{% for kind, width in row.parts %}<i class="{{ kind }}" style="width:{{ "%.2f" % width }}%"></i>{% endfor %}
</div></td></tr>
{% endfor %}
</table></div>
{% if found.mix %}
<h3>The mix</h3>
<div class="wide"><table>
<tr><th>part</th><th>source</th><th class="n">rows</th><th class="n">not drawn</th><th class="n">refused</th>
<th class="n">kept</th><th class="n">share by weight</th><th class="n">of rows drawn</th>
<th class="n">of rows to learn from</th></tr>
{% for part in found.mix %}
<tr><td class="name">{{ part.name }}</td><td>{{ part.source }}</td><td class="n">{{ number(part.rows) }}</td>
<td class="n">{{ number(part.not_drawn) }}</td><td class="n">{{ number(part.rejected_rows) }}</td>
<td class="n">{{ number(part.kept) }}</td>
<td class="n">{{ "–" if part.wanted is none else share(part.wanted, 1) }}</td>
<td class="n">{{ share(part.drawn, 1) }}</td><td class="n">{{ share(part.learned, 1) }}</td></tr>
{% endfor %}
</table></div>
<p class="small soft">Rows that were not drawn are left out for the weights and count nowhere else. Weights share rows
before it is known which of them are refused.</p>
{% endif %}
<h3>Why rows were refused</h3>
{% if reasons %}
<div class="wide"><table>
<tr><th>reason</th><th class="n">rows</th><th>what that means</th>
{% if rows | length > 1 %}<th>where</th>{% endif %}</tr>
{% for reason in reasons %}
<tr><td class="mono nowrap">{{ reason.name }}</td><td class="n">{{ number(reason.n) }}</td>
<td>{{ reason.meaning }}</td>{% if rows | length > 1 %}<td class="small">{{ reason.where }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
<p class="small soft">Each one is listed with its reason in <code>rejections/</code>; some are drawn below.</p>
{% else %}
<p>None was.</p>
{% endif %}
{% if found.licences %}
<h3>Licences</h3>
<div class="wide"><table>
<tr><th class="n">rows kept</th><th>licence, as recorded with each row</th></tr>
{% for name, n in found.licences.items() %}
<tr><td class="n">{{ number(n) }}</td><td class="name">{{ name }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
"""

_TEXTS = """
<h2 id="texts">Boxes, texts, pictures</h2>
<p class="small soft">Of what was kept. Pictures count once, however many rows use them.</p>
<div class="charts">
{% for one in charts %}{{ chart(one) }}{% endfor %}
</div>
{% if measures %}
<h3>By dataset</h3>
<p class="small soft">Medians, and in brackets what nine of ten do not exceed.</p>
<div class="wide"><table>
<tr><th>dataset</th>{% for name in measures[0].names %}<th class="n">{{ name }}</th>{% endfor %}</tr>
{% for each in measures %}
<tr><td class="name">{{ each.dataset }}</td>
{% for median, most in each.cells %}
<td class="n">{{ median }}{% if most %} <span class="soft">({{ most }})</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endif %}
"""

_SPLIT = """
<h2 id="split">Split and duplicates</h2>
<div class="wide"><table>
<tr><th>split</th><th class="n">rows</th>
{% if found.without_image %}<th class="n">by text alone</th>{% endif %}
<th class="n">pictures</th><th class="n">rows of a picture</th></tr>
{% set all = found.pictures.values() | sum %}
{% for split in splits %}{% set pictures = found.pictures[split] %}{% set by_text = found.without_image.get(split, 0) %}
<tr><td>{{ key(split) }}{{ split }}</td><td class="n">{{ number(kept_rows[split]) }}</td>
{% if found.without_image %}<td class="n">{{ number(by_text) }}</td>{% endif %}
<td class="n">{{ number(pictures) }} <span class="soft">({{ share(pictures, all) }})</span></td>
<td class="n">{{ "%.1f" % ((kept_rows[split] - by_text) / pictures) if pictures else "–" }}</td></tr>
{% endfor %}
</table></div>
<p>No picture is on two sides{% if found.without_image %}, and no question without one{% endif %}.
Rows refused as <code>held-out</code>, because they would have learned from a picture
{% if found.without_image %}or a question {% endif %}that is there to measure with:
{{ number(found.tally.rejected.get("held-out", 0)) }}. Rows refused as
<code>duplicate</code>, because an earlier one asks the same of the same picture:
{{ number(found.tally.rejected.get("duplicate", 0)) }}.</p>
{% if found.near_duplicates %}{% set near = found.near_duplicates %}
<h3>Pictures that nearly are the same</h3>
{% if near.groups %}
<p>{{ number(near.pictures_in_groups) }} of {{ number(near.pictures_compared) }} pictures nearly are another's copy.
They form {{ number(near.groups) }} group{{ "" if near.groups == 1 else "s" }}, the largest of
{{ number(near.largest_group) }}; a group is on one side of the split. Shown are the two pictures of a group that
differ most: first where they differ most of all, then some by chance. If they show different things, lower
<code>--near-duplicates</code>.</p>
<div class="pairs">
{% for pair, one, other in pairs %}
<figure class="pair"><div>
{% for uri, seen in ((pair.one, one), (pair.other, other)) %}
{% if seen %}<img src="{{ seen }}" alt="{{ tail(uri) }}">
{% else %}<span class="none">cannot be shown: {{ tail(uri) }}</span>{% endif %}
{% endfor %}
</div><figcaption>{{ pair.bits }} of 144 bits differ
{%- if pair.pictures > 2 %}; a group of {{ number(pair.pictures) }}{% endif %}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p>None of {{ number(near.pictures_compared) }} pictures is nearly another's copy.</p>
{% endif %}
{% endif %}
{% if found.benchmarks %}
<h3>Benchmarks kept out</h3>
<div class="wide"><table>
<tr><th>file</th><th class="n">its rows</th><th class="n">its pictures</th><th class="n">found here</th>
<th class="n">shared with training</th><th class="n">its rows with one of these</th><th class="n">rows refused</th></tr>
{% for name, b in found.benchmarks.items() %}
<tr><td class="name">{{ name }}</td><td class="n">{{ number(b.rows) }}</td><td class="n">{{ number(b.pictures) }}</td>
<td class="n">{{ number(b.pictures_found) }}</td><td class="n">{{ number(b.pictures_shared) }}</td>
<td class="n">{{ number(b.rows_with_a_shared_picture) }}</td><td class="n">{{ number(b.rows_refused) }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
"""

_SHELVES = """
{% for shelf in shelves %}{% set all = found.datasets[shelf.dataset] %}
<h2 id="set-{{ loop.index }}" class="name">{{ shelf.dataset }}</h2>
<h3>Kept</h3>
{% if shelf.kept %}
<p class="small soft">{{ shelf.kept | length }} of {{ number(all.kept_rows) }}, chosen by a hash of their ids.</p>
<div class="rows">
{% for card in shelf.kept %}{% set row = card.row %}
<div class="card">{{ picture(card) }}<div class="text">
<p class="said"><b>{{ row.question }}</b></p>
{% if row.choices %}<p class="said soft">{{ row.choices | join(" · ") }}</p>{% endif %}
{% if row.metadata %}<p class="said soft">{{ row.metadata | join(" · ") }}</p>{% endif %}
<p class="said">→ {{ row.answers[0] }}
{%- if row.answers[1:] %} <span class="soft">also: {{ row.answers[1:] | join(", ") }}</span>{% endif %}</p>
{% if row.reasoning %}
<details><summary>reasoning{% if row.reasoning[1:] %}, in {{ row.reasoning | length }} ways{% endif %}</summary>
{% for trace in row.reasoning %}<p class="said">{{ trace }}</p>{% endfor %}
</details>
{% endif %}
{% if row.context %}<details><summary>context</summary><p class="said">{{ row.context }}</p></details>{% endif %}
<p class="id soft small"><span class="chip {{ row.split }}">{{ row.split }}</span> {{ row.row }}{{ size(row) }}
{% if not row.image %}
{% elif not row.annotated %} · evidence not annotated{% elif not row.places %} · annotated as not there{% endif %}</p>
</div></div>
{% endfor %}
</div>
{% else %}
<p>No row was kept.</p>
{% endif %}
<h3>Refused</h3>
{% if shelf.refused %}
<p class="small soft">{{ shelf.refused | length }} of {{ number(all.rejected_rows) }}, every reason before any comes
twice.</p>
<div class="rows">
{% for card in shelf.refused %}{% set row = card.row %}
<div class="card no">{{ picture(card) }}<div class="text">
<p><span class="chip refused">{{ row.reason }}</span></p>
<p class="said">{{ row.detail }}</p>
{% if row.written %}
<details><summary>the row as it is written</summary><p class="said mono">{{ row.written }}</p></details>
{% endif %}
<p class="id soft small">{{ row.row }}{{ size(row) }}</p>
</div></div>
{% endfor %}
</div>
{% else %}
<p>No row was refused.</p>
{% endif %}
{% endfor %}
"""

BODY = "<style>{{ css }}</style>" + _MACROS + _BEGINNING + _ROWS + _TEXTS + _SPLIT + _SHELVES
