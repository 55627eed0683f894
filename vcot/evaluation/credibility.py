"""Check whether an evaluation can be believed: replies without a usable answer, and endpoints that are not what they
seem.

A server that moves the text into another field, cuts it off, refuses it or answers with another model makes a good
model look bad. Each of these is counted and named with its cause. Above a share it is an error
(`--max-unusable-share`).

    never answered    every try failed
    refused           a content filter or the model refused
    empty             no text where text is read
    cut off           it ended before it came to an answer
    unreadable        it has text, and no answer could be read
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vcot.evaluation.config import BOXED, Condition, Way
from vcot.evaluation.metrics import is_unreadable
from vcot.evaluation.runner import Reply
from vcot.grounding import FrameSpec
from vcot.grounding.frames_fit import NotationComparison, NumberedRow, compare_notations
from vcot.grounding.tags import numbers_of
from vcot.records import Completion, Sample
from vcot.reports.rendering import plural, share

UNUSABLE = ("never answered", "refused", "empty", "cut off", "unreadable")
"""Kinds of replies without a usable answer, in the order in which they are looked for."""
NOTABLE = 0.05
"""Share of the replies from which on a peculiarity that leaves the answer usable is named."""
COMPARED_ROWS = 500
"""Rows whose boxes are compared with the annotated ones in every notation: enough to tell notations apart."""
REPEATS = 5
"""Times that a reply has the same sentence before it counts as repeating itself."""
BYTES_PER_TOKEN = 24
"""More than tokens of prose have on average in any common vocabulary."""

_FIELDS = {
    "reasoning_content": "start vLLM or SGLang without --reasoning-parser, llama.cpp with --reasoning-format none",
    "reasoning": "start vLLM or SGLang without --reasoning-parser, llama.cpp with --reasoning-format none",
    "tool_calls": "start vLLM without --enable-auto-tool-choice and --tool-call-parser",
    "function_call": "start the server without a parser of tool calls",
    "refusal": "the model or a filter of its provider refused",
}
"""Field of a message that a reply's text is in instead of `content` → what the user can do."""
_REFUSED = ("content_filter", "refusal")
_OPEN_END = re.compile(r"<[^<>]*>[^<>]*\Z|<[^<>]*\Z")
_CLOSED_END = re.compile(r"</[^<>]*>[^<>]*\Z")
_PLAIN_BOX = re.compile(r"[\[(]\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3}\s*[\])]")
_SENTENCES = re.compile(r"(?<=[.!?])\s*|\n+")
_THINKING = re.compile(r"</think>", re.IGNORECASE)


def unusable_kind(reply: Reply) -> str | None:
    """Return which of UNUSABLE a reply is; None if it states an answer, or boxes where boxes are annotated."""
    completion = reply.completion
    if completion.finish_reason == "unanswered":
        return "never answered"
    if completion.finish_reason in _REFUSED:
        return "refused"
    if not completion.text.strip():
        return "empty"
    if not is_unreadable(reply.score):
        return None
    if is_cut_off(completion):
        return "cut off"
    return None if reply.score.true_boxes and reply.score.predicted_boxes else "unreadable"


def is_cut_off(completion: Completion) -> bool:
    """Return whether a reply ended at the token limit, or within a tag whatever its server reports."""
    text = completion.text
    ends_within_tag = _OPEN_END.search(text) is not None and _CLOSED_END.search(text) is None
    return completion.finish_reason == "length" or ends_within_tag


def logprobs_fit(completion: Completion) -> bool:
    """Return False if there are too few log-probabilities for the text, or more than it has bytes."""
    if completion.logprobs is None:
        return True
    size, values = len(completion.text.encode()), len(completion.logprobs)
    return size <= BYTES_PER_TOKEN * values and values <= size + 8  # control tokens are no part of the text


