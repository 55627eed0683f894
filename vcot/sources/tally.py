"""What went through convert, in numbers: by dataset, split and reason, and how many boxes of which size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from vcot.records import Rejection, Sample
from vcot.records.page import fill, page

Counts = dict[str, Any]
"""Nested dicts whose leaves are counts."""

_LIMITS = (0.001, 0.01, 0.1, 0.5)
_AREAS = ("under 0.1 %", "0.1 – 1 %", "1 – 10 %", "10 – 50 %", "over 50 %")
_SPLITS = ("train", "validation", "test")


def count(into: Counts, dataset: str, result: Sample | Rejection) -> None:
    """Counts one row."""
    here = _below(_below(into, "datasets"), dataset)
    if not here:
        here |= {"kept": {}, "rejected": {}}
    if isinstance(result, Rejection):
        _one_more(here["rejected"], result.reason.value)
        return
    _one_more(here["kept"], result.origin.split)
    boxes = result.true_boxes
    per_row = "not annotated" if boxes is None else str(len(boxes)) if len(boxes) < 6 else "6 or more"
    _one_more(_below(into, "boxes per row"), per_row)
    if boxes:
        areas, pixels = _below(into, "box area"), result.image.width * result.image.height
        for box in boxes:
            _one_more(areas, _AREAS[bisect_right(_LIMITS, box.area / pixels)])


def added(a: Mapping[str, Any], b: Mapping[str, Any]) -> Counts:
    """Both counts together."""
    both: Counts = dict(a)
    for key, value in b.items():
        if isinstance(value, Mapping):
            both[key] = added(both.get(key, {}), value)
        else:
            both[key] = both.get(key, 0) + value
    return both


def as_page(counts: Mapping[str, Any]) -> str:
    """The counts as a page that needs no other file."""
    datasets = [
        {
            "name": name,
            "kept": [found["kept"].get(split, 0) for split in _SPLITS],
            "rejected": sum(found["rejected"].values()),
            "reasons": ", ".join(f"{n} {reason}" for reason, n in sorted(found["rejected"].items())),
        }
        for name, found in sorted(counts.get("datasets", {}).items())
    ]
    areas = [(name, counts.get("box area", {}).get(name, 0)) for name in _AREAS]
    body = fill(
        _BODY, splits=_SPLITS, datasets=datasets, areas=areas,
        benchmarks=counts.get("benchmarks", {}), near=counts.get("near-duplicates", {}),
        per_row=sorted(counts.get("boxes per row", {}).items()), most=max([n for _, n in areas] + [1]),
    )  # fmt: skip
    return page("Convert", body, lead="Rows of the dataset that became Samples, and those that were refused.")


def _below(counts: Counts, key: str) -> Counts:
    found: Counts | None = counts.get(key)
    if found is None:
        found = counts[key] = {}
    return found


def _one_more(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


_BODY = """
<h2>Rows</h2>
<table>
<tr><th>dataset</th>{% for split in splits %}<th class="n">{{ split }}</th>{% endfor %}
<th class="n">refused</th><th>why</th></tr>
{% for d in datasets %}
<tr><td>{{ d.name }}</td>{% for n in d.kept %}<td class="n">{{ "{:,}".format(n) }}</td>{% endfor %}
<td class="n">{{ "{:,}".format(d.rejected) }}</td><td class="small">{{ d.reasons }}</td></tr>
{% endfor %}
</table>
{% if near %}<p>Nearly the same picture: {{ near["pictures in groups"] }} of {{ near["pictures compared"] }} pictures,
in {{ near["groups"] }} groups, the largest of {{ near["largest group"] }}. A group is on one side of the split.</p>
{% endif %}{% if benchmarks %}
<h2>Benchmarks kept out</h2>
<table>
<tr><th>file</th><th class="n">pictures</th><th class="n">found</th><th class="n">shared with these rows</th>
<th class="n">its rows with such a picture</th><th class="n">rows refused here</th></tr>
{% for name, b in benchmarks.items() %}
<tr><td>{{ name }}</td><td class="n">{{ b["pictures"] }}</td><td class="n">{{ b["pictures found"] }}</td>
<td class="n">{{ b["pictures shared"] }}</td><td class="n">{{ b["rows with a shared picture"] }} of {{ b["rows"] }}</td>
<td class="n">{{ b["rows refused"] }}</td></tr>
{% endfor %}
</table>
{% endif %}<h2>Boxes</h2>
<table>
<tr><th>boxes of a row</th><th class="n">rows</th></tr>
{% for name, n in per_row %}<tr><td>{{ name }}</td><td class="n">{{ "{:,}".format(n) }}</td></tr>
{% endfor %}
</table>
<table>
<tr><th>area of a box, share of its picture</th><th class="n">boxes</th><th></th></tr>
{% for name, n in areas %}
<tr><td>{{ name }}</td><td class="n">{{ "{:,}".format(n) }}</td>
<td><span class="bar" style="width: {{ (200 * n / most) | round | int }}px"></span></td></tr>
{% endfor %}
</table>
"""
