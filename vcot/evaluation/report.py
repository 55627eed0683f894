"""From replies to what ``report.json`` holds: figures, differences, groups, and a summary in sentences.

Everything a reader sees (the page, the table, the gates) is made from this dictionary, so that no number exists twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from vcot.errors import InputError
from vcot.evaluation import diversity
from vcot.evaluation.config import BOXED, CONDITIONS, PROBES, Condition, Probe, Way
from vcot.evaluation.failures import failures
from vcot.evaluation.metrics import METRICS, Figure, Measured, Metric, measure
from vcot.evaluation.probe import probes, verdict
from vcot.evaluation.runner import NOT_ANNOTATED, Baselines, Reply, guesses, subject
from vcot.evaluation.selection import selection
from vcot.evaluation.suites import tables
from vcot.evaluation.voting import USUAL
from vcot.grounding import Frame
from vcot.records import Sample, Score
from vcot.reports.rendering import plural

MOST_GROUPS = 12
FEW = 20
"""Rows below which a group's figures are called few."""
SMALL_SHARE = 0.2
"""Share of all rows below which a split with few rows is named."""
MOST_UNCLEAR = 4
"""Sentences about groups of few rows; of more, only their number is given."""
NEARLY_ALL = 0.9
"""Share of the rows with the same reply to a blank image from which on the summary names it."""
JUDGED = ("accuracy_at_50", "answer_accuracy")
"""What gates look at, and the summary."""
SHOWN_OF_GROUP = (
    "accuracy_at_50", "mean_iou", "precision", "all_boxes_right", "answer_accuracy", "unreadable", "boxes_where_absent",
)  # fmt: skip
SHOWN_OF_WAY = ("answer_accuracy", "unreadable", "accuracy_at_50", "mean_iou", "all_boxes_right")
WAYS_MEAN: Mapping[Way, str] = {
    "direct": "The answer alone.",
    "reason": "Reasoning in words, then the answer.",
    "ground": "Reasoning with boxes, then the answer.",
    "look-again": "A box, then the question again with what is in it as a second image.",
}
BASES = ("native-real", "base-real")
"""The base in its own form, and in the tuned model's. Of equally good ones the first."""
PAIRS = {
    "after-before": ("subject-real", "base-real"),
    "after-native": ("subject-real", "native-real"),
    "real-blank": ("subject-real", "subject-blank"),
    "real-wrong": ("subject-real", "subject-shuffled"),
    "base-real-blank": ("base-real", "base-blank"),
}


class Row(NamedTuple):
    """How a row of the table is called, and what it is in one short sentence."""

    name: str
    meaning: str
    figures: tuple[str, ...] = tuple(METRICS)
    """Those that say something: a guess of a box has no answer, and its form is right by construction."""


_OF_BOXES = ("accuracy_at_50", "mean_iou", "precision", "recall", "f1")
RESULTS: Mapping[str, Row] = {
    "base-real": Row("before tuning", "The base model as it came, asked as the tuned one is about the real images."),
    "native-real": Row(
        "before, own form",
        "The base model as it came, asked for boxes as its family writes them: its own frame, notation and prompt.",
    ),
    "subject-real": Row("after tuning", "The tuned model, asked the same about the same images."),
    "base-blank": Row("before, blank images", "The base model sees plain grey instead of each image."),
    "subject-blank": Row(
        "after, blank images",
        "The tuned model sees plain grey: what it gets right by habit, without looking. It should be low.",
    ),
    "base-shuffled": Row("before, wrong images", "The base model sees another row's image."),
    "subject-shuffled": Row(
        "after, wrong images",
        "The tuned model sees another row's image: what comes of knowing where such things usually lie.",
    ),
}
GUESSES: Mapping[str, Row] = {
    "centre-box": Row(
        "guess: centre box", "Always the same box, half the image's width and height, in its middle.", _OF_BOXES
    ),
    "whole-image": Row("guess: whole image", "Always a box around everything.", _OF_BOXES),
    "mean-box": Row(
        "guess: average box", "Always the average box of that thing in the training images.", _OF_BOXES
    ),
    "frequent-answer": Row(
        "guess: usual answer", "Always the answer given most often to that question in training.",
        ("answer_accuracy",),
    ),
}  # fmt: skip
DIFFERENCES: Mapping[str, Row] = {
    "after-before": Row(
        "after − before",
        "What tuning changed, row by row on the same images; where the base was asked twice, from its better figure.",
    ),
    "real-blank": Row("real − blank", "How much the tuned model's result depends on seeing the image."),
    "real-wrong": Row("real − wrong", "How much it depends on seeing the right image."),
    "base-real-blank": Row("before: real − blank", "The same dependence before tuning."),
}


