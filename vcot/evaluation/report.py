"""From replies to what ``report.json`` holds: figures, differences, groups, and a verdict in words.

Everything a reader sees (the page, the table) is made from this dictionary, so that no number exists twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vcot.errors import InputError
from vcot.evaluation import words
from vcot.evaluation.baselines import Baselines, guesses, subject
from vcot.evaluation.metrics import Figure, Measured, measure, point
from vcot.evaluation.runner import Reply
from vcot.evaluation.verdict import judge
from vcot.grounding import Frame
from vcot.records import Sample, Score

MOST_GROUPS = 12
JUDGED = ("accuracy_at_50", "answer_accuracy")
SHOWN_OF_GROUP = ("accuracy_at_50", "mean_iou", "precision", "answer_accuracy", "boxes_where_absent")
PAIRS = {
    "after-before": ("tuned-real", "base-real"),
    "after-native": ("tuned-real", "native-real"),
    "real-blank": ("tuned-real", "tuned-blank"),
    "real-wrong": ("tuned-real", "tuned-shuffled"),
    "base-real-blank": ("base-real", "base-blank"),
}


@dataclass(frozen=True)
class Evidence:
    """What the report is made of: samples with a reply from every model under every condition, in order.

    A reply is None where a question by text alone was not asked, because its condition is about images.
    """

    samples: tuple[Sample, ...]
    replies: dict[str, tuple[Reply | None, ...]]
    guesses: dict[str, tuple[Score, ...]]
    habits: Baselines
    left_out: int

    @property
    def scores(self) -> dict[str, tuple[Score | None, ...]]:
        said = {
            key: tuple(None if reply is None else reply.score for reply in replies)
            for key, replies in self.replies.items()
        }
        return {**said, **self.guesses}

    @cached_property
    def tuned(self) -> list[Score]:
        """What the tuned model reached as it is asked in earnest: on the real images, or by text alone."""
        return [reply.score for reply in self.replies["tuned-real"] if reply is not None]


def gather(
    samples: Sequence[Sample], replies: Iterable[Reply], habits: Baselines, frame: Callable[[Sample], Frame]
) -> Evidence:
    """Orders replies by model and condition, and guesses for the same samples.

    A sample that could not be asked under every condition (its image is missing) is left out of all, so that every
    row of the report is about the same samples. One without an image is in those rows that are not about images.

    Raises:
        InputError: two samples have one id, so that nobody could say whose a reply is.
    """
    often = Counter(sample.id for sample in samples)
    if twice := [name for name, times in often.items() if times > 1]:
        raise InputError(f"{len(twice)} ids stand for several samples each, as {twice[0]!r}; ids have to be unique")
    said: dict[str, dict[str, Reply]] = defaultdict(dict)
    for reply in replies:
        said[f"{reply.model}-{reply.condition}"][reply.score.sample] = reply

    def asked(sample: Sample) -> bool:
        return all(sample.id in each for key, each in said.items() if sample.image or key.endswith("-real"))

    kept = tuple(filter(asked, samples))
    ordered = {key: tuple(each.get(sample.id) for sample in kept) for key, each in said.items()}
    keys = [key for key in words.RESULTS if key in ordered]
    return Evidence(
        samples=kept,
        replies={key: ordered[key] for key in keys},
        guesses=guesses(kept, habits, frame),
        habits=habits,
        left_out=len(samples) - len(kept),
    )


def build(evidence: Evidence, *, split: str, seed: int, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """The report, ready for JSON."""
    measured = measure(evidence.scores, _pairs(evidence), seed=seed)
    report: dict[str, Any] = {
        "version": 1,
        "samples": _samples(evidence, split),
        "results": [
            _named(key, words.RESULTS, _dicts(measured.figures[key])) | {"cut_off": _cut_off(evidence.replies[key])}
            for key in evidence.replies
        ],
        "guesses": [_named(key, words.GUESSES, _dicts(measured.figures[key], _meant(key))) for key in evidence.guesses],
        "differences": [_named(key, words.DIFFERENCES, figures) for key, figures in _differences(measured).items()],
        "groups": _groups(evidence, seed),
        "made_with": dict(made_with),
    }
    report["verdict"] = judge(report)
    return report


def _pairs(evidence: Evidence) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS.values() if all(one in evidence.replies for one in pair)]


def _differences(measured: Measured) -> dict[str, dict[str, Any]]:
    """The differences of PAIRS by their keys; "after-before" is, figure by figure, from the better base."""
    found = {key: _dicts(measured.differences[pair]) for key, pair in PAIRS.items() if pair in measured.differences}
    native = found.pop("after-native", None)
    if native is not None:
        for name in native:
            values = {key: measured.figures[key][name].value for key in words.BASES}
            if words.better_base(values, name) == "native-real":
                found["after-before"][name] = native[name]
    return found


def _cut_off(replies: Iterable[Reply | None]) -> int:
    return sum(reply is not None and reply.completion.finish_reason == "length" for reply in replies)


def _samples(evidence: Evidence, split: str) -> dict[str, Any]:
    true = [sample.true_boxes for sample in evidence.samples]
    return {
        "split": split,
        "rows": len(evidence.samples),
        "images": len({sample.image.sha256 for sample in evidence.samples if sample.image}),
        "by_text": sum(sample.image is None for sample in evidence.samples),
        "boxes": sum(len(boxes) for boxes in true if boxes is not None),
        "annotated": sum(boxes is not None for boxes in true),
        "absent": sum(boxes == () for boxes in true),
        "left_out": evidence.left_out,
        "training_rows": evidence.habits.rows,
    }


def _named(key: str, names: Mapping[str, tuple[str, str]], figures: dict[str, Any]) -> dict[str, Any]:
    name, meaning = names[key]
    return {"key": key, "name": name, "meaning": meaning, "figures": figures}


def _dicts(figures: Mapping[str, Figure], only: Sequence[str] | None = None) -> dict[str, Any]:
    return {name: figure.to_dict() for name, figure in figures.items() if only is None or name in only}


def _meant(guess: str) -> Sequence[str]:
    return words.GUESSED_ANSWER if guess == "frequent-answer" else words.GUESSED_BOX


# --- groups ----------------------------------------------------------------------------------------


def _groups(evidence: Evidence, seed: int) -> list[dict[str, Any]]:
    """The same measurement for each question, each thing that is asked about, and what else rows bring (metadata).

    A group has a `question`, a `thing`, a `metadata` ("camera: north"), or several, where they are the same rows.
    """
    groups: dict[tuple[int, ...], dict[str, Any]] = {}
    things = [subject(sample, evidence.habits.labels) for sample in evidence.samples]
    own = [("metadata", names) for names in _metadata(evidence.samples)]
    for kind, names in (("question", _questions(evidence.samples)), ("thing", things), *own):
        for name, chosen in _parts(names):
            group = groups.setdefault(chosen, {"question": None, "thing": None, "metadata": None})
            group[kind] = name
    return [group | _group(evidence, chosen, seed) for chosen, group in groups.items()]


def _parts(names: Sequence[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and the rows that have them, most frequent first; rare ones together."""
    sizes = Counter(names)
    kept = [name for name, _ in sorted(sizes.items(), key=lambda kv: (-kv[1], kv[0]))][:MOST_GROUPS]
    for name in kept:
        yield name, tuple(index for index, each in enumerate(names) if each == name)
    if len(sizes) > len(kept):
        others = f"{len(sizes) - len(kept)} others"
        yield others, tuple(index for index, each in enumerate(names) if each not in kept)


