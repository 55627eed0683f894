"""The page's HTML (Jinja2; values are escaped) and what its style adds to that of all pages."""

# ruff: noqa: E501

from __future__ import annotations

_CELL = """
{% macro cell(name, figure, signed=False) %}
<td class="n">{{ value(name, figure, signed=signed) }}
{% if interval(name, figure, signed=signed) %}<span class="ci">{{ interval(name, figure, signed=signed) }}</span>{% endif %}
<span class="of">{{ counted(figure) }}</span></td>
{% endmacro %}
"""

_CARD = """
{% macro show(card) %}
<article class="card">
{%- if card.picture %}<img src="{{ card.picture }}" alt="{{ card.sample.question }}" loading="lazy">
{% else %}<p class="small soft">asked by text alone</p>{% endif %}
<p class="question">{{ card.sample.question }}</p>
<p class="small"><span class="chip {{ card.score.answer }}">answer {{ card.score.answer if card.score.answer != "absent" else "missing" }}</span>
{% if card.score.true_boxes is not none %}
<span class="chip {{ "right" if card.score.matched == card.score.true_boxes == card.score.predicted_boxes else "wrong" }}">
{{ card.score.matched }} of {{ card.score.true_boxes }} found{% if card.score.predicted_boxes > card.score.matched %},
{{ card.score.predicted_boxes - card.score.matched }} wrong{% endif %}{% if card.score.misnamed %},
{{ card.score.misnamed }} of them under another name{% endif %}</span>{% endif %}
{% for fault in faults(card.score.faults) %}<span class="chip wrong">{{ fault }}</span>{% endfor %}
</p>
{% if card.score.ious %}<p class="small soft">IoU of each true box: {{ iou(card.score) }}</p>{% endif %}
<p class="reply">{{ card.reply }}</p>
<p class="small soft">True answer: {{ card.sample.answers | join(" or ") }}</p>
{% if card.sample.metadata %}<p class="small soft">
{%- for name, value in card.sample.metadata.items() %}{{ name }}: {{ value }}{% if not loop.last %} · {% endif %}{% endfor %}</p>{% endif %}
{% if card.others %}<details class="small"><summary>what it said otherwise</summary>
{% for name, text in card.others.items() %}<p class="soft">{{ name }}:</p><p class="reply">{{ text }}</p>{% endfor %}</details>{% endif %}
</article>
{% endmacro %}
"""