# --- what was asked ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the report is made of: samples with a reply from every model under every condition, in order.

    A reply is None where a question by text alone was not asked, because its condition is about images.

    Attributes:
        replies: "<model>-<condition>" → greedy replies to what is asked in the first way.
        frame: in whose numbers the subject writes boxes about a sample.
        ways: way → condition → greedy replies of the subject; the first way is that of `replies`.
        draws: way → for each sample the subject's replies that were drawn at random, in the order of their draws.
        probes: what was changed → the replies after it; None where there was nothing to change.
    """

    samples: tuple[Sample, ...]
    replies: dict[str, tuple[Reply | None, ...]]
    guesses: dict[str, tuple[Score, ...]]
    learned: Baselines
    left_out: int
    frame: Callable[[Sample], Frame]
    ways: Mapping[Way, Mapping[Condition, tuple[Reply | None, ...]]]
    draws: Mapping[Way, tuple[tuple[Reply, ...], ...]] = field(default_factory=dict)
    probes: Mapping[Probe, tuple[Reply | None, ...]] = field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[str, tuple[Score | None, ...]]:
        said = {key: tuple(None if r is None else r.score for r in each) for key, each in self.replies.items()}
        return {**said, **self.guesses}

    @cached_property
    def subject_scores(self) -> list[Score]:
        """What the tuned model reached as it is asked in earnest: on the real images, or by text alone."""
        return [score for score in self.scores["subject-real"] if score is not None]

    @cached_property
    def by_way(self) -> dict[Way, list[Score | None]]:
        """The same for each way to ask, in the order of the samples."""
        real = {way: each["real"] for way, each in self.ways.items()}
        return {way: [None if one is None else one.score for one in each] for way, each in real.items()}


def gather(
    samples: Sequence[Sample], replies: Iterable[Reply], learned: Baselines, frame: Callable[[Sample], Frame],
    ways: Sequence[Way] = ("ground",),
) -> Evidence:  # fmt: skip
    """Orders replies by model, way and condition, and guesses for the same samples.

    A sample that could not be asked under every condition (its image is missing) is left out of all, so that every row
    of the report is about the same samples. One without an image is in those rows that are not about images. Raises
    InputError: two samples have one id, so that nobody could say whose a reply is.
    """
    if twice := [name for name, times in Counter(sample.id for sample in samples).items() if times > 1]:
        raise InputError(f"{len(twice)} ids stand for several samples each, as {twice[0]!r}; ids have to be unique")
    said: dict[tuple[str, Way], dict[str, Reply]] = defaultdict(dict)
    drawn: dict[Way, dict[str, list[Reply]]] = defaultdict(lambda: defaultdict(list))
    changed: dict[Probe, dict[str, Reply]] = defaultdict(dict)
    for reply in replies:
        if reply.probe is not None:
            changed[reply.probe][reply.score.sample] = reply
        elif reply.draw:
            drawn[reply.way][reply.score.sample].append(reply)
        else:
            said[reply.key, reply.way][reply.score.sample] = reply
    kept = tuple(
        sample
        for sample in samples
        if all(sample.id in each for (key, _), each in said.items() if sample.image or key.endswith("-real"))
    )

    def ordered(key: str, way: Way) -> tuple[Reply | None, ...]:
        return tuple(said[key, way].get(sample.id) for sample in kept)

    return Evidence(
        kept, {key: ordered(key, ways[0]) for key in RESULTS if (key, ways[0]) in said}, guesses(kept, learned, frame),
        learned, left_out=len(samples) - len(kept), frame=frame,
        ways={
            way: {c: ordered(f"subject-{c}", way) for c in CONDITIONS if (f"subject-{c}", way) in said} for way in ways
        },
        draws={way: tuple(tuple(drawn[way][sample.id]) for sample in kept) for way in ways if way in drawn},
        probes={p: tuple(changed[p].get(sample.id) for sample in kept) for p in PROBES if p in changed},
    )  # fmt: skip


# --- the report --------------------------------------------------------------------------------------------


def build(
    evidence: Evidence, *, split: str, seed: int, made_with: Mapping[str, Any],
    seconds: Mapping[Way, float] | None = None, can_score: bool = True, measures: Collection[str] = USUAL,
    suites: Sequence[Mapping[str, Any]] = (), stored: Mapping[str, int] | None = None,
    credibility: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The report, ready for JSON.

    Args:
        seconds: of a reply by way, of the subject to real images, where any was not taken from the cache.
        can_score: the subject says how likely it finds a given answer.
        measures: ways of choosing among several replies (vcot.evaluation.voting).
        suites: tables of benchmarks (vcot.evaluation.suites.tables).
        stored: split → rows, of all samples that could have been evaluated.
    """
    pairs = [pair for pair in PAIRS.values() if all(one in evidence.replies for one in pair)]
    measured = measure(evidence.scores, pairs, seed=seed)
    true = [sample.true_boxes for sample in evidence.samples]
    tuned = "base-real" in evidence.replies
    report: dict[str, Any] = {
        "version": 1,
        "samples": {
            "split": split,
            "rows": len(evidence.samples),
            "images": len({sample.image.sha256 for sample in evidence.samples if sample.image}),
            "by_text": sum(sample.image is None for sample in evidence.samples),
            "boxes": sum(len(boxes) for boxes in true if boxes is not None),
            "annotated": sum(boxes is not None for boxes in true),
            "absent": sum(boxes == () for boxes in true),
            "left_out": evidence.left_out,
            "training_rows": evidence.learned.rows,
            "stored": dict(stored or {}),
        },
        "results": [
            _row(key, RESULTS, measured.figures[key], tuned)
            | {"cut_off": sum(one is not None and one.completion.finish_reason == "length" for one in replies)}
            | (_same_as_real(evidence, key) if key.endswith("-blank") else {})
            for key, replies in evidence.replies.items()
        ],
        "guesses": [_row(key, GUESSES, measured.figures[key]) for key in evidence.guesses],
        "differences": [_row(key, DIFFERENCES, figures, tuned) for key, figures in _differences(measured).items()],
        "groups": list(_groups(evidence, pairs, seed, with_things=not suites)),
        "boxes_asked": (boxes := next(iter(evidence.ways)) in BOXED),
        "failures": failures(evidence.subject_scores, boxes=boxes, seed=seed),
        "probes": probes(evidence.samples, evidence.probes, evidence.replies["subject-real"], seed),
        "ways": _ways(evidence, seconds or {}, seed),
        "suites": list(suites),
        "credibility": None if credibility is None else dict(credibility),
        "made_with": dict(made_with),
    }
    greedy = {way: evidence.ways[way]["real"] for way in evidence.draws}
    report["selection"], report["calibration"] = selection(
        evidence.samples, evidence.draws, greedy, can_score=can_score, seed=seed, measures=measures
    )
    report["diversity"] = diversity.of_draws(
        evidence.samples, evidence.draws, evidence.frame, _metadata(evidence.samples), seed=seed
    )
    report["verdict"] = summarise(report)
    return report