def assess(
    samples: Sequence[Sample], ways: Mapping[Way, Mapping[Condition, Sequence[Reply | None]]], *, frame: FrameSpec,
    sent: Mapping[str, tuple[int, int]] | None = None, requested: str | None = None, max_new_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what ``report.json`` holds about the credibility of the greedy replies.

    Args:
        samples: in the order of the replies.
        ways: way → condition → replies of the evaluated model; the first way is the one that counts.
        frame: declared for the boxes of the model.
        sent: sample id → (width, height) of its first image as it was sent.
        requested: name of the model that the endpoint was asked for; None: local weights.
        max_new_tokens: limit of a reply, for messages.
    """
    rows = [
        _row(way, condition, [reply for reply in replies if reply is not None])
        for way, conditions in ways.items()
        for condition, replies in conditions.items()
    ]
    way, conditions = next(iter(ways.items()))
    pairs = [(sample, reply) for sample, reply in zip(samples, conditions["real"], strict=True) if reply is not None]
    replies = [reply for _, reply in pairs]
    notation = _fit(pairs, frame, sent or {}) if way in BOXED else None
    models = Counter(
        reply.completion.model
        for conditions in ways.values() for each in conditions.values() for reply in each
        if reply is not None and reply.completion.text
    )  # fmt: skip
    causes = list(_causes(replies, max_new_tokens))
    warnings = [
        *causes,
        *_condition_warnings(rows[1:]),
        *_text_warnings(replies),
        *(_box_warnings(pairs) if way in BOXED else ()),
        *_model_warnings(models, requested),
    ]
    if notation is not None and notation.contradicts:
        warnings.append(
            f"The boxes fit the annotated ones in another notation: {notation}. The figures stay as declared; if the "
            "model writes these numbers, declare them (--subject-frame, --native-form) and evaluate again."
        )
    first = _real_images(rows)
    return {
        "unusable_share": round(sum(first["unusable"].values()) / max(first["replies"], 1), 6),
        "rows": rows,
        "models": dict(models.most_common()) if requested is not None else {},
        "notation": None if notation is None else str(notation),
        "causes": causes,
        "warnings": warnings,
    }


def gates(credibility: Mapping[str, Any], max_unusable_share: float) -> Iterator[dict[str, Any]]:
    """Yield a failed gate for each reason not to believe the figures, in the form of `gates.judge_gates`."""
    first = _real_images(credibility["rows"])
    if credibility["unusable_share"] > max_unusable_share:
        words = (
            f"{sum(first['unusable'].values()):,} of {plural(first['replies'], 'reply', 'replies')} cannot be used "
            f"({credibility['unusable_share']:.1%}, --max-unusable-share allows {max_unusable_share:g}): "
            f"{' '.join(credibility['causes'])} Then evaluate into another --run-uri: good replies are cached, and "
            "empty ones are requested again"
        )
        yield {"gate": "replies can be used", "passed": False, "words": words}
    if len(credibility["models"]) > 1:
        names = _named(credibility["models"])
        words = f"one model answers: the endpoint answered with {names}; no figure belongs to one of them"
        yield {"gate": "one model answers", "passed": False, "words": words}


def _real_images(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row that counts: the real images, asked in the first way."""
    return next(row for row in rows if row["condition"] == "real")


def _row(way: Way, condition: Condition, replies: Sequence[Reply]) -> dict[str, Any]:
    kinds = Counter(kind for reply in replies if (kind := unusable_kind(reply)) is not None)
    return {
        "way": way,
        "condition": condition,
        "replies": len(replies),
        "unusable": {kind: kinds[kind] for kind in UNUSABLE if kinds[kind]},
        "finish_reasons": dict(Counter(r.completion.finish_reason or "none" for r in replies).most_common()),
    }


def _fit(
    pairs: Sequence[tuple[Sample, Reply]], frame: FrameSpec, sent: Mapping[str, tuple[int, int]]
) -> NotationComparison | None:
    """Return how well the first boxes of replies fit in other notations than the declared one.

    Returns None if no row has boxes to compare.
    """
    rows = [
        NumberedRow(
            numbers_of(reply.completion.text)[: len(boxes)], boxes, (image.width, image.height), sent.get(sample.id)
        )
        for sample, reply in pairs
        if (image := sample.image) is not None and (boxes := sample.true_boxes)
    ]
    found = compare_notations(rows[:COMPARED_ROWS], frame)
    return found if found.boxes else None


# --- sentences ---------------------------------------------------------------------------------------------


def _causes(replies: Sequence[Reply], limit: int) -> Iterator[str]:
    """Yield a sentence for each kind of unusable replies, with its cause and what to do."""
    by_kind: dict[str | None, list[Reply]] = {}
    for reply in replies:
        by_kind.setdefault(unusable_kind(reply), []).append(reply)
    for kind in UNUSABLE:
        if of := by_kind.get(kind):
            verb = "is" if len(replies) == 1 else "are" if kind != "never answered" else "were"
            yield f"{_of(of, replies)} {verb} {kind}{_cause(kind, of, limit)}."


def _condition_warnings(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each further way and condition in which many replies cannot be used."""
    for row in rows:
        unusable = sum(row["unusable"].values())
        if unusable > NOTABLE * row["replies"]:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["unusable"].items())
            yield (
                f"Asked by way of {row['way']} about {row['condition']} images, {unusable:,} of "
                f"{plural(row['replies'], 'reply', 'replies')} cannot be used ({kinds}); they count as misses."
            )


def _cause(kind: str, replies: Sequence[Reply], limit: int) -> str:
    """Return what a kind of unusable replies most likely comes from, beginning with a colon; empty if unknown."""
    fields = Counter(name for reply in replies for name in reply.completion.other_fields)
    if fields and kind in ("empty", "refused"):
        name, _ = fields.most_common(1)[0]
        return f": their text is in message.{name}, which is not evaluated; {_FIELDS.get(name, 'see the server')}"
    if kind == "cut off":
        if any(reply.completion.finish_reason == "length" for reply in replies):
            return f": they reached the limit; raise --max-new-tokens ({limit:,})"
        return ", although their finish_reason is not length: the server has a limit or a stop string of its own"
    if kind == "refused":
        reasons = ", ".join(sorted({reply.completion.finish_reason for reply in replies}))
        return f" (finish_reason {reasons}): the endpoint refuses these questions or images"
    if kind == "unreadable":
        return ": no final answer was recognized; --subject-instruction sets what the model is asked to write"
    return {
        "never answered": ": every try failed; see the log",
        "empty": ": the server returned no text in message.content",
    }.get(kind, "")


def _text_warnings(replies: Sequence[Reply]) -> Iterator[str]:
    """Yield sentences about text that is in another place, of another kind, or without its log-probabilities."""
    usable = [reply for reply in replies if reply.completion.text.strip()]
    fields = Counter(name for reply in usable for name in reply.completion.other_fields)
    for name, count in fields.items():
        if count > NOTABLE * len(replies):
            yield (
                f"{count:,} of {plural(len(replies), 'reply', 'replies')} have part of their text in message.{name}, "
                f"which is not evaluated; {_FIELDS.get(name, 'see the server')}."
            )
    thinking = [reply for reply in usable if _THINKING.search(reply.completion.text)]
    if len(thinking) > NOTABLE * len(replies):
        yield f"{_of(thinking, replies)} contain thinking (</think>): boxes in it count as boxes of the reply."
    if len(again := [reply for reply in usable if _repeats(reply.completion.text)]) > NOTABLE * len(replies):
        yield f"{_of(again, replies)} repeat a sentence {REPEATS} times or more."
    if unfit := [reply for reply in usable if not logprobs_fit(reply.completion)]:
        values = len(unfit[0].completion.logprobs or ())
        yield (
            f"The log-probabilities of {_of(unfit, replies)} do not fit their text ({plural(values, 'value')} for "
            f"{len(unfit[0].completion.text):,} characters): they are not used."
        )


def _box_warnings(pairs: Sequence[tuple[Sample, Reply]]) -> Iterator[str]:
    """Yield sentences about replies that should show a box and have none that can be read."""
    there = [reply for sample, reply in pairs if sample.true_boxes and reply.completion.text.strip()]
    without = [reply for reply in there if not reply.score.predicted_boxes]
    if len(without) <= NOTABLE * len(there):
        return
    faults = Counter(fault for reply in without for fault in set(reply.score.faults))
    plain = [r for r in without if not r.score.faults and _PLAIN_BOX.search(r.completion.text)]
    why = ""
    if plain:
        why = f"; {len(plain):,} have four numbers in brackets without the tags of any notation that is read"
    elif faults:
        names = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in faults.most_common(3))
        why = f"; their boxes have faults ({names})"
    yield f"{_of(without, there)} about things that are in the image have no box that can be read{why}."


def _model_warnings(models: Mapping[str, int], requested: str | None) -> Iterator[str]:
    """Yield a sentence if another model, or several, answered."""
    if requested is None:
        return
    if len(models) > 1:
        yield f"The endpoint was asked for {requested} and answered with several models: {_named(models)}."
    others = [name for name in models if not (requested.endswith(name) or name.startswith(requested))]
    if others and len(models) == 1:
        yield f"The endpoint was asked for {requested} and answered as {others[0]}."


def _repeats(text: str) -> bool:
    sentences = Counter(part for part in _SENTENCES.split(text) if len(part) > 10)
    return max(sentences.values(), default=0) >= REPEATS


def _named(models: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in models.items())


def _of(some: Sequence[Reply], all_replies: Sequence[Reply]) -> str:
    count = plural(len(all_replies), "reply", "replies")
    return f"{len(some):,} of {count} ({share(len(some), len(all_replies))})"
