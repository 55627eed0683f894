"""What the figures mean, in sentences with their numbers: what the model can do, and what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vcot.evaluation import words
from vcot.evaluation.baselines import NOT_ANNOTATED
from vcot.evaluation.words import find

FEW = 20
"""Rows below which a group's figures are called few."""


def judge(report: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences, each with its numbers. `can` goes on "It can …": clearly better than guessing and than blank
    images, and right more often than not. `cannot` goes on "It cannot …"."""
    can: list[str] = []
    cannot: list[str] = []
    for group in report["groups"]:
        if group["thing"] is not None:
            _judge_pointing(group, can, cannot)
        if group["question"] is not None:
            _judge_answers(group, can, cannot)
    cannot += _blindness(report) + _worse(report)
    return {"headline": _headline(report), "can": can, "cannot": cannot, "notes": _notes(report)}


def _headline(report: Mapping[str, Any]) -> str:
    after = find(report, "results", "tuned-real")
    assert after is not None
    figure = "accuracy_at_50" if after["figures"]["accuracy_at_50"]["value"] is not None else "answer_accuracy"
    was, now = words.before(words.results_of(report), figure), after["figures"][figure]
    what = f"finds {_of(now)} true boxes" if figure == "accuracy_at_50" else f"answers {_of(now)} questions as accepted"
    sentence = f"After tuning the model {what} ({_share(figure, now)}); before, it was {_of(was)}"
    blank = find(report, "results", "tuned-blank")
    if blank is not None:
        sentence += f", and on blank images it is {_of(blank['figures'][figure])}"
    return sentence + "."


def _of(figure: Mapping[str, Any]) -> str:
    return f"{(figure['value'] or 0) * figure['count']:,.0f} of {figure['count']:,.0f}"


def _judge_pointing(group: Mapping[str, Any], can: list[str], cannot: list[str]) -> None:
    name, after = group["thing"], group["results"]["tuned-real"]
    alarms, figure = after["boxes_where_absent"], after["accuracy_at_50"]
    if alarms["rows"] and alarms["value"] > 0.1:
        cannot.append(
            f"say that there is no “{name}” where there is none: it draws a box all the same, {_of(alarms)} times"
            f" ({words.both('boxes_where_absent', alarms)}){_few(alarms['rows'])}."
        )
    against = group["against_guess"].get("accuracy_at_50")
    if name == NOT_ANNOTATED or figure["value"] is None or against is None:
        return
    guess = f"the best guess ({words.guess_name(against['guess'])})"
    said = f"point at “{name}”: it finds {_of(figure)}"
    skilled = _judge(group, "accuracy_at_50", said, guess, "misses most", can, cannot)
    if skilled and (missed := round(figure["count"] * (1 - figure["value"]))):
        cannot.append(f"find every “{name}”: it misses {missed:,} of {figure['count']:,.0f}.")
    if after["precision"]["value"] is not None and after["precision"]["value"] < 0.5 <= figure["value"]:
        cannot.append(
            f"stop in time when it points at “{name}”: only {_of(after['precision'])} of its boxes are right"
            f" ({_share('precision', after['precision'])})."
        )


def _judge_answers(group: Mapping[str, Any], can: list[str], cannot: list[str]) -> None:
    figure = group["results"]["tuned-real"]["answer_accuracy"]
    if figure["value"] is not None and "answer_accuracy" in group["against_guess"]:
        said = f"answer “{group['question']}”: {_of(figure)} right"
        _judge(group, "answer_accuracy", said, "the usual answer", "wrong most of the time", can, cannot)


def _judge(
    group: Mapping[str, Any], name: str, said: str, guess: str, still: str, can: list[str], cannot: list[str]
) -> bool:
    """Whether it is a skill; the sentence goes to `can` or to `cannot`, with the reason."""
    figure, against = group["results"]["tuned-real"][name], group["against_guess"][name]
    said += f" ({_share(name, figure)}){_few(figure['rows'])}, {guess} {words.value(name, against['its'])}"
    blank = group["differences"].get("real-blank")
    doubt = ""
    if not _above_zero(against["difference"]):
        doubt = "That is not shown to be better than guessing."
    elif blank is not None and blank[name]["value"] is not None and not _above_zero(blank[name]):
        value = words.value(name, group["results"]["tuned-blank"][name])
        doubt = f"On blank images it is {value}: not shown to come from looking."
    elif figure["value"] < 0.5:
        doubt = f"That is better than guessing, and still {still}."
    (cannot if doubt else can).append(f"{said}. {doubt}" if doubt else f"{said}.")
    return not doubt


def _share(name: str, figure: Mapping[str, Any]) -> str:
    """ "76 %, 62–88"."""
    around = words.interval(name, figure)
    return words.value(name, figure) + (f", {around}" if around else "")


def _blindness(report: Mapping[str, Any]) -> list[str]:
    """Does the result depend on the image at all?"""
    row = find(report, "differences", "real-blank")
    if row is None:
        return []
    figure = "accuracy_at_50" if row["figures"]["accuracy_at_50"]["value"] is not None else "answer_accuracy"
    if row["figures"][figure]["value"] is None or _above_zero(row["figures"][figure]):
        return []
    change = words.both(figure, row["figures"][figure], signed=True)
    return [f"be said to look: on real images it is not shown to be better than on blank ones ({change})."]


def _worse(report: Mapping[str, Any]) -> list[str]:
    """What tuning has clearly cost."""
    row = find(report, "differences", "after-before")
    assert row is not None
    changes = [(name, row["figures"][name]) for name in ("accuracy_at_50", "answer_accuracy")]
    return [
        f"do as well as before it was tuned: {words.FIGURES[name][0]} {words.both(name, change, signed=True)}."
        for name, change in changes
        if change["high"] is not None and change["high"] < 0
    ]


def _notes(report: Mapping[str, Any]) -> list[str]:
    """What must be known to read the numbers rightly."""
    results, samples, notes = words.results_of(report), report["samples"], []
    if "native-real" in results:
        notes.append(
            "The base was asked twice, in the tuned model's form and in its own; before tuning means, figure by "
            "figure, the better of the two."
        )
    notes += [_before(key, results[key]) for key in words.BASES if key in results]
    questions = ", ".join(f"“{group['question']}”" for group in report["groups"] if group["question"] is not None)
    notes.append(f"What was asked: {questions}. What the model does with anything else is not known.")
    if samples["annotated"] < samples["rows"]:
        notes.append(
            f"{samples['rows'] - samples['annotated']:,} of {samples['rows']:,} rows have no annotated boxes;"
            " they count for answers and not for boxes."
        )
    if samples["by_text"]:
        notes.append(
            f"{samples['by_text']:,} of {samples['rows']:,} rows are asked by text alone;"
            " they count on real images, and not on blank and wrong ones."
        )
    if samples["left_out"]:
        notes.append(f"{words.plural(samples['left_out'], 'row')} left out: the image could not be read.")
    if not samples["training_rows"]:
        notes.append("No training split was found, so the guesses that learn from it are missing.")
    for key, when in (("tuned-real", "after tuning"), ("native-real", "of the base in its own form")):
        cut = find(report, "results", key)
        if cut is not None and cut["cut_off"]:
            limit = report["made_with"]["max_new_tokens"]
            notes.append(
                f"{words.plural(cut['cut_off'], 'reply', 'replies')} {when} did not end within {limit} tokens."
            )
    return notes


def _before(key: str, figures: Mapping[str, Any]) -> str:
    """A base that does not know the form is judged by it all the same; the reader must know how much of it that is."""
    bad, mute, none = figures["malformed"], figures["answer_absent"], figures["no_box"]
    said = f"{_of(bad)} replies have a tag or box that cannot be read, {_of(mute)} come to no answer"
    if none["rows"]:
        said += f", and {_of(none)} show no box where there is something to point at"
    parsed = figures["mean_iou_parsed"]
    if parsed["value"] is None:
        over = "no reply with something to point at kept the form"
    else:
        kept = words.plural(parsed["rows"], "reply", "replies")
        over = f"over the {kept} that keep the form, mean IoU is {words.value('mean_iou_parsed', parsed)}"
    failure = max(bad["value"] or 0, mute["value"] or 0) > 0.1
    name = f"{words.RESULTS[key][0][0].upper()}{words.RESULTS[key][0][1:]}"
    return f"“{name}”{' is partly a failure of form' if failure else ''}: {said}; {over}."


def _above_zero(difference: Mapping[str, Any]) -> bool:
    return difference["low"] is not None and difference["low"] > 0


def _few(rows: int) -> str:
    return f" (only {words.plural(rows, 'row')})" if rows < FEW else ""