def _same_as_real(evidence: Evidence, blank: str) -> dict[str, int]:
    """To how many of the rows that were asked with a blank image the reply is the same, word for word, with the real
    one; of those with any reply."""
    real = evidence.replies[blank.replace("-blank", "-real")]
    said = [
        (one.completion.text.strip(), other.completion.text.strip())
        for one, other in zip(real, evidence.replies[blank], strict=True)
        if one is not None and other is not None
    ]
    return {"same_as_real": sum(a == b != "" for a, b in said), "compared": sum(a != "" or b != "" for a, b in said)}


def _ways(evidence: Evidence, seconds: Mapping[Way, float], seed: int) -> list[dict[str, Any]]:
    """One row for each way to ask: figures, what the other conditions give, the differences from the first way on the
    same questions, and what a reply cost."""
    scores = {
        f"{way} {condition}": [None if reply is None else reply.score for reply in replies]
        for way, each in evidence.ways.items()
        for condition, replies in each.items()
    }
    first = next(iter(evidence.ways))
    measured = measure(scores, [(f"{way} real", f"{first} real") for way in evidence.ways if way != first], seed=seed)
    rows = []
    for way, conditions in evidence.ways.items():
        said = [reply.completion for reply in conditions["real"] if reply is not None]
        change = measured.differences.get((f"{way} real", f"{first} real"), {})
        rows.append(
            {
                "way": way,
                "meaning": WAYS_MEAN[way],
                "figures": _json(measured.figures[f"{way} real"], SHOWN_OF_WAY),
                "conditions": {
                    c: _json(measured.figures[f"{way} {c}"], JUDGED) for c in conditions if c != "real"
                },
                "difference": _json(change, SHOWN_OF_WAY),
                "replies": len(said),
                "tokens_in": round(sum(c.tokens_in for c in said) / max(len(said), 1), 2),
                "tokens_out": round(sum(c.tokens_out for c in said) / max(len(said), 1), 2),
                "cut_off": sum(c.finish_reason == "length" for c in said),
                "seconds": round(seconds[way], 4) if way in seconds else None,
            }
        )  # fmt: skip
    return rows