BODY = (
    _CELL
    + _CARD
    + """
<style>{{ css }}</style>
<div class="tiles">
{% for large, what in tiles %}<div class="tile"><b>{{ large }}</b><span>{{ what }}</span></div>{% endfor %}
</div>
<p class="small soft">Measured on {{ "{:,}".format(samples.rows) }} questions about
{{ "{:,}".format(samples.pictures) }} pictures of the {{ samples.split }} split with
{{ "{:,}".format(samples.boxes) }} true boxes{% if samples.absent %}; in {{ "{:,}".format(samples.absent) }} rows the
thing asked for is not in the picture{% endif %}{% if samples.by_text %};
{{ "{:,}".format(samples.by_text) }} are asked by text alone, and left out of what is measured on blank and wrong
pictures{% endif %}. The guesses were learned from
{{ "{:,}".format(samples.training_rows) }} rows of the training split.</p>

<h2>What it can do, and what it cannot</h2>
{% if verdict.can %}<p>It can</p><ul class="can">{% for line in verdict.can %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if verdict.cannot %}<p>It cannot</p>
<ul class="cannot">{% for line in verdict.cannot %}<li>{{ line }}</li>{% endfor %}</ul>
{% else %}<p>Nothing that was asked came out at the level of guessing. What was not asked is not known.</p>{% endif %}
{% for line in verdict.notes %}<p class="small soft">{{ line }}</p>{% endfor %}
<p class="small soft">“Can” means: better than the best guess and than the same model on blank pictures, with 95 %
confidence each, and right more often than not.</p>

<h2>The result in one table</h2>
<p class="small soft">Below each number its 95 % interval, and what it was counted on. Boxes are paired one to one, and
under one name where things of several names are asked for.</p>
<div class="wide"><table class="result">
<thead><tr><th></th>
{% for column in columns %}<th class="n" title="{{ names[column][1] }}">{{ names[column][0] }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr class="{{ row.key }}"><td><b>{{ row.name }}</b><span class="means">{{ row.meaning }}</span></td>
{% for column in columns %}
{% if column in row.figures %}{{ cell(column, row.figures[column], row.key in differences) }}{% else %}<td></td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<dl class="small">{% for column in columns %}<dt>{{ names[column][0] }}</dt><dd>{{ names[column][1] }}</dd>{% endfor %}</dl>

{% for chart in charts %}
<figure class="chart"><figcaption><b>{{ chart.title[0] }}</b> — {{ chart.title[1] }}</figcaption>
{% for dot in chart.dots %}
<div class="dots {{ dot.kind }}"><span class="who">{{ dot.name }}</span>
<span class="scale"><i class="range" style="left:{{ "%.2f"|format(dot.low) }}%;width:{{ "%.2f"|format(dot.high - dot.low) }}%"></i>
<i class="dot" style="left:{{ "%.2f"|format(dot.value) }}%"></i></span><span class="how">{{ dot.text }}</span></div>
{% endfor %}
<div class="dots axis"><span class="who"></span><span class="scale"><i style="left:0">0</i><i style="left:50%">50</i><i style="left:100%">100 %</i></span><span class="how"></span></div>
</figure>
{% endfor %}

{% for title, cards in gallery %}
<h2>{{ title }}</h2>
<p class="small"><span class="key" style="border-color:{{ colours[0] }}"></span> where people marked it
<span class="key" style="border-color:{{ colours[1] }}"></span> where the tuned model says it is</p>
<div class="cards">{% for card in cards[:shown_first] %}{{ show(card) }}{% endfor %}</div>
{% if cards | length > shown_first %}<details><summary>the other {{ cards | length - shown_first }}</summary>
<div class="cards">{% for card in cards[shown_first:] %}{{ show(card) }}{% endfor %}</div></details>{% endif %}
{% endfor %}

<h2>By question, by thing and by metadata</h2>
<p class="small soft">Each line opens.</p>
{% for group in groups %}
<details class="group"><summary><b>{{ group.question or group.metadata or "About: " + group.thing }}</b>
<span class="soft">{{ "{:,}".format(group.rows) }} rows{% for name in ("accuracy_at_50", "answer_accuracy") %}
{% if group.results["tuned-real"][name].value is not none %} · {{ names[name][0] }}
{{ value(name, before(group.results, name)) }} → {{ value(name, group.results["tuned-real"][name]) }}{% endif %}{% endfor %}</span></summary>
<div class="wide"><table class="group"><thead><tr><th></th>
{% for name in group.results["tuned-real"] %}<th class="n">{{ names[name][0] }}</th>{% endfor %}</tr></thead>
<tbody>{% for title, figures, signed in group.rows_of_table %}<tr><td>{{ title }}</td>
{% for name in group.results["tuned-real"] %}{% if name in figures %}{{ cell(name, figures[name], signed) }}{% else %}<td></td>{% endif %}{% endfor %}</tr>
{% endfor %}</tbody></table></div></details>
{% endfor %}

<h2>All figures</h2>
<details><summary>every figure of every row, with its interval and what it was counted on</summary>
{% for title, part, signed in (("The models", report.results, False), ("Guesses", report.guesses, False), ("Differences", report.differences, True)) %}
{% if part %}
<h3>{{ title }}</h3>
<div class="wide"><table class="group"><thead><tr><th></th>{% for row in part %}<th class="n">{{ row.name }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, words in names.items() if part | selectattr("figures." ~ name, "defined") | list %}<tr><td class="name" title="{{ words[1] }}">{{ words[0] }}</td>
{% for row in part %}{% if name in row.figures %}{{ cell(name, row.figures[name], signed) }}{% else %}<td></td>{% endif %}{% endfor %}</tr>{% endfor %}
{% if part == report.results %}<tr><td class="name">not ended in time</td>{% for row in part %}<td class="n">{{ row.cut_off }}<span class="of">replies</span></td>{% endfor %}</tr>{% endif %}
</tbody></table></div>{% endif %}
{% endfor %}
<dl class="small">{% for name, words in names.items() %}<dt>{{ words[0] }}</dt><dd>{{ words[1] }}</dd>{% endfor %}</dl>
</details>

<h2>How it was measured</h2>
<p class="small">Greedy decoding without a repetition penalty; a reply that does not end within the limit is judged as it
stands. Intervals: 95 %, percentile bootstrap over pictures (all rows about a picture are drawn together); where every
picture is alike, the exact interval of Clopper and Pearson. Differences are drawn pairwise on the same rows.</p>
<table class="small">{% for name, text in report.made_with.items() %}
<tr><th>{{ name | replace("_", " ") }}</th><td class="mono">{{ text if text is not mapping else text | tojson }}</td></tr>{% endfor %}
</table>
"""
)

