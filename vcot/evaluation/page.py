"""The result for people: ``report.html``, ``overlay.png``, and the table for a terminal.

All numbers come from ``report.json``; the images show true and predicted boxes, worst first, so that errors of frame
and label are seen at a glance.
"""

from __future__ import annotations

import io
import random
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from markupsafe import Markup, escape
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table
from rich.text import Text

from vcot.evaluation import report as of_report
from vcot.evaluation.diversity import COVERAGES, SEVERAL
from vcot.evaluation.diversity import FIGURES as OF_DIVERSITY
from vcot.evaluation.failures import CAUSES, cause
from vcot.evaluation.metrics import METRICS
from vcot.evaluation.report import DIFFERENCES, JUDGED, RESULTS, Evidence, before, both, figures_of, guess_name, value
from vcot.evaluation.runner import image_of
from vcot.evaluation.selection import MEASURES
from vcot.evaluation.suites import tables as of_suites
from vcot.grounding import Box, Trace
from vcot.grounding.tags import SPELLINGS, parse
from vcot.records import Sample, Score
from vcot.reports.examples import PREDICTED, TRUE, data_uri, overlay
from vcot.reports.rendering import REASONS, plural, render
from vcot.storage import Store
from vcot.storage.images import ImageError

COLUMNS = ("accuracy_at_50", "mean_iou", "precision", "answer_accuracy", "unreadable", "malformed")
"""Of the page's first table."""
HEADLINE = ("accuracy_at_50", "precision", "mean_iou", "answer_accuracy", "unreadable", "malformed")
"""Of the table for a terminal."""
ASIDE = ("base-blank", "base-shuffled", "base-real-blank")
"""Rows that stand among all figures only: what a model does with a blank image before it was tuned is a detail."""
SHOWN_FIRST = 3
"""Images of each cause of failure that are seen without opening the rest."""
NUMBER = 0.045
"""Height of the numbers of boxes, of the width of the image that they are drawn on."""


# --- the page ----------------------------------------------------------------------------------------------


def html(report: Mapping[str, Any], examples: Sequence[Shown] = ()) -> str:
    """The page of what stands in ``report.json``, self-contained. `examples`: rows with their images."""
    groups = [group | {"table": _group_rows(group)} for group in report["groups"]]
    return render(
        "evaluate.html.j2", report=report, samples=report["samples"], summary=report["verdict"], aside=ASIDE,
        tiles=_tiles(report), groups=groups, examples=examples, shown_first=SHOWN_FIRST, colours=(TRUE, PREDICTED),
        number=NUMBER, followed=any(card.steps for one in examples for card in one.cards),
        columns=COLUMNS, judged=JUDGED, metrics=METRICS, differences=DIFFERENCES, before=before, value=value,
        both=both, interval=of_report.interval, plural=plural, reasons=REASONS["evaluate"],
        methods=_measures(report.get("selection", ())), causes=list(CAUSES), answers_by=answers_by_metadata(report),
        diversity_figures=OF_DIVERSITY, coverages=COVERAGES,
        suite_metrics=of_suites.METRICS,
    )  # fmt: skip