def _row(key: str, rows: Mapping[str, Row], figures: Mapping[str, Figure], tuned: bool = True) -> dict[str, Any]:
    name, meaning, shown = rows[key]
    if not tuned:  # nothing came before
        name = name.replace("after tuning", "the model").removeprefix("after, ")
        meaning = meaning.replace("The tuned model", "The model").replace("the tuned model", "the model")
        meaning = meaning.replace("asked the same about the same images", "asked about the real images")
    return {"key": key, "name": name, "meaning": meaning, "figures": _json(figures, shown)}


def _json(figures: Mapping[str, Figure], shown: Sequence[str]) -> dict[str, Any]:
    return {name: figure.to_dict() for name, figure in figures.items() if name in shown}


def _differences(measured: Measured) -> dict[str, dict[str, Figure]]:
    """The differences of PAIRS by their keys; "after-before" is, figure by figure, from the better base."""
    found = {key: dict(measured.differences[pair]) for key, pair in PAIRS.items() if pair in measured.differences}
    for name, figure in found.pop("after-native", {}).items():
        if better_base({key: measured.figures[key][name].value for key in BASES}, name) == "native-real":
            found["after-before"][name] = figure
    return found


def _groups(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], seed: int, *, with_things: bool = True
) -> Iterator[dict[str, Any]]:
    """The same measurement for each question, each thing that is asked about, and what else rows bring (metadata).

    A group has a `question`, a `thing`, a `metadata` ("camera: north"), or several, where they are the same rows.
    with_things: without it, as for the many categories of a benchmark, there are no groups of things.
    """
    samples = evidence.samples
    questions = [sample.question for sample in samples]
    if len(set(questions)) > MOST_GROUPS:  # then how they begin: "how many …"
        questions = [" ".join(question.casefold().split()[:2]) + " …" for question in questions]
    kinds = [("question", questions)]
    if with_things:
        kinds.append(("thing", [subject(sample, evidence.learned.labels) for sample in samples]))
    kinds += [("metadata", [f"{name}: {value}" for value in said]) for name, said in _metadata(samples).items()]
    groups: dict[tuple[int, ...], dict[str, Any]] = {}
    for kind, names in kinds:
        for name, chosen in _parts(names):
            groups.setdefault(chosen, {"question": None, "thing": None, "metadata": None})[kind] = name
    for chosen, group in groups.items():
        yield group | _group(evidence, chosen, pairs, seed)