CSS = """
.wide { overflow-x: auto; }
.ci, .of, .means { display: block; color: var(--soft); font-size: 12px; font-weight: 400; white-space: nowrap; }
.of { font-size: 11px; }
.means { white-space: normal; min-width: 20ch; max-width: 34ch; font-size: 13px; }
table.result td { padding-top: 9px; padding-bottom: 9px; }
tr.tuned-real td { background: #fdf3ed; }
tr.tuned-real td.n:first-line { font-weight: 700; }
tr.after-before td { border-top: 2px solid var(--line); }
tr.centre-box td { border-top: 2px solid var(--line); }
table.group { font-size: 14px; } td.name { white-space: nowrap; }
summary { cursor: pointer; } details.group { margin: 10px 0; } .cards + details { margin-top: 18px; } details .cards { margin-top: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
ul.can li::marker { content: "✓  "; color: var(--true); font-weight: 700; }
ul.cannot li::marker { content: "✗  "; color: var(--pred); font-weight: 700; }
ul.can, ul.cannot { margin: 4px 0 12px; } li { margin: 4px 0; max-width: 90ch; }
.chart { margin: 28px 0; } .chart figcaption { margin-bottom: 8px; max-width: 90ch; }
.dots { display: grid; grid-template-columns: 180px 1fr 130px; gap: 14px; align-items: center; font-size: 14px; height: 26px; }
.scale { position: relative; height: 26px; border-left: 1px solid var(--line); border-right: 1px solid var(--line);
  background: linear-gradient(90deg, transparent calc(50% - 1px), var(--line) calc(50% - 1px), var(--line) 50%, transparent 50%); }
.scale i { position: absolute; font-style: normal; }
.range { top: 11px; height: 4px; border-radius: 2px; background: #b8c0c8; }
.dot { top: 7px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%; background: #77818b; }
.after .range { background: #f0b08f; } .after .dot { background: var(--pred); } .after .who { font-weight: 700; }
.axis .scale { border-color: transparent; background: none; } .axis i { transform: translateX(-50%); color: var(--soft); font-size: 12px; white-space: nowrap; }
.how { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 18px; align-items: start; }
.cards .card { margin: 0; padding: 12px; }
.cards img { width: 100%; } .cards p { margin: 8px 0; }
.question { font-weight: 600; }
.reply { font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  background: #f6f8fa; border-radius: 6px; padding: 8px 10px; }
.tag { color: #9aa2ab; font-size: 11px; } .ref { color: #0b62c4; font-weight: 600; } .box { color: var(--pred); }
.chip { display: inline-block; border-radius: 10px; padding: 0 9px; margin-right: 4px; font-size: 12.5px; background: #eceff2; }
.chip.right { background: #dff3e5; color: #116932; } .chip.wrong, .chip.absent { background: #fde6dc; color: #a33708; }
.key { display: inline-block; width: 15px; height: 12px; border: 3px solid; border-radius: 2px; margin: 0 4px -1px 12px; }
@media (max-width: 700px) { .dots { grid-template-columns: 110px 1fr 92px; gap: 8px; font-size: 12px; } }
"""
