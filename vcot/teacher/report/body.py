"""The page's HTML (Jinja2; values are escaped) and what its style adds to that of all pages."""

from __future__ import annotations

from markupsafe import Markup

from vcot.records.page import ROWS_CSS

CSS = ROWS_CSS + Markup("""
.funnel { width: 100%; max-width: 760px; }
.funnel td { border: 0; padding: 2px 12px 2px 0; white-space: nowrap; vertical-align: middle; }
.funnel td:nth-child(2) { width: 60%; }
.funnel i { display: block; height: 18px; min-width: 1px; border-radius: 2px; background: #4c8bf5; }
.funnel tr:last-child i { background: var(--true); }
.rows .no figure { height: 180px; }
.tiles .tile { flex: 1 1 180px; }
.reply { max-height: 220px; overflow-y: auto; background: #f6f8fa; padding: 6px 8px; font-size: 13px; }
.true { color: var(--true); font-weight: 600; }
.proposed { color: var(--pred); font-weight: 600; }
.chip { background: var(--pred); }
td.name, h3.name { overflow-wrap: anywhere; }
@media (max-width: 700px) {
  .tiles .tile { min-width: 0; flex: 1 1 40%; padding: 8px 12px; }
  .funnel td:nth-child(2) { width: 30%; }
  .funnel td { white-space: normal; padding-right: 8px; }
  .rows { grid-template-columns: minmax(0, 1fr); }
  .rows figure, .rows .no figure { height: auto; min-height: 60px; max-height: 340px; }
}
@media print {
  .rows { grid-template-columns: repeat(3, 1fr); }
  .wide { overflow: visible; }
}
""")

_MACROS = """
{% macro number(n) %}{{ "{:,}".format(n) }}{% endmacro %}

{% macro picture(card) %}
<figure>{% if card.picture %}<img src="{{ card.picture }}" alt="the picture of {{ card.row.id }} with boxes">
{% else %}<div class="none">{{ card.note }}</div>{% endif %}</figure>
{% endmacro %}

{% macro asked(row) %}
<p class="said"><b>{{ row.question }}</b></p>
{% if row.choices %}<p class="said soft">{{ row.choices | join(" · ") }}</p>{% endif %}
{% endmacro %}

{% macro refusals(gates, what) %}
{% for gate, reasons in gates %}
<h3>{{ gate }}</h3>
{% for reason in reasons %}
<p id="{{ what }}-{{ reason.name }}"><span class="chip">{{ reason.name }}</span>
<b>{{ number(reason.n) }}</b> {{ what }}{{ "" if reason.n == 1 else "s" }}: {{ reason.meaning }}.
<span class="soft small">{{ reason.where }}</span></p>
<div class="rows">
{% for card in reason.cards %}{% set row = card.row %}
<div class="card no">{{ picture(card) }}<div class="text">
{{ asked(row) }}
<p class="said">→ {{ row.answer }}</p>
<p class="said">{% if row.part %}<span class="soft">{{ row.part }}:</span> {% endif %}{{ row.detail }}</p>
{% if row.said %}
<details><summary>what the teacher said</summary>
{% for text in row.said %}<p class="said mono reply">{{ text or "(nothing)" }}</p>{% endfor %}
</details>
{% endif %}
<p class="id soft small">{{ row.source }} · {{ row.id }}</p>
</div></div>
{% endfor %}
</div>
{% endfor %}
{% endfor %}
{% endmacro %}
"""