def _metadata(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Name → its value for each sample, of those that part them into a few groups."""
    names = sorted({name for sample in samples for name in sample.metadata})
    found = {name: [str(sample.metadata.get(name, "–")) for sample in samples] for name in names}
    return {name: said for name, said in found.items() if 1 < len(set(said)) <= MOST_GROUPS}


def _parts(names: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and the rows that have them, most frequent first; rare ones together."""
    sizes = Counter(names)
    kept = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_GROUPS]
    for name in kept:
        yield name, tuple(index for index, each in enumerate(names) if each == name)
    if len(sizes) > len(kept):
        yield f"{len(sizes) - len(kept)} others", tuple(i for i, each in enumerate(names) if each not in kept)


def _group(
    evidence: Evidence, chosen: Sequence[int], pairs: Sequence[tuple[str, str]], seed: int
) -> dict[str, Any]:  # fmt: skip
    scores = {key: [each[index] for index in chosen] for key, each in evidence.scores.items()}
    against_guesses = [("subject-real", guess) for guess in evidence.guesses]
    measured = measure(scores, [*pairs, *against_guesses], seed=seed)
    figures, against = measured.figures, {}
    for name in JUDGED:
        able = [guess for guess in evidence.guesses if name in GUESSES[guess].figures]
        if able and figures["subject-real"][name].value is not None:
            # The one that does best on these rows is the one that a model must beat.
            best = max(able, key=lambda guess: (figures[guess][name].value or 0.0, guess))
            difference = measured.differences["subject-real", best][name].to_dict()
            against[name] = {"guess": best, "its": figures[best][name].to_dict(), "difference": difference}
    ways: dict[str, Sequence[Score | None]] = {
        way: [each[index] for index in chosen] for way, each in evidence.by_way.items()
    }
    by_way = measure(ways, (), seed=seed).figures if len(ways) > 1 else {}
    return {
        "rows": len(chosen),
        "results": {key: _json(figures[key], SHOWN_OF_GROUP) for key in evidence.replies},
        "ways": {way: _json(each, SHOWN_OF_WAY) for way, each in by_way.items()},
        "differences": {key: _json(each, JUDGED) for key, each in _differences(measured).items()},
        "against_guess": against,
    }


# --- reading a report --------------------------------------------------------------------------------------


def figures_of(report: Mapping[str, Any], part: str) -> dict[str, Mapping[str, Any]]:
    """Key of a row → its figures, of `results`, `guesses` or `differences`."""
    return {row["key"]: row["figures"] for row in report[part]}


def judged(figures: Mapping[str, Any]) -> str:
    """By which of JUDGED a row is judged: by the boxes where there are true ones, else by the answers."""
    return next((name for name in JUDGED if figures[name]["value"] is not None), JUDGED[-1])


def better_base(values: Mapping[str, float | None], name: str) -> str:
    """Under which of BASES the base does better by a figure: "before tuning" is that one, figure by figure."""
    measured = [key for key in BASES if values.get(key) is not None]
    if not measured:
        return next(key for key in BASES if key in values)
    return (min if METRICS[name].low_is_good else max)(measured, key=lambda key: values[key] or 0.0)