def _questions(samples: Sequence[Sample]) -> list[str]:
    """The question itself where there are few different ones, else how it begins ("how many …")."""
    if len({sample.question for sample in samples}) <= MOST_GROUPS:
        return [sample.question for sample in samples]
    return [" ".join(sample.question.casefold().split()[:2]) + " …" for sample in samples]


def _metadata(samples: Sequence[Sample]) -> Iterator[list[str]]:
    """Of each name that rows bring, what each of them says, where that parts the rows into a few."""
    for name in sorted({name for sample in samples for name in sample.metadata}):
        said = [f"{name}: {sample.metadata.get(name, '–')}" for sample in samples]
        if 1 < len(set(said)) <= MOST_GROUPS:
            yield said


def _group(evidence: Evidence, chosen: Sequence[int], seed: int) -> dict[str, Any]:
    scores = {key: [each[index] for index in chosen] for key, each in evidence.scores.items()}
    guesses = {figure: _best_guess(scores, evidence.guesses, figure) for figure in JUDGED}
    pairs = {("tuned-real", guess) for guess in guesses.values() if guess}
    measured = measure(scores, sorted({*pairs, *_pairs(evidence)}), seed=seed)
    return {
        "rows": len(chosen),
        "results": {key: _dicts(measured.figures[key], SHOWN_OF_GROUP) for key in evidence.replies},
        "differences": {
            key: {name: figures[name] for name in JUDGED} for key, figures in _differences(measured).items()
        },
        "against_guess": {
            figure: {
                "guess": guess,
                "its": measured.figures[guess][figure].to_dict(),
                "difference": measured.differences["tuned-real", guess][figure].to_dict(),
            }
            for figure, guess in guesses.items()
            if guess is not None and measured.figures["tuned-real"][figure].value is not None
        },
    }


def _best_guess(scores: Mapping[str, Sequence[Score | None]], names: Iterable[str], figure: str) -> str | None:
    """The guess that does best on these rows: the one a model must beat."""
    values = {name: point(figure, scores[name]) or 0.0 for name in names if figure in _meant(name)}
    return max(values, key=lambda name: (values[name], name), default=None)