_BEGINNING = """
<p class="lead">Written by <b>{{ found.teacher }}</b>{% if found.way %}, asked in the way
<b>{{ found.way }}</b>{% endif %}. What it wrote is worth training on if the boxes on the pictures below lie on what the
sentences name
{%- if found.way %}, if the rows that the funnel loses were bad ones, and if the decoy rate is low{% endif %}.</p>
<nav><a href="#funnel">Funnel</a> <a href="#kept">Kept</a> <a href="#refused">Refused</a>
{% if found.way %}<a href="#checks">Checks</a> <a href="#cost">Cost</a>{% endif %}</nav>
<div class="tiles">
{% for large, what in tiles %}<div class="tile"><b>{{ large }}</b><span>{{ what }}</span></div>{% endfor %}
</div>
<ul class="remarks">
{% for remark in remarks %}<li class="{{ "good" if remark.good else "look" }}">{{ remark.text }}</li>{% endfor %}
</ul>
"""

_FUNNEL = """
<h2 id="funnel">Funnel</h2>
<table class="funnel">
{% for told, n, part, width in funnel %}
<tr><td>{{ told }}</td><td><i style="width:{{ "%.2f" % width }}%"></i></td><td class="n">{{ number(n) }}</td>
<td class="n soft">{{ part }}</td></tr>
{% endfor %}
</table>
<p class="small soft">{{ number(all_rows.rows) }} rows came in. {{ number(all_rows.passed) }} passed as they are,
because they have reasoning or are of the test split{% if all_rows.rows - all_rows.passed - all_rows.asked %};
{{ number(all_rows.rows - all_rows.passed - all_rows.asked) }} were refused before anybody was asked{% endif %}.</p>
<div class="wide"><table>
<tr><th>source</th><th class="n">rows in</th><th class="n">passed</th>
{% for told in steps.values() %}<th class="n">{{ told }}</th>{% endfor %}</tr>
{% for name, rows in sources %}
<tr><td class="name">{{ name }}</td><td class="n">{{ number(rows.rows) }}</td>
<td class="n">{{ number(rows.passed) }}</td>
{% for step in steps %}<td class="n">{{ number(rows[step]) }}
{% if step != "asked" %}<span class="soft">({{ share(rows[step], rows.asked) }})</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% for name, n in flagged.items() %}
<p class="small"><span class="chip">{{ name }}</span> {{ number(n) }} kept row{{ "" if n == 1 else "s" }}:
{{ flags.get(name, "") }}.</p>
{% endfor %}
"""

_KEPT = """
<h2 id="kept">Kept</h2>
{% if shelves %}
<p class="small soft">Chosen by a hash of their ids. <span class="true">Green</span>: boxes that people drew.
{% if found.way %}
<span class="proposed">Orange</span>: boxes that the teacher proposed and the checks let pass.
{% endif %}</p>
{% for name, cards in shelves %}
<h3 class="name">{{ name }}</h3>
<div class="rows">
{% for card in cards %}{% set row = card.row %}
<div class="card">{{ picture(card) }}<div class="text">
{{ asked(row) }}
<p class="said">{{ card.reasoning }}</p>
<p class="said">→ {{ row.answer }}</p>
<p class="id soft small">{% for flag in row.flags %}<span class="chip">{{ flag }}</span> {% endfor %}{{ row.id }}
{% if card.proposed %} · {{ card.proposed }} box{{ "" if card.proposed == 1 else "es" }} proposed{% endif %}</p>
</div></div>
{% endfor %}
</div>
{% endfor %}
{% else %}
<p>No row got reasoning.</p>
{% endif %}
"""

_REFUSED = """
<h2 id="refused">Refused</h2>
{% if refused %}
<div class="wide"><table>
<tr><th>gate</th><th>reason</th><th class="n">rows</th><th>what that means</th></tr>
{% for gate, reasons in refused %}{% for reason in reasons %}
<tr><td>{{ gate if loop.first else "" }}</td>
<td class="mono nowrap"><a href="#row-{{ reason.name }}">{{ reason.name }}</a></td>
<td class="n">{{ number(reason.n) }}</td><td>{{ reason.meaning }}</td></tr>
{% endfor %}{% endfor %}
</table></div>
<p class="small soft">All of them, with all that was said, are in <code>rejections/</code>. Below, three of each reason,
chosen by a hash of their ids; the boxes in their pictures are those that people drew.</p>
{{ refusals(refused, "row") }}
{% else %}
<p>No row was refused.</p>
{% endif %}
{% if parts %}
<h2 id="parts">Left out of rows that were kept</h2>
<p class="small soft">An alternative, an object or a new question was refused, and the rest of the row stayed.</p>
{{ refusals(parts, "part") }}
{% endif %}
"""