def before(results: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """The figure of the better base; None where nothing was tuned. `results`: key of a row → its figures."""
    if not any(key in results for key in BASES):
        return None
    return results[better_base({key: results[key][name]["value"] for key in BASES if key in results}, name)][name]


_FIGURES: tuple[Mapping[str, Metric[Any]], ...] = (METRICS, diversity.FIGURES, tables.METRICS)


def number(name: str, value: float, *, rows: int, signed: bool = False) -> str:
    """A figure's value: "76 %", "0.58"; with a sign for differences: "+70 points", "−0.05"."""
    decimal = next(known[name].decimal for known in _FIGURES if name in known)
    digits = 2 if decimal else 1 if rows >= 1000 else 0
    size = round(value if decimal else 100 * value, digits)
    unit = "" if decimal else " points" if signed else " %"
    sign = "−" if size < 0 else "+" if signed and size else ""
    return f"{sign}{abs(size):.{digits}f}{unit}"


def value(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """The figure's value, or a dash where there was nothing to measure."""
    return "–" if figure["value"] is None else number(name, figure["value"], rows=figure["rows"], signed=signed)


def interval(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """The 95 % interval: "62–88", "0.44–0.58", for differences "58 to 82"; empty where there is none."""
    if figure["value"] is None or figure["low"] is None:
        return ""
    ends = (number(name, figure[end], rows=figure["rows"]).removesuffix(" %") for end in ("low", "high"))
    return (" to " if signed else "–").join(ends)


def both(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """ "76 % (62–88)"."""
    around = interval(name, figure, signed=signed)
    return value(name, figure, signed=signed) + (f" ({around})" if around else "")


def guess_name(key: str) -> str:
    """ "average box"."""
    return GUESSES[key].name.removeprefix("guess: ")


# --- the summary in sentences ------------------------------------------------------------------------------


def summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize the report in sentences, each with its numbers.

    Returns:
        headline: the main result in one sentence.
        can: continues "It can …": clearly better than guessing and than blank images, and right more often than not.
        cannot: continues "It cannot …".
        unclear: continues "Too few rows to tell whether it can …": fewer than FEW rows, which show neither.
        notes: what a reader must know to read the numbers correctly.
    """
    summary: dict[str, list[str]] = {"can": [], "cannot": [], "unclear": []}
    for group in () if report["suites"] else report["groups"]:  # of a benchmark they would be a list of categories
        if group["thing"] is not None:
            _of_pointing(group, summary)
        if group["question"] is not None:
            _of_answers(group, summary)
    if len(summary["unclear"]) > MOST_UNCLEAR:
        count = len(summary["unclear"])
        summary["unclear"] = [f"do {count} of the things that were asked for: each has fewer than {FEW} rows."]
    _compare_with_blank_images(report, summary)
    differences = figures_of(report, "differences")
    summary["cannot"] += [
        f"do as well as before it was tuned: {METRICS[name].label} {both(name, change, signed=True)}."
        for name in JUDGED
        if "after-before" in differences
        and (change := differences["after-before"][name])["high"] is not None
        and change["high"] < 0
    ]
    return {"headline": _headline(report), **summary, "notes": list(_notes(report))}


_LOOKS_BY = {
    "accuracy_at_50": ("its boxes", "find true boxes", "draw its boxes from what the image shows"),
    "answer_accuracy": ("its answers", "are right", "answer from what the image shows"),
}
"""Name of a figure → subject, predicate and skill in sentences about blank images."""


def _compare_with_blank_images(report: Mapping[str, Any], summary: Mapping[str, list[str]]) -> None:
    """Add sentences that say whether boxes and answers depend on the image: blank images, else those of other rows."""
    same: Mapping[str, Any] = next((row for row in report["results"] if row["key"] == "subject-blank"), {})
    if same.get("compared") and same["same_as_real"] >= NEARLY_ALL * same["compared"]:
        summary["cannot"].append(
            f"be shown to look: it gives the same reply to a blank image in {same['same_as_real']:,} of "
            f"{same['compared']:,} rows; an endpoint whose server drops images does so, too."
        )
    differences = figures_of(report, "differences")
    key, images = next(((k, i) for k, i in _WITHOUT_THE_IMAGE.items() if k in differences), ("", ""))
    if not key:
        return
    changes = {name: each for name in JUDGED if (each := differences[key][name])["value"] is not None}
    shown = [name for name in changes if _above_zero(changes[name])]
    for name in changes if shown else ():
        who, does, skill = _LOOKS_BY[name]
        change = both(name, changes[name], signed=True)
        if name in shown:
            summary["can"].append(f"{skill}: {who} {does} more often on real images than on {images} ones ({change}).")
        else:
            where = "unclear" if _is_open(changes[name]) else "cannot"
            summary[where].append(
                f"{skill}: {who} do not {does.replace('are right', 'come out right')} more often on real images than "
                f"on {images} ones ({change}), although {_LOOKS_BY[shown[0]][0]} do."
            )
    if changes and not shown:
        figures = "; ".join(f"{METRICS[name].label} {both(name, each, signed=True)}" for name, each in changes.items())
        if all(map(_is_open, changes.values())):
            rows = plural(max(each["rows"] for each in changes.values()), "row")
            summary["unclear"].append(
                f"look: {rows} show no clear difference between real and {images} images ({figures})."
            )
        else:
            summary["cannot"].append(
                f"be shown to look: it is not shown to be better on real images than on {images} ones ({figures})."
            )


_WITHOUT_THE_IMAGE = {"real-blank": "blank", "real-wrong": "wrong"}
"""Difference → the images that the model saw in place of the real ones, in the order of preference."""


def _headline(report: Mapping[str, Any]) -> str:
    results = figures_of(report, "results")
    name = judged(results["subject-real"])
    now = results["subject-real"][name]
    what = f"finds {_of(now)} true boxes" if name == "accuracy_at_50" else f"answers {_of(now)} questions as accepted"
    then = before(results, name)
    sentence = f"{'The' if then is None else 'After tuning the'} model {what} ({_share(name, now)})"
    if then is not None:
        sentence += f"; before, it was {_of(then)}"
    if "subject-blank" in results:
        sentence += f", and on blank images it is {_of(results['subject-blank'][name])}"
    return sentence + "."


def _of_pointing(group: Mapping[str, Any], summary: Mapping[str, list[str]]) -> None:
    name, after = group["thing"], group["results"]["subject-real"]
    alarms, figure, precision = after["boxes_where_absent"], after["accuracy_at_50"], after["precision"]
    if alarms["rows"] and alarms["value"] > 0.1:
        summary["cannot"].append(
            f"say that there is no “{name}” where there is none: it draws a box all the same, {_of(alarms)} times"
            f" ({both('boxes_where_absent', alarms)}){_few(alarms)}."
        )
    against = group["against_guess"].get("accuracy_at_50")
    if name == NOT_ANNOTATED or against is None:
        return
    guess = f"the best guess ({guess_name(against['guess'])})"
    result = f"point at “{name}”: it finds {_of(figure)}"
    is_skill = _weigh(group, "accuracy_at_50", result, guess, "misses most", summary)
    if is_skill and (missed := round(figure["count"] * (1 - figure["value"]))):
        summary["cannot"].append(f"find every “{name}”: it misses {missed:,} of {figure['count']:,.0f}.")
    if precision["value"] is not None and precision["value"] < 0.5 <= figure["value"]:
        summary["cannot"].append(
            f"stop in time when it points at “{name}”: only {_of(precision)} of its boxes are right"
            f" ({_share('precision', precision)})."
        )


def _of_answers(group: Mapping[str, Any], summary: Mapping[str, list[str]]) -> None:
    if "answer_accuracy" in group["against_guess"]:
        result = f"answer “{group['question']}”: {_of(group['results']['subject-real']['answer_accuracy'])} right"
        _weigh(group, "answer_accuracy", result, "the usual answer", "wrong most of the time", summary)


def _weigh(
    group: Mapping[str, Any], name: str, result: str, guess: str, still: str, summary: Mapping[str, list[str]]
) -> bool:
    """Return whether a figure shows a skill; add its sentence, with the reason, to the list where it belongs."""
    figure, against = group["results"]["subject-real"][name], group["against_guess"][name]
    blank = group["differences"].get("real-blank")
    result += f" ({_share(name, figure)}){_few(figure)}, {guess} {value(name, against['its'])}."
    doubt, where = "", "cannot"
    if not _above_zero(against["difference"]):
        doubt = " That is not shown to be better than guessing."
        where = "unclear" if _is_open(against["difference"]) else "cannot"
    elif blank is not None and blank[name]["value"] is not None and not _above_zero(blank[name]):
        seen = value(name, group["results"]["subject-blank"][name])
        doubt = f" On blank images it is {seen}: not shown to come from looking."
        where = "unclear" if _is_open(blank[name]) else "cannot"
    elif figure["value"] < 0.5:
        doubt = f" That is better than guessing, and still {still}."
    summary[where if doubt else "can"].append(result + doubt)
    return not doubt


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    """What must be known to read the numbers rightly."""
    results, samples = figures_of(report, "results"), report["samples"]
    if "native-real" in results:
        yield (
            "The base was asked twice, in the tuned model's form and in its own; before tuning means, figure by "
            "figure, the better of the two."
        )
    yield from (_of_form(key, results[key]) for key in BASES if key in results)
    questions = [f"“{group['question']}”" for group in report["groups"] if group["question"] is not None]
    asked = [f"the rows of {suite['suite']}" for suite in report["suites"]] or questions
    yield f"What was asked: {', '.join(asked)}. What the model does with anything else is not known."
    if samples["annotated"] < samples["rows"]:
        yield (
            f"{samples['rows'] - samples['annotated']:,} of {samples['rows']:,} rows have no annotated boxes;"
            " they count for answers and not for boxes."
        )
    if samples["by_text"]:
        yield (
            f"{samples['by_text']:,} of {samples['rows']:,} rows are asked by text alone;"
            " they count on real images, and not on blank and wrong ones."
        )
    if samples["left_out"]:
        yield f"{plural(samples['left_out'], 'row')} left out: the image could not be read."
    yield from split_notes(samples["split"], samples.get("stored", {}))
    if not samples["training_rows"]:
        yield "No training split was found, so the guesses that learn from it are missing."
    yield from verdict(report.get("probes", ()))
    cut_off = {row["key"]: row["cut_off"] for row in report["results"]}
    after = "after tuning" if "base-real" in results else "of the model"
    for key, when in (("subject-real", after), ("native-real", "of the base in its own form")):
        if cut := cut_off.get(key):
            limit = report["made_with"]["max_new_tokens"]
            yield f"{plural(cut, 'reply', 'replies')} {when} did not end within {limit} tokens."


def split_notes(split: str, stored: Mapping[str, int]) -> Iterator[str]:
    """Yield what a reader must know of the evaluated split: that it is tiny, or that guesses learn from its rows.

    Args:
        stored: split → rows, of all samples that could have been evaluated.
    """
    rows, total = stored.get(split, 0), sum(stored.values())
    if 0 < rows < FEW and rows < SMALL_SHARE * total:
        yield (
            f"Only {plural(rows, 'row')} of {total:,} are of the {split} split, and only these are evaluated. To "
            "evaluate all rows of a file of your own, convert it with --split test."
        )
    if split == "train" and rows:
        yield (
            "The average box and the usual answer are learned from the evaluated rows themselves, so both guesses look "
            "better than they are. Convert rows to measure with by --split test."
        )


def _of_form(key: str, figures: Mapping[str, Any]) -> str:
    """A base that does not know the form is judged by it all the same; the reader must know how much of it that is."""
    bad, mute, none = figures["malformed"], figures["answer_absent"], figures["no_box"]
    said = f"{_of(bad)} replies have a tag or box that cannot be read, {_of(mute)} come to no answer"
    if none["rows"]:
        said += f", and {_of(none)} show no box where there is something to point at"
    parsed = figures["mean_iou_parsed"]
    over = "no reply with something to point at kept the form"
    if parsed["value"] is not None:
        kept = plural(parsed["rows"], "reply", "replies")
        over = f"over the {kept} that keep the form, mean IoU is {value('mean_iou_parsed', parsed)}"
    failure = " is partly a failure of form" if max(bad["value"] or 0, mute["value"] or 0) > 0.1 else ""
    name = RESULTS[key].name
    return f"“{name[0].upper()}{name[1:]}”{failure}: {said}; {over}."


def _of(figure: Mapping[str, Any]) -> str:
    return f"{(figure['value'] or 0) * figure['count']:,.0f} of {figure['count']:,.0f}"


def _share(name: str, figure: Mapping[str, Any]) -> str:
    """ "76 %, 62–88"."""
    around = interval(name, figure)
    return value(name, figure) + (f", {around}" if around else "")


def _above_zero(difference: Mapping[str, Any]) -> bool:
    return difference["low"] is not None and difference["low"] > 0


def _is_open(difference: Mapping[str, Any]) -> bool:
    """Return True if fewer than FEW rows were measured and they show no difference, neither up nor down."""
    is_settled = difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
    return difference["rows"] < FEW and not is_settled


def _few(figure: Mapping[str, Any]) -> str:
    return f" (only {plural(figure['rows'], 'row')})" if figure["rows"] < FEW else ""
