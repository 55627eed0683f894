"""The strategies, without a network: good rows pass, and each gate refuses the fault that is planted for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import DISC, LEVER, QUESTION, near, outcome, refused, row, sample, see, strategy, taught, wise
from tests.fakes.teacher import Answer, Asked
from tests.fakes.wise import Known
from vcot.distill import DistilledReasoning, with_reasoning
from vcot.distill.strategies import STRATEGIES
from vcot.distill.strategies.two_level import Judged, supported_of
from vcot.grounding import Box, Trace
from vcot.records import Reason, Rejection

LEVER_BOX, DISC_BOX, NOWHERE = [781, 375, 969, 625], [31, 83, 188, 292], [400, 700, 556, 909]
TEXTS = ("A red disc stands left of the blue lever. It touches it.",)

Spoil = Callable[[Any, Any], Any]


def adding(label: str, box: Sequence[float], number: int = 1) -> Spoil:
    """Reasoning about one object that nobody annotated."""
    return lambda asked, said: said | {"objects": [{"number": number, "label": label, "box": list(box)}]}


def saying(*sentences: str, **more: Any) -> Spoil:
    return lambda asked, said: said | {"sentences": list(sentences)} | more


def at(box: Sequence[float]) -> Spoil:
    return lambda asked, said: {"objects": [{"label": one["label"], "boxes": [list(box)]} for one in said["objects"]]}


def anchor(**changed: Any) -> Spoil:
    return lambda asked, said: {"anchors": [said["anchors"][0] | changed]}


def pair(number: int, **changed: Any) -> Spoil:
    def spoil(asked: Any, said: Any) -> Any:
        return said | {"pairs": [one | changed if n == number else one for n, one in enumerate(said["pairs"])]}

    return spoil


def reply(said: Any) -> Spoil:
    return lambda asked, _: said


# --- each gate and its fault

GATES: list[tuple[str, Reason, dict[str, Spoil]]] = [
    ("answer-aware", Reason.TEACHER_UNGROUNDED, {"reason": reply("colourless green ideas sleep")}),
    ("answer-aware", Reason.TEACHER_UNGROUNDED, {"reason": lambda a, s: s | {"objects": []}}),
    ("answer-aware", Reason.TEACHER_UNREADABLE, {"reason": saying("I see the [1] at (31, 83).")}),
    ("answer-aware", Reason.BOX_MALFORMED, {"reason": adding("red disc", [1, 2, 3])}),
    ("answer-aware", Reason.BOX_OUTSIDE, {"reason": adding("red disc", [900, 100, 1400, 200])}),
    ("answer-aware", Reason.BOX_INVERTED, {"reason": adding("red disc", [188, 83, 31, 292])}),
    ("answer-aware", Reason.BOX_EMPTY, {"reason": adding("red disc", [31, 83, 31, 292])}),
    ("answer-aware", Reason.BOX_TOO_SMALL, {"reason": adding("red disc", [31, 83, 41, 93])}),
    ("answer-aware", Reason.BOX_TOO_LARGE, {"reason": adding("red disc", [0, 0, 1000, 980])}),
    ("answer-aware", Reason.ANSWER_IN_LABEL, {"reason": adding("gear", DISC_BOX)}),
    ("answer-aware", Reason.TEACHER_BOX_UNSURE, {"reason": adding("red disc", NOWHERE)}),
    ("answer-aware", Reason.TEACHER_BOX_NOT_SEEN, {"reason": adding("red disc", NOWHERE), "locate": at(NOWHERE)}),
    ("answer-aware", Reason.TEACHER_NOT_JSON, {"look": reply("yes")}),
    ("answer-aware", Reason.TEACHER_WRONG_ANSWER, {"reason": lambda a, s: s | {"answer": "wheel"}}),
    ("answer-aware", Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"reason": adding("blue lever", LEVER_BOX)}),
    ("rationalise", Reason.TEACHER_UNGROUNDED, {"anchor": reply({"anchors": []})}),
    ("rationalise", Reason.TEACHER_UNGROUNDED, {"anchor": anchor(words="green gear")}),
    ("rationalise", Reason.TEACHER_UNGROUNDED, {"anchor": anchor(sentence=3)}),
    ("rationalise", Reason.TEACHER_UNGROUNDED, {"anchor": anchor(object=4, box=None)}),
    ("rationalise", Reason.TEACHER_UNGROUNDED, {"anchor": anchor(box=None)}),
    ("rationalise", Reason.TEACHER_BOX_UNSURE, {"anchor": anchor(box=NOWHERE)}),
    ("rationalise", Reason.TEACHER_BOX_NOT_SEEN, {"anchor": anchor(box=NOWHERE), "locate": at(NOWHERE)}),
    ("rationalise", Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"anchor": anchor(words="blue lever", box=LEVER_BOX)}),
    ("two-level captions", Reason.TEACHER_EMPTY, {"caption": reply({"caption": " "})}),
    ("two-level objects", Reason.TEACHER_NOTHING_LEFT, {"objects": reply({"objects": [
        {"label": "red disc", "box": NOWHERE}, {"label": "cup", "box": [1, 2, 3]},
        {"label": "gear", "box": LEVER_BOX}, {"label": "dot", "box": [10, 10, 12, 12]}]})}),
    ("two-level verdicts", Reason.TEACHER_CLAIMS_UNSUPPORTED, {"verdict": lambda a, s: s | {"label_supported": False}}),
    ("two-level verdicts", Reason.TEACHER_CLAIMS_UNSUPPORTED, {"branch": reply({"visible": False, "caption": ""})}),
    ("two-level synthesis", Reason.TEACHER_UNREADABLE, {"synthesis": pair(0, question="What else?")}),
    ("two-level synthesis", Reason.TEACHER_UNGROUNDED, {"synthesis": lambda a, s: s | {
        "relations": [{"subject": 1, "predicate": "on", "object": 9}]}}),
]  # fmt: skip


@pytest.mark.parametrize(("where", "reason", "spoil"), GATES, ids=[f"{one[0]} {one[1]}" for one in GATES])
def test_each_gate_refuses_its_fault(tmp_path: Path, where: str, reason: Reason, spoil: Mapping[str, Spoil]) -> None:
    name, _, step = where.partition(" ")
    found = refused(strategy(name), row(tmp_path, texts=TEXTS if name == "rationalise" else ()), wise(**spoil))
    assert found.reason is reason, found
    assert found.detail.startswith(step)


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        (Reason.TEACHER_UNGROUNDED, {"rationale": "I see the [7]. So it is clear."}),
        (Reason.TEACHER_UNREADABLE, {"rationale": "I see the [1] at (10, 20)."}),
        (Reason.TEACHER_UNGROUNDED, {"evidence": [5]}),
        (Reason.TEACHER_WRONG_ANSWER, {"answer": "wheel"}),
        (Reason.TEACHER_EVIDENCE_FALLS_SHORT, {"rationale": "I see the [2]. So it is a gear.", "evidence": [2]}),
    ],
)
def test_a_pair_that_falls_leaves_the_others(tmp_path: Path, reason: Reason, changed: dict[str, Any]) -> None:
    one, spoil = row(tmp_path), {"synthesis": pair(0, **changed)}
    made = taught(strategy("two-level", pairs=1), one, wise(**spoil))
    assert (made.traces, len(made.pairs)) == ((), 1)  # the new question is good
    assert [(part.part, part.reason) for part in made.parts] == [("pair 0", reason)]
    found = refused(strategy("two-level", pairs=0), one, wise(**spoil))
    assert (found.reason, found.part) == (reason, "")
    assert changed.get("rationale", "I see the [1]") in found.said[0]


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        (Reason.DUPLICATE, {"question": "What touches the lever"}),
        (Reason.TEACHER_WRONG_ANSWER, {"choices": ["a", "b"]}),
        (Reason.TEACHER_UNREADABLE, {"question": ""}),
        (Reason.TEACHER_UNREADABLE, {"question": "What is it?<|im_end|>"}),
        (Reason.ANSWER_IN_LABEL, {"answer": "red disc", "evidence": [1]}),
    ],
)
def test_a_new_question_must_be_one(tmp_path: Path, reason: Reason, changed: dict[str, Any]) -> None:
    made = taught(strategy("two-level", pairs=1), row(tmp_path), wise(synthesis=pair(1, **changed)))
    assert (made.pairs, [part.reason for part in made.parts]) == ((), [reason])


def test_rows_that_need_nothing_or_lack_what_is_needed_are_not_asked_about(tmp_path: Path) -> None:
    client = wise()
    placed = row(tmp_path).model_copy(update={"reasoning": (Trace((see("red disc", DISC), " is there.")),)})
    for name in STRATEGIES:
        assert outcome(strategy(name), placed, client) is None
        assert outcome(strategy(name), row(tmp_path, texts=TEXTS, split="test"), client) is None
    for way in (strategy("rationalise"), strategy("answer-aware", propose=False)):
        without = outcome(way, row(tmp_path), client)
        assert isinstance(without, Rejection)
        assert without.reason is Reason.NO_REASONING
    assert not client.asked


# --- answer-aware


def test_an_object_that_nobody_annotated_is_proposed_and_checked(tmp_path: Path) -> None:
    (trace,) = taught(strategy("answer-aware"), row(tmp_path), client := wise()).traces
    assert trace.text == "I see the red disc. So the answer is gear."
    assert near(trace.boxes[0], DISC)
    assert client.purposes == {"reason": 1, "locate": 1, "look": 1, "reanswer": 1}
    assert "You may add objects, from [1] on. Boxes are [x1, y1, x2, y2] in thousandths" in client.asked[0].words
    assert "gear" not in client.asked[-1].words  # who answers again does not know the answer


def test_the_words_hold_number_label_place_and_extent_and_no_pixels(tmp_path: Path) -> None:
    there = (see("a disc", DISC), see("blue lever", LEVER))
    one = row(tmp_path, "Which?", "A", evidence=there, choices=("disc", "lever"), context="A drawing.")
    one = one.model_copy(update={"answers": ("A", "a disc")})
    outcome(strategy("answer-aware", propose=False), one, client := wise())
    assert client.asked[0].words.splitlines() == [
        "Question: Which?", "Context: A drawing.", "Choices: A. disc; B. lever", "Right answer: A",
        "Also accepted: a disc", "Objects:", "[1] region, top left, across 3-19 %, down 8-29 %",
        "[2] blue lever, right, across 78-97 %, down 38-62 %",
    ]  # fmt: skip


def test_nothing_there_is_answered_from_the_whole_image_which_lies_nowhere(tmp_path: Path) -> None:
    client = wise({QUESTION: Known("no")})
    assert taught(strategy("answer-aware"), row(tmp_path, answer="no", evidence=()), client)
    assert "Cut-out" not in client.asked[-1].words


def test_a_proposal_on_an_annotated_place_is_that_object_and_one_of_its_name_elsewhere_is_wrong(tmp_path: Path) -> None:
    def proposing(box: Sequence[float]) -> Spoil:
        disc = {"number": 2, "label": "red disc", "box": list(box)}
        return saying("I see the [2].", "So it is a gear.", objects=[disc])

    one = row(tmp_path, evidence=(see("disc of metal", DISC),))
    (trace,) = taught(strategy("answer-aware"), one, wise(reason=proposing([28, 80, 190, 300]))).traces
    assert trace == Trace(("I see the ", see("disc of metal", DISC), ". So it is a gear."))
    one = row(tmp_path, evidence=(see("red disc", DISC),))
    found = refused(strategy("answer-aware"), one, wise(reason=proposing(NOWHERE)))
    assert found.reason is Reason.TEACHER_BOX_OFF_GOLD


def test_other_frames_are_declared_and_told(tmp_path: Path) -> None:
    client = wise(reason=adding("red disc", DISC))
    pixels = strategy("answer-aware", frame="pixels", self_consistency=False)
    assert taught(pixels, row(tmp_path), client).traces[0].boxes == (Box(*DISC),)
    assert "in pixels of the image" in client.asked[0].words
    assert "0..320 across and 0..240 down" in client.asked[0].words
    fractions = strategy("answer-aware", frame="fractions")
    assert refused(fractions, row(tmp_path), wise(reason=adding("red disc", DISC))).reason is Reason.BOX_OUTSIDE


def test_no_more_objects_are_looked_at_than_may_be_proposed(tmp_path: Path) -> None:
    boxes = [[x, y, x + 50, y + 50] for x in range(0, 900, 50) for y in range(0, 900, 50)][:298]
    objects = [{"number": n, "label": f"thing {n}", "box": box} for n, box in enumerate(boxes, 1)]
    sprayed = saying("I see the [1-99] and [100-198] and [199-298].", "So the answer is gear.", objects=objects)
    found = refused(strategy("answer-aware", objects=8), row(tmp_path), client := wise(reason=sprayed))
    assert found.reason is Reason.TOO_MANY_BOXES
    assert "298 objects" in found.detail
    assert client.purposes == {"reason": 2}  # it was asked once more, with a word on what was wrong
    assert "--objects is 8" in client.asked[1].words


def test_limits_of_areas_go_by_dataset_and_never_for_what_people_drew(tmp_path: Path) -> None:
    speck, alone = (100, 100, 103, 103), {"self_consistency": False, "crop_check": False, "answer_from_evidence": False}
    one = row(tmp_path, evidence=(see("red disc", speck),))
    assert taught(strategy("answer-aware", **alone), one, wise()).traces[0].boxes == (Box(*speck),)
    generous = strategy("answer-aware", min_proposed_area=("0.5", "made=0.00001"), **alone)
    assert taught(generous, row(tmp_path), wise(reason=adding("red disc", [31, 83, 41, 93])))


def test_a_wrong_answer_is_not_argued_with_and_may_stay_as_a_negative(tmp_path: Path) -> None:
    def found(**options: Any) -> Rejection:
        client = wise(reason=lambda a, s: s | {"answer": "wheel"})
        rejection = refused(strategy("answer-aware", **options), row(tmp_path), client)
        assert client.purposes["reason"] == 1
        return rejection

    assert found().negative is None
    negative = found(wrong_answers="negatives").negative
    assert negative is not None
    assert negative.answers == ("wheel",)
    assert negative.reasoning[0].text == "I see the red disc. So the answer is gear."


def test_the_answer_in_the_first_sentence_is_flagged_or_refused(tmp_path: Path) -> None:
    spoil = {"reason": saying("The [1] touches the lever, so it is the gear.", "I see it.")}
    assert taught(strategy("answer-aware"), row(tmp_path), wise(**spoil)).flags == ("answer-first",)
    assert taught(strategy("answer-aware"), row(tmp_path), wise()).flags == ()
    strict = strategy("answer-aware", answer_first="refuse")
    assert refused(strict, row(tmp_path), wise(**spoil)).reason is Reason.TEACHER_ANSWER_FIRST


def test_an_object_that_is_refused_may_stay_as_prose(tmp_path: Path) -> None:
    one, lenient = row(tmp_path, evidence=(see("red disc", DISC),)), strategy("answer-aware", bad_objects="prose")
    lever = {"number": 2, "label": "blue lever", "box": NOWHERE}
    spoil = {"reason": reply({"reasoning": "The [2] is beside the [1]. So it is a gear.", "objects": [lever],
                              "answer": "gear"})}  # fmt: skip
    assert refused(strategy("answer-aware"), one, wise(**spoil)).reason is Reason.TEACHER_BOX_UNSURE
    made = taught(lenient, one, wise(**spoil))
    assert made.traces == (Trace(("The blue lever is beside the ", see("red disc", DISC), ". So it is a gear.")),)
    assert [(part.part, part.reason) for part in made.parts] == [("object 2", Reason.TEACHER_BOX_UNSURE)]
    nothing = refused(lenient, row(tmp_path), wise(reason=adding("red disc", NOWHERE)))
    assert nothing.reason is Reason.TEACHER_NOTHING_LEFT


@pytest.mark.parametrize(("box", "answer"), [(DISC, "left"), (LEVER, "right")])
def test_whoever_answers_again_is_told_where_the_evidence_lies(
    tmp_path: Path, box: Sequence[float], answer: str
) -> None:
    def by_place(asked: Asked, _: Any) -> Any:
        across = re.search(r"^Cut-out 1 lies across (\d+)-", asked.words, re.M)
        return {"answer": "left" if across and int(across[1]) < 50 else "right"}

    one = row(tmp_path, "On which side is the red disc?", "left", evidence=(see("red disc", box),))
    found = outcome(strategy("answer-aware"), one, wise({one.question: Known("left")}, reanswer=by_place))
    assert isinstance(found, DistilledReasoning) == (answer == "left")


# --- the checks themselves


def test_negative_crops_measure_how_often_nonsense_passes_and_the_seed_chooses_them(tmp_path: Path) -> None:
    def accepted(**spoil: Any) -> tuple[int, int]:
        way = strategy("answer-aware", negative_crop_share=1.0)
        outcome(way, row(tmp_path), wise(**spoil))
        return way.counted["decoys"], way.counted["decoys_accepted"]

    def looks(seed: int) -> list[int]:
        way, numbers = strategy("answer-aware", negative_crop_share=0.5, seed=seed), []
        for n in range(4):
            outcome(way, row(tmp_path, name=f"row-{n}"), client := wise())
            numbers.append(client.purposes["look"])
        return numbers

    assert accepted() == (1, 0)
    assert accepted(look=reply({"present": True})) == (1, 1)
    first = looks(1)
    assert first == looks(1) != looks(2)
    assert {*first} == {1, 2}


def test_a_trace_names_the_models_that_wrote_it_and_not_those_that_judged(tmp_path: Path) -> None:
    client, script = wise(), wise().script

    def renamed(asked: Asked) -> Answer:
        model = "judge-7" if asked.body["model"] == "other" else "wise-0613"
        return Answer(body=json.dumps(json.loads(script(asked).body or b"") | {"model": model}).encode())

    client.script = renamed
    made = taught(strategy("answer-aware", judge_model="other"), row(tmp_path), client)
    assert {asked.body["model"] for asked in client.asked} == {"wise", "other"}
    (kept,) = with_reasoning(row(tmp_path), made, "wise")
    assert (kept.origin.teacher, kept.origin.answered_by) == ("wise", ("wise-0613",))


@pytest.mark.parametrize(
    ("name", "digest"),
    [("answer-aware", "874d7a5456db7ef7"), ("rationalise", "a75c320116cc319e"), ("two-level", "85509d8e9c2a6961")],
)
def test_keys_of_requests_stay_so_that_replies_that_users_have_paid_for_are_found(name: str, digest: str) -> None:
    """Whoever changes one on purpose (a new version of a prompt) changes it here."""
    one = sample(QUESTION, "gear", evidence=None, data=b"x", reasoning=(Trace(TEXTS),))
    keys = [request.key() for request in strategy(name).estimate(one)]
    assert hashlib.sha256("".join(keys).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_first_request_of_the_estimate_is_the_first_that_is_made(tmp_path: Path, name: str) -> None:
    one, way = row(tmp_path, texts=TEXTS, evidence=(see("red disc", DISC),)), strategy(name)
    assert isinstance(outcome(way, one, client := wise()), DistilledReasoning)
    assert way.estimate(one)[0].key() == client.keys[0]


# --- rationalise


def test_a_text_gets_places_and_stays_as_it_is(tmp_path: Path) -> None:
    (trace,) = taught(strategy("rationalise"), row(tmp_path, texts=TEXTS), client := wise()).traces
    assert trace.text == TEXTS[0]
    assert [mention.label for mention in trace.mentions] == ["red disc", "blue lever"]
    assert near(trace.boxes[0], DISC)
    assert near(trace.boxes[1], LEVER)
    assert "(1) A red disc stands left of the blue lever.\n(2) It touches it." in client.asked[0].words


def test_a_text_keeps_its_words_and_the_places_up_to_the_limit(tmp_path: Path) -> None:
    """Somebody wrote the text, so it may stay with fewer places; nothing of it leans on those that are left out."""
    made = taught(strategy("rationalise", objects=1), row(tmp_path, texts=TEXTS), client := wise())
    assert made.traces[0].text == TEXTS[0]
    assert [mention.label for mention in made.traces[0].mentions] == ["red disc"]
    assert client.purposes["look"] == 1
    assert "1 more" in made.parts[0].detail


def test_annotated_objects_need_a_look_only_under_another_name(tmp_path: Path) -> None:
    one = row(tmp_path, texts=TEXTS, evidence=(see("red disc", DISC), see("blue lever", LEVER)))
    (trace,) = taught(strategy("rationalise", propose=False), one, client := wise()).traces
    assert trace.boxes == (Box(*DISC), Box(*LEVER))
    assert client.purposes == {"anchor": 1, "reanswer": 1}

    def called(words: str) -> Spoil:
        return reply({"anchors": [{"sentence": 1, "words": words, "object": 1, "box": None}]})

    one = row(tmp_path, texts=TEXTS, evidence=(see("round thing", DISC),))
    (trace,) = taught(strategy("rationalise"), one, client := wise(anchor=called("red disc"))).traces
    assert (trace.boxes, client.purposes["look"]) == ((Box(*DISC),), 1)
    found = refused(strategy("rationalise"), one, wise(anchor=called("blue lever")))
    assert found.reason is Reason.TEACHER_BOX_NOT_SEEN


def test_words_that_are_the_answer_are_not_pointed_at(tmp_path: Path) -> None:
    one = row(tmp_path, "What stands left of the lever?", "red disc", texts=TEXTS)
    known = {one.question: Known("red disc", needs="red disc")}
    assert refused(strategy("rationalise"), one, wise(known)).reason is Reason.ANSWER_IN_LABEL


def test_each_text_is_an_alternative(tmp_path: Path) -> None:
    texts = (*TEXTS, "Nothing here can be pointed at.", "I see a red disc.")
    made = taught(strategy("rationalise"), row(tmp_path, texts=texts), wise())
    assert [trace.text for trace in made.traces] == [texts[0], texts[2]]
    assert [(part.part, part.reason) for part in made.parts] == [("alternative 2", Reason.TEACHER_UNGROUNDED)]


# --- two-level


def test_every_object_is_described_and_judged_by_itself(tmp_path: Path) -> None:
    one = row(tmp_path, evidence=(see("red disc", DISC),), context="A drawing.")
    made = taught(strategy("two-level"), one, client := wise())
    assert client.purposes == {
        "caption": 1, "objects": 1, "locate": 1, "branch": 2, "verdict": 2, "synthesis": 1, "reanswer": 3,
    }  # fmt: skip
    disc, lever = made.traces[0].mentions
    assert disc == see("red disc", DISC)  # from people
    assert near(lever.boxes[0], LEVER)
    words = [(asked.purpose, asked.words) for asked in client.asked]
    assert all("shows" not in said for purpose, said in words if purpose == "branch")  # the whole's caption
    (synthesis,) = (said for purpose, said in words if purpose == "synthesis")
    assert "[1] red disc, top left, across 3-19 %, down 8-29 %: A red disc of one colour." in synthesis
    assert made.traces[0].text == "I see the red disc and the blue lever. So the answer is gear."
    assert made.models == ("scripted-1",)
    new, _ = made.pairs
    assert (new.id, new.answers, new.context) == ("one#1", ("something coloured",), None)
    assert new.evidence == (see("red disc", DISC),)
    assert new.reasoning[0].text == "I see the red disc. So the answer is something coloured."
    assert taught(strategy("two-level", pairs=0), one, wise()).pairs == ()


@pytest.mark.parametrize("purpose", ["caption", "objects", "branch", "synthesis"])
def test_a_row_that_falls_is_asked_about_again_at_its_step(tmp_path: Path, purpose: str) -> None:
    def fails(times: int) -> dict[str, Spoil]:
        left = iter([""] * times)
        return {purpose: lambda asked, said: next(left, said)}

    one = row(tmp_path, evidence=(see("red disc", DISC),))
    again = strategy("two-level", ask_again=1, repairs=0)
    refused(strategy("two-level", repairs=0), one, wise(**fails(1)))
    assert taught(again, one, wise(**fails(1))).traces
    assert refused(again, one, wise(**fails(2))).said[:2] == ("", "")


def test_where_no_pair_passes_the_gates_others_are_asked_for(tmp_path: Path) -> None:
    wrong = iter([{"answer": "wheel"}, {}])
    client = wise(synthesis=lambda asked, said: pair(0, **next(wrong))(asked, said))
    one = row(tmp_path, evidence=(see("red disc", DISC),))
    assert taught(strategy("two-level", ask_again=1, pairs=0), one, client).traces
    assert (client.purposes["synthesis"], client.purposes["caption"]) == (2, 1)  # what stood before is not asked again


@pytest.mark.parametrize(
    ("supported", "changed", "annotated", "caption"),
    [
        ([True, True], {}, False, "It is red."), ([True, False], {}, False, "Claim 0."),
        ([True, False, False], {}, False, None), ([True, False, False], {}, True, "Claim 0."),
        ([True], {"label_supported": False}, False, None), ([True], {"verdict": "reject"}, False, None),
        ([True], {"verdict": "reject"}, True, "It is red."), ([], {}, False, ""),
    ],
)  # fmt: skip
def test_what_is_left_of_a_caption_follows_from_the_claims(
    supported: list[bool], changed: dict[str, Any], annotated: bool, caption: str | None
) -> None:
    claims = [{"text": f"Claim {n}.", "supported": yes} for n, yes in enumerate(supported)]
    judged = Judged.model_validate({"label_supported": True, "verdict": "keep", "claims": claims} | changed)
    assert supported_of(judged, "It is red.", annotated=annotated) == caption