_CHECKS = """
{% if found.way %}{% set trust = found.trust %}
<h2 id="checks">Checks</h2>
<div class="wide"><table>
<tr><td>cut-outs of proposed boxes that were looked at</td><td class="n">{{ number(trust.looks) }}</td></tr>
<tr><td>refused by the look</td><td class="n">{{ number(trust.looks_refused) }}
<span class="soft">({{ share(trust.looks_refused, trust.looks) }})</span></td></tr>
<tr><td>decoys: cut-outs that do not show the thing</td><td class="n">{{ number(trust.decoys) }}</td></tr>
<tr><td>accepted all the same, the <b>decoy rate</b></td><td class="n">{{ number(trust.decoys_accepted) }}
<span class="soft">({{ share(trust.decoys_accepted, trust.decoys) }})</span></td></tr>
<tr><td>places asked for a second time</td><td class="n">{{ number(trust.second_proposals) }}</td></tr>
<tr><td>rows shown to a detector</td><td class="n">{{ number(trust.detections) }}</td></tr>
<tr><td>answers asked for once more, from the cut-outs alone</td><td class="n">{{ number(trust.reanswers) }}</td></tr>
<tr><td>replies asked for once more, because they were of no use</td><td class="n">{{ number(trust.repairs) }}</td></tr>
</table></div>
<p class="small soft">Prompts: {% for name, version in found.prompts.items() %}{{ name }} {{ version }}
{%- if not loop.last %}, {% endif %}{% endfor %}; <code>--show-prompt</code> prints them.</p>

<h2 id="cost">Cost</h2>
{% if costs %}
<div class="wide"><table>
<tr><th>source</th><th class="n">new requests</th><th class="n">kept replies</th><th class="n">tokens in</th>
<th class="n">tokens out</th><th class="n">cost</th>
<th class="n">paid by this run</th><th class="n">for each row kept</th></tr>
{% for line in costs %}{% set of = line.of %}
<tr><td class="name">{{ line.name }}</td><td class="n">{{ number(of.requests) }}
{% if of.tries_again %}<span class="soft">(+ {{ number(of.tries_again) }} tried again)</span>{% endif %}</td>
<td class="n">{{ number(of.kept_replies_used) }}</td><td class="n">{{ number(of.tokens_in) }}
{% if of.tokens_cached %}<span class="soft">({{ number(of.tokens_cached) }} cached)</span>{% endif %}</td>
<td class="n">{{ number(of.tokens_out) }}</td>
{% if of.unpriced %}<td class="n" colspan="3">unknown price of {{ number(of.unpriced) }} replies</td>
{% else %}<td class="n">{{ money(of.usd + of.usd_lost) }}</td><td class="n">{{ money(of.usd_paid + of.usd_lost) }}</td>
<td class="n">{{ "–" if of.usd_a_row_kept is none else money(of.usd_a_row_kept) }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
<div class="wide"><table>
<tr><th>question</th><th class="n">replies</th><th class="n">tokens</th><th class="n">cost</th></tr>
{% for line in purposes %}
<tr><td>{{ line.name }}</td><td class="n">{{ number(line.replies) }}</td><td class="n">{{ number(line.tokens) }}</td>
<td class="n">{{ "unknown" if line.unpriced else money(line.usd) }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p>Nothing was asked.</p>
{% endif %}
{% endif %}
"""

BODY = "<style>{{ css }}</style>" + _MACROS + _BEGINNING + _FUNNEL + _KEPT + _REFUSED + _CHECKS