def _measures(ways: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Those that were worked out, or would have been, and what they are."""
    named = {name for way in ways for part in ("accuracy", "missing") for name in way["by_samples"][-1][part]}
    return {name: meaning for name, meaning in MEASURES.items() if name in named}


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what stands large, what it is)"""
    results, tiles = figures_of(report, "results"), []
    for name, what, guess in (
        ("accuracy_at_50", "of true boxes found", "by the best guess of a box"),
        ("answer_accuracy", "of answers right", "by the usual answer"),
    ):
        now = results["subject-real"][name]
        if now["value"] is None:
            continue
        if (then := before(results, name)) is None:
            tiles.append((value(name, now), what))
        else:
            tiles.append((f"{value(name, then)} → {value(name, now)}", f"{what}, before → after tuning"))
        if "subject-blank" in results:
            tiles.append((value(name, results["subject-blank"][name]), f"{what}, on blank images"))
        if able := [figures[name] for figures in figures_of(report, "guesses").values() if name in figures]:
            tiles.append((value(name, max(able, key=lambda f: f["value"] or 0.0)), f"{what}, {guess}"))
    return tiles


def _group_rows(group: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """One group's table: (name, figures, whether they are differences)."""
    rows = [(RESULTS[key].name, figures, False) for key, figures in group["results"].items()]
    if against := group["against_guess"]:
        kinds = " / ".join(guess_name(each["guess"]) for each in against.values())
        rows.append((f"best guess: {kinds}", {name: each["its"] for name, each in against.items()}, False))
        rows.append(("after − best guess", {name: each["difference"] for name, each in against.items()}, True))
    return rows + [(DIFFERENCES[key].name, figures, True) for key, figures in group["differences"].items()]


# --- examples ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A box of a reply. x, y: of its number's left end and foot; pixels of the original, as the box."""

    box: Box
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Card:
    """One row of the evaluation as it stands on the page. `image`: a data URI. `others`: what was said otherwise.

    `steps`: the boxes of a reply that has several, in its order; the page draws them above the image, to be followed
    one at a time. Else they are part of the image.
    """

    sample: Sample
    score: Score
    image: str | None
    reply: Markup
    others: Mapping[str, Markup]
    steps: Sequence[Step] = ()


Kind = TypeVar("Kind")


class Shown(NamedTuple):
    """Rows that the page shows, of all that have a cause of failure; None: nothing is wrong with them."""

    cause: str | None
    rows: int
    cards: Sequence[Card]


def examples(store: Store, evidence: Evidence, report: Mapping[str, Any], most: int, seed: int) -> list[Shown]:
    """Rows for the page: all of them where `most` fit; else of each cause of failure equally many, the worst, and as
    many of those that are right in all, drawn at random."""
    scores, boxes = evidence.subject_scores, report["boxes_asked"]
    by_cause: dict[str | None, list[int]] = defaultdict(list)
    for index in sorted(range(len(scores)), key=lambda index: _goodness(scores[index])):
        by_cause[cause(scores[index], boxes=boxes)].append(index)
    shares = fair_shares({one: len(indices) for one, indices in by_cause.items()}, most)
    found = []
    for one in (*(row["cause"] for row in report["failures"]), None):
        if not (indices := by_cause[one]):
            continue
        chosen = indices[: (share := shares[one])]
        if one is None and len(indices) > share:
            drawn = set(random.Random(seed).sample(indices, share))
            chosen = [index for index in indices if index in drawn]
        found.append(Shown(one, len(indices), [_card(store, evidence, index) for index in chosen]))
    return found


def fair_shares(wanted: Mapping[Kind, int], most: int) -> dict[Kind, int]:
    """How many of each kind are shown where `most` are in all: equally many, and what one does not need, the others
    have; one at least."""
    shares: dict[Kind, int] = {}
    for place, (kind, many) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        shares[kind] = min(many, max(1, (most - sum(shares.values())) // (len(wanted) - place)))
    return shares


def _goodness(score: Score) -> tuple[float, bool, str]:
    """What rows are sorted by: soft F1 of the boxes (vcot.grounding), then the answer, then the id."""
    boxes = 0 if score.true_boxes is None else score.true_boxes + score.predicted_boxes
    return (2 * sum(score.ious) / boxes if boxes else 1.0, score.answer == "right", score.sample)


def _card(store: Store, evidence: Evidence, index: int) -> Card:
    sample, score = evidence.samples[index], evidence.subject_scores[index]
    names = {
        "base-real": "before tuning", "native-real": "before tuning, in its own form",
        "subject-blank": "on a blank image",
    }  # fmt: skip
    others = {
        name: highlighted(other.text)
        for key, name in names.items()
        if key in evidence.scores and (other := evidence.scores[key][index]) is not None
    }
    parsed = parse(score.text, evidence.frame(sample))
    steps = _steps(parsed.trace, sample.shown.width) if sample.image and parsed.boxes[1:] else []
    reply = highlighted(score.text, parsed.places if steps else ())
    return Card(sample, score, drawn(store, sample, score, boxes=not steps), reply, others, steps)


def _steps(said: Trace, width: int) -> list[Step]:
    """Numbers stand in their boxes, above those that are too small; of a box that is said again, side by side."""
    found, high = list[Step](), NUMBER * width
    for place, (one, label) in enumerate(zip(said.boxes, said.labels, strict=True)):
        x = one.x1 + high * (0.2 + 1.3 * said.boxes[:place].count(one))
        y = one.y1 + high if min(one.width, one.height) > 2 * high else max(one.y1 - 0.3 * high, high)
        found.append(Step(one, label, min(x, width - 1.3 * high), y))
    return found


def drawn(store: Store, sample: Sample, score: Score, *, boxes: bool = True) -> str | None:
    """The image as a data URI, with its boxes or without; grey where it has gone since it was asked about, None where
    none was."""
    if sample.image is None:
        return None
    try:
        pixels = image_of(store, sample)
    except ImageError:
        pixels = Image.new("RGB", (sample.image.width, sample.image.height), "lightgrey")
    shown = draw(pixels, sample, score, longest_side=420) if boxes else overlay(pixels, {}, longest_side=420)
    return data_uri(shown)


def draw(pixels: Image.Image, sample: Sample, score: Score, *, longest_side: int) -> Image.Image:
    """The image with the true boxes in one colour and the predicted ones in another.

    A predicted box has its label beside it where that is not the only true one: a small thing would hide behind it.
    """
    said = Trace(score.mentions or ())
    true = {mention.label for mention in sample.evidence or ()}
    labels = ["" if true == {label} else label for label in said.labels]
    size = sample.shown.width, sample.shown.height
    boxes = {TRUE: sample.true_boxes or (), PREDICTED: said.boxes}
    return overlay(pixels, boxes, {PREDICTED: labels}, original=size, longest_side=longest_side)


_TAGS = sorted({pair for spelling in SPELLINGS.values() for pair in (spelling.ref, spelling.box)})
_TAGGED = re.compile(
    "|".join(f"({re.escape(escape(start))})(.*?)({re.escape(escape(end))})" for start, end in _TAGS), re.DOTALL
)


def highlighted(text: str, places: Sequence[tuple[int, int]] = ()) -> Markup:
    """A reply as HTML: labels and boxes stand out, everything else is escaped. Tags that do not close stay plain.

    places: of its boxes (vcot.grounding.tags.Parsed); each then has its number behind it.
    """
    html, done = Markup(), 0
    for start, boxes in groupby(enumerate(places, 1), key=lambda one: one[1][0]):
        html += _tagged(text[done:start])
        mention, numbers, done = Markup(), [], start
        for number, (_, end) in boxes:
            mention += _tagged(text[done:end]) + Markup('<sup data-steps="{0}">{0}</sup>').format(number)
            numbers.append(f"{number}")
            done = end
        html += Markup('<span class="mention" data-steps="{}">{}</span>').format(" ".join(numbers), mention)
    return html + _tagged(text[done:])


def _tagged(text: str) -> Markup:
    def marked(found: re.Match[str]) -> str:
        start, inner, end = (group for group in found.groups() if group is not None)
        kind = "ref" if "ref" in start or "obj" in start else "box"
        return f'<span class="tag">{start}</span><span class="{kind}">{inner}</span><span class="tag">{end}</span>'

    return Markup(_TAGGED.sub(marked, str(escape(text))))


def overlay_png(store: Store, evidence: Evidence) -> bytes | None:
    """One image to show the result by: the reply of median quality among those that are right in all, with the
    question above and the reply below. None where no reply is.

    The median, not the best: the image should promise no more than what is usual when the model is right. Raises
    ImageError: the sample's image has gone.
    """
    right = [
        (_goodness(score), index)
        for index, score in enumerate(evidence.subject_scores)
        if score.answer == "right" and score.true_boxes and score.matched == score.true_boxes == score.predicted_boxes
    ]
    if not right:
        return None
    index = sorted(right)[len(right) // 2][1]
    sample, score = evidence.samples[index], evidence.subject_scores[index]
    shown = draw(image_of(store, sample), sample, score, longest_side=640)
    font, small, margin, dark = ImageFont.load_default(20), ImageFont.load_default(15), 20, "#1f2328"
    columns = int(shown.width / small.getlength("e"))
    lines = [line for row in score.text.splitlines() for line in textwrap.wrap(row, columns) or [""]]
    top, legend = margin + 36, margin + 36 + shown.height + 12
    canvas = Image.new("RGB", (shown.width + 2 * margin, legend + 30 + 21 * len(lines) + margin), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin - 4), sample.question, fill=dark, font=font)
    canvas.paste(shown, (margin, top))
    x = float(margin)
    for colour, name in ((TRUE, "where people marked it"), (PREDICTED, "where the model says it is")):
        pen.rectangle((x, legend + 3, x + 13, legend + 16), outline=colour, width=3)
        pen.text((x + 20, legend), name, fill="#656d76", font=small)
        x += 40 + pen.textlength(name, font=small)
    for number, line in enumerate(lines):
        pen.text((margin, legend + 30 + 21 * number), line, fill=dark, font=small)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# --- the table for a terminal ------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> Table:
    """Before → after with 95 % intervals, wrong images, guesses, the number of rows and boxes, and the summary."""
    samples, summary = report["samples"], report["verdict"]
    doubts = (report.get("credibility") or {}).get("warnings", ())
    lines = [
        *(["Read this before you believe the figures:", *(f"  · {doubt}" for doubt in doubts), ""] if doubts else []),
        "found: true boxes met with IoU ≥ 0.5 by the first boxes of the reply, as many as are true (acc@0.5);",
        "precision: right ones of all its boxes; overlap: mean IoU. A box that was missed counts as 0.",
    ]
    for heading, sentences in (
        ("It can:", summary["can"]),
        ("It cannot:", summary["cannot"]),
        ("Too few rows to tell whether it can:", summary.get("unclear")),
    ):
        if sentences:
            lines += ["", heading, *(f"  · {sentence}" for sentence in sentences)]
    lines += [f"Several replies: {line}" for line in map(_of_draws, report.get("selection", ()))]
    made = Table(
        title=f"{samples['rows']:,} questions, {samples['boxes']:,} true boxes in {samples['images']:,} images"
        f" ({samples['split']}); in brackets the 95 % interval",
        caption=Text("\n".join([*lines, "", *summary["notes"]])),
        title_justify="left", caption_justify="left", title_style="bold", caption_style="none", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    made.add_column("", no_wrap=True)
    for name in HEADLINE:
        made.add_column(METRICS[name].label, justify="right")
    for part, signed, left_out, style in (
        ("results", False, ("base-blank", "base-shuffled"), ""),
        ("guesses", False, (), "dim"),
        ("differences", True, ("real-wrong", "base-real-blank"), ""),
    ):
        for row in report[part]:
            if row["key"] not in left_out:  # these are on the page
                tuned = row["key"] == "subject-real"
                figures = [(name, row["figures"].get(name)) for name in HEADLINE]
                cells = [both(name, figure, signed=signed) if figure else "" for name, figure in figures]
                made.add_row(row["name"], *map(_breaking, cells), style="bold" if tuned else style, end_section=tuned)
        made.add_section()
    return made


def markdown(report: Mapping[str, Any]) -> str:
    """The results with their intervals as a table of Markdown, and what they were measured on in a sentence."""
    samples, rows = report["samples"], [row for row in report["results"] if row["key"] not in ASIDE]
    lines = [
        f"{samples['rows']:,} questions with {samples['boxes']:,} true boxes in {samples['images']:,} images, split "
        f"`{samples['split']}`; in brackets the 95 % interval.", "",
        f"| | {' | '.join(METRICS[name].label for name in HEADLINE)} |", f"|---|{'---:|' * len(HEADLINE)}",
    ]  # fmt: skip
    for row in rows:
        cells = [both(name, figure) if (figure := row["figures"].get(name)) else "" for name in HEADLINE]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_draws(way: Mapping[str, Any]) -> str:
    last = way["by_samples"][-1]
    said = [
        f"{name} {value('answer_accuracy', last['accuracy'][name])}"
        for name in ("greedy", "majority", "marginal")
        if name in last["accuracy"]
    ]
    return f"{way['way']}, of {way['draws']}: {', '.join(said) or 'nothing chosen'} right; all methods are on the page."


def further_tables(report: Mapping[str, Any]) -> list[Table]:
    """Ways to ask side by side, where there were several; what several replies are worth; and each suite's."""
    return [
        *([_of_ways(report["ways"])] if len(report.get("ways", ())) > 1 else []),
        *(_answers_by(name, *each) for name, each in answers_by_metadata(report).items()),
        *map(_of_selection, report.get("selection", ())),
        *([_of_diversity(report["diversity"])] if report.get("diversity") else []),
        *(_of_suite(suite) for suite in report.get("suites", ())),
    ]


def by_metadata(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Name of a metadata → (its value, the group) for each of its groups, numbers in their order."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for group in groups:
        if group["metadata"]:
            name, _, said = group["metadata"].partition(": ")
            found.setdefault(name, []).append((said, group))
    for each in found.values():
        if all(said.isdecimal() for said, _ in each):
            each.sort(key=lambda one: int(one[0]))
    return found


def answers_by_metadata(report: Mapping[str, Any]) -> dict[str, tuple[list[str], list[tuple[str, list[Any]]]]]:
    """Name of a metadata → its values, and the right answers for each of them: of each way to ask or, where there is
    one, before and after tuning."""
    found = {}
    for name, groups in by_metadata(report["groups"]).items():
        columns = [
            {way: figures["answer_accuracy"] for way, figures in (one.get("ways") or {}).items()}
            or {
                row["name"]: one["results"][row["key"]].get("answer_accuracy")
                for row in report["results"]
                if row["key"] in ("base-real", "subject-real") and row["key"] in one["results"]
            }
            for _, one in groups
        ]
        rows = [(who, [column.get(who) for column in columns]) for who in columns[0]]
        if len(rows) > 1 and all(None not in figures for _, figures in rows):  # of both, and of everything asked
            found[name] = [said for said, _ in groups], rows
    return found


def _answers_by(name: str, values: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]) -> Table:
    title = f"answers right by {name}; in brackets the 95 % interval"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for said in (name, *values):
        made.add_column(said, justify="right" if said != name else "left")
    for who, figures in rows:
        made.add_row(who, *(both("answer_accuracy", figure) for figure in figures))
    return made


def _of_ways(ways: Sequence[Mapping[str, Any]]) -> Table:
    title = "the same questions asked in several ways; in brackets the 95 % interval"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown = [*ways[0]["figures"]]
    names = (METRICS[name].label for name in shown)
    for name in ("", *names, f"answers − {ways[0]['way']}", "tokens", "seconds"):
        made.add_column(name, justify="right" if name else "left")
    for way in ways:
        cells = [both(name, way["figures"][name]) for name in shown]
        change = way["difference"].get("answer_accuracy")
        cells.append(both("answer_accuracy", change, signed=True) if change else "")
        made.add_row(
            way["way"], *cells, f"{way['tokens_out']:.1f}", "" if way["seconds"] is None else f"{way['seconds']:.3f}"
        )
    return made


def _of_selection(way: Mapping[str, Any]) -> Table:
    """Right answers of each way of choosing, by the number of replies, and at equal budgets of tokens."""
    made = Table(
        title=f"{way['way']}: answers right by number of replies, and of those that fit into as many tokens; "
        "in brackets the 95 % interval",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    named = [name for name in MEASURES if name in way["by_samples"][-1]["accuracy"]]
    made.add_column("", no_wrap=True)
    for name in ("tokens", *named):
        made.add_column(name.replace("_", " "), justify="right")
    for unit, points in (("replies", way["by_samples"]), ("tokens", way["by_budget"])):
        for point in points:
            cells = [_breaking(both("answer_accuracy", point["accuracy"][name])) for name in named]
            made.add_row(_counted(point["limit"], unit), f"{point['tokens']:,.0f}", *cells)
        made.add_section()
    return made


def _counted(number: int, unit: str) -> str:
    if unit == "tokens":
        return f"≤ {number:,} tokens"
    return plural(number, "reply", "replies")


def _breaking(cell: str) -> str:
    """Where a cell is too narrow it breaks before its interval."""
    return cell.replace(" ", "\xa0").replace("\xa0(", " (")


def _of_diversity(ways: Sequence[Mapping[str, Any]]) -> Table:
    """How far the replies differ, and coverage by their number where reasonings are known."""
    title = f"how far {ways[0]['draws']} replies to a question differ; in brackets the 95 % interval"
    covered = any(way["figures"]["coverage"]["rows"] for way in ways)
    shown = [name for name in OF_DIVERSITY if covered or name not in COVERAGES]
    meaning = (
        f"coverage: of the known reasonings of questions that have {SEVERAL} or more, those that a right reply gives"
    )
    made = Table(
        title=title, caption=meaning if covered else None, title_justify="left", caption_justify="left",
        title_style="bold", caption_style="none", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    made.add_column("", no_wrap=True)
    for name in shown:
        made.add_column(OF_DIVERSITY[name].label, justify="right")
    for way in ways:
        made.add_row(way["way"], *(_breaking(both(name, way["figures"][name])) for name in shown))
        for point in way["by_draws"][:-1] if covered else ():
            cells = [_breaking(both(name, point[name])) if name in COVERAGES else "" for name in shown]
            made.add_row(f"  first {_counted(point['draws'], 'replies')}", *cells, style="dim")
        made.add_section()
    return made


def _of_suite(suite: Mapping[str, Any]) -> Table:
    """Its sets by way, and the figures that it is read by first."""
    title = f"{suite['suite']}: {suite['about']}; in brackets the 95 % interval"
    judge = f"judge: {suite['judge']['model']} at {suite['judge']['address']}" if "judge" in suite else None
    made = Table(
        title=title, caption=judge, title_justify="left", caption_justify="left", title_style="bold",
        caption_style="none", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    rows = [(way["way"], each) for way in suite["ways"] for each in way["sets"]]
    shown = suite["shown"][:5]
    for name in ("", "asked", "rows", *(of_suites.METRICS[name].label for name in shown)):
        made.add_column(name, justify="right" if name not in ("", "asked") else "left")
    for way, each in sorted(rows, key=lambda row: bool(row[1]["mean_of"])):
        cells = [both(name, each["figures"][name]) for name in shown]
        made.add_row(each["set"], way, f"{each['rows']:,}", *cells, style="dim" if each["mean_of"] else "")
    return made


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a few numbers: the columns of the table, after and before; those that could be measured."""
    results = figures_of(report, "results")
    names = [name for name in HEADLINE if name in results["subject-real"]]  # a stored report may have fewer
    found = {name: results["subject-real"][name] for name in names}
    found |= {f"base_{name}": before(results, name) for name in names}
    values = {name: round(each["value"], 4) for name, each in found.items() if each and each["value"] is not None}
    return values | {"samples": report["samples"]["rows"]}
