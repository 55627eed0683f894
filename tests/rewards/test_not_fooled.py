"""Replies that only look good earn less than an honest one, by the default weights."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcot.grounding import Box, FrameSpec, Mention, Trace, match, parse, split_answer
from vcot.records import Image, Origin, Sample
from vcot.records.rollout import Rollout
from vcot.rewards import DEFAULT_WEIGHTS, BrokenReward, earned, time_limit, total, weighed

SPEC, WEIGHED = FrameSpec("thousandths"), weighed(DEFAULT_WEIGHTS)
TRUE = [(100, 100, 300, 300), (400, 100, 600, 300)]
SAMPLE = Sample(
    id="1", image=Image(uri="1.png", width=1000, height=1000, sha256="0" * 64), question="How many gears turn left?",
    answers=("2",), evidence=tuple(Mention("gear", (Box(*box),)) for box in TRUE),
    origin=Origin(dataset="scenes", split="train", row="1", licence="CC0-1.0"),
)  # fmt: skip


def pointed(*boxes, label="gear") -> str:
    return " ".join(f"<ref>{label}</ref><box>{list(box)}</box>" for box in boxes)


def worth(text: str, **more) -> float:
    tokens = len(text) // 3
    rollout = Rollout(text=text, tokens=min(tokens, 300), limit=300, **{"ended": tokens < 300} | more)
    return total(earned(rollout, SAMPLE, SPEC, WEIGHED), WEIGHED)


GEARS = pointed((110, 100, 310, 310), (400, 90, 590, 300))
"""Overlaps of .87 and .89: as a good model points, not exactly."""
HONEST = f"I see {GEARS} turn left.\nAnswer: 2"

SPRAYED = [(x, y, x + 90, y + 90) for x in range(0, 900, 300) for y in range(0, 900, 300)]

FOOLING = {
    "boxes sprayed over the image": f"I see {GEARS} {pointed(*SPRAYED)}.\nAnswer: 2",
    "one box many times": f"I see {pointed(*[(110, 100, 310, 310)] * 8)}.\nAnswer: 2",
    "each box twice": f"I see {GEARS} and {GEARS}.\nAnswer: 2",
    "boxes beside each other": f"I see {pointed(*((100 + d, 100, 300 + d, 300) for d in range(0, 40, 8)))}.\nAnswer: 2",
    "the whole image": f"I see {pointed((0, 0, 1000, 1000))}.\nAnswer: 2",
    "the whole image beside them": f"I see {GEARS} in {pointed((0, 0, 1000, 1000))}.\nAnswer: 2",
    "boxes in the answer": f"I see {GEARS} turn left.\nAnswer: {pointed(TRUE[0])} 2",
    "boxes in the answer alone": f"They turn left.\nAnswer: 2 {GEARS}",
    "boxes behind the answer": f"They turn left.\nAnswer: 2\n{GEARS}",
    "tags without content": "I see <ref></ref><box></box> <ref></ref><box></box>.\nAnswer: 2",
    "boxes without a name": "I see <box>[110, 100, 310, 310]</box>.\nAnswer: 2",
    "no reasoning": "Answer: 2",
    "boxes alone": f"{GEARS}\n2",
    "the answer twice": f"I see {GEARS} turn left.\nAnswer: 2\nAnswer: 2",
    "several answers": f"I see {GEARS} turn left.\nAnswer: 1\nAnswer: 2",
    "several answers in one": f"I see {GEARS} turn left.\nAnswer: 1 or 2",
    "the right answer after wrong boxes": f"I see {pointed((700, 700, 900, 900), (10, 700, 200, 900))}.\nAnswer: 2",
    "the question again": f"{SAMPLE.question}\nAnswer: 2",
    "the question for an answer": f"I see {GEARS}.\nAnswer: {SAMPLE.question}",
    "endless": f"I see {GEARS} turn left." + " I see them turn left." * 200 + "\nAnswer: 2",
    "an endless answer": f"I see {GEARS} turn left.\nAnswer: 2" + " and 2" * 400,
    "fractions for thousandths": f"I see {pointed((0.11, 0.1, 0.31, 0.31), (0.4, 0.09, 0.59, 0.3))}.\nAnswer: 2",
    "pixels of a smaller image": f"I see {pointed((30, 28, 87, 87), (112, 25, 165, 84))}.\nAnswer: 2",
    "no numbers": f"I see {pointed(('NaN', 'NaN', 'NaN', 'NaN'))}.\nAnswer: 2".replace("'", ""),
    "infinite": f"I see {pointed((0, 0, 10**400, 10**400))}.\nAnswer: 2",
    "a thousand tags": "<ref>gear</ref>" * 1000 + "\nAnswer: 2",
    "a thousand open tags": "<ref>" * 1000 + f"{GEARS}\nAnswer: 2",
    "nested": f"<think><think>I see {GEARS}</think></think>\nAnswer: 2",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("name", FOOLING)
def test_a_reply_that_only_looks_good_earns_less(name):
    assert worth(FOOLING[name]) < worth(HONEST) - 0.05


def test_an_honest_reply_earns_nearly_everything_and_one_cut_off_less():
    assert worth(HONEST) == pytest.approx(2.4, abs=0.15)
    assert worth(HONEST.replace("Answer: 2", "Answer: 3")) < worth(HONEST)
    cut = HONEST[: HONEST.index("<box>[400")]
    assert worth(cut, ended=False) < worth(HONEST)


corner = st.integers(0, 1000)
box = st.tuples(corner, corner, corner, corner).filter(lambda b: b[0] < b[2] and b[1] < b[3])
piece = st.one_of(
    box.map(lambda b: pointed(b)), st.sampled_from([GEARS, pointed(TRUE[0]), pointed((0, 0, 1000, 1000))]),
    st.sampled_from(["gear", "<ref>", "</box>", "<think>", "</think>", "\n", "Answer: 2", "Answer: 3", "2", "I see"]),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(piece, max_size=12))
def test_no_patchwork_earns_more_unless_it_points_better(pieces):
    text = " ".join(pieces) + "\nAnswer: 2"
    if worth(text) > worth(HONEST):
        said = Trace(parse(split_answer(text)[0], SAMPLE.frame(SPEC)).trace.mentions).boxes
        honest = Trace(parse(HONEST, SAMPLE.frame(SPEC)).trace.mentions).boxes
        true = Trace(SAMPLE.evidence).boxes
        assert len(said) == len(true) or len(said) == len(true) + 1
        assert match(said, true).total > match(honest, true).total


# --- weighing ------------------------------------------------------------------------------------------


def of_a_user(rollout, sample, spec):
    return {"raises": 1 / 0 if rollout.text == "raises" else 0, "nan": float("nan"), "none": None}.get(rollout.text, 1)


def test_rewards_are_weighed_and_a_users_own_may_be_among_them():
    where = f"{__name__}:of_a_user"
    own = weighed(["answer=1", f"mine={where}", "mine=0.5"])
    assert [(one.name, one.weight) for one in own] == [("answer", 1), ("mine", 0.5)]
    assert total(earned(Rollout(text="Answer: 2"), SAMPLE, SPEC, own), own) == 1.5
    assert total(earned(Rollout(text="none"), SAMPLE, SPEC, own), own) == 0
    alone = weighed([f"mine={where}"])
    assert total(earned(Rollout(text="none"), SAMPLE, SPEC, alone), alone) is None
    for text, told in (("raises", "raised ZeroDivisionError on 1"), ("nan", "gave nan on 1")):
        with pytest.raises(BrokenReward, match=f"the reward mine {told}"):
            earned(Rollout(text=text), SAMPLE, SPEC, own)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("anwser=1", "no such reward: anwser; did you mean answer?"), ("answer", "is not name=weight"),
        ("answer=much", "'much' is neither a weight nor package.module:function"),
        ("answer=0", "every reward weighs 0"),
        ("answer=-1", "a weight is a number from 0 on"), ("answer=nan", "a weight is a number from 0 on"),
        ("mine=nowhere:function", "No module named 'nowhere'"), ("mine=math:nothing", "no attribute 'nothing'"),
        ("mine=math:pi", "that is no function"),
    ],
)  # fmt: skip
def test_what_cannot_be_weighed_is_refused(given, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        weighed([given])


# --- where no boxes are annotated ------------------------------------------------------------------------

PLAIN = SAMPLE.model_copy(update={"evidence": None, "answers": ("left",), "question": "Which way do they turn?"})
"""Neither evidence nor a reasoning with boxes: nothing tells a right box from a wrong one, only how many there are."""


def plain_worth(boxes: int, sample: Sample = PLAIN) -> float:
    places = [(40 * (n % 20), 40 * (n // 20), 40 * (n % 20) + 30, 40 * (n // 20) + 30) for n in range(boxes)]
    text = f"I see {pointed(*places)}.\nAnswer: {sample.answers[0]}"
    rollout = Rollout(text=text, tokens=10, limit=300, ended=True)
    return total(earned(rollout, sample, SPEC, WEIGHED), WEIGHED)


@pytest.mark.parametrize("boxes", [6, 20, 200])
def test_many_boxes_earn_less_where_none_are_annotated(boxes):
    assert plain_worth(boxes) < plain_worth(1) - 0.15


@pytest.mark.parametrize("boxes", [1, 3, 5])
def test_few_boxes_earn_all_where_none_are_annotated(boxes):
    assert plain_worth(boxes) == pytest.approx(1.4)


def test_a_count_allows_as_many_boxes_as_its_answer():
    twelve = PLAIN.model_copy(update={"answers": ("12",), "question": "How many gears are there?"})
    assert plain_worth(12, twelve) == plain_worth(1, twelve) == pytest.approx(1.4)
    assert plain_worth(13, twelve) < 1.25
    year = PLAIN.model_copy(update={"answers": ("2023",), "question": "Which year is it?"})
    assert plain_worth(20, year) < plain_worth(1, year) - 0.15


# --- a function of the user that does not come back --------------------------------------------------------


def endless(rollout, sample, spec):
    """Hangs in bytecode, in a call of C, or in a retry loop, as the text says."""
    while rollout.text == "bytecode":
        pass
    if rollout.text == "sleep":
        time.sleep(600)
    while rollout.text == "retries":
        try:
            raise OSError
        except Exception:
            continue
    return 1.0


def leaves(rollout, sample, spec):
    if rollout.text == "exit":
        sys.exit(3)
    raise asyncio.CancelledError


def in_thread(call):
    """The result of the call in another thread, or what it raised."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=30)


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("bytecode", "main thread"),
        ("retries", "main thread"),
        ("sleep", "main thread"),
        ("bytecode", "another thread"),
        ("retries", "another thread"),
    ],
)
def test_a_reward_that_hangs_is_refused_in_time(how, where, monkeypatch):
    monkeypatch.setattr(time_limit, "SECONDS", 0.2)
    own = weighed([f"mine={__name__}:endless"])
    begun = time.monotonic()
    with pytest.raises(BrokenReward, match=r"the reward mine gave no result on 1 within 0.2 s"):
        (in_thread if where == "another thread" else lambda call: call())(
            lambda: earned(Rollout(text=how), SAMPLE, SPEC, own)
        )
    assert time.monotonic() - begun < 5
    assert earned(Rollout(text="x"), SAMPLE, SPEC, own) == {"mine": 1.0}


def test_a_reward_that_takes_its_time_is_not_interrupted_later(monkeypatch):
    """Calls that end around the limit: an interruption that comes late must not reach the code after them."""
    monkeypatch.setattr(time_limit, "SECONDS", 0.002)
    threads = threading.active_count()

    def call(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    def many():
        outcomes = []
        for n in range(100):
            try:
                time_limit.call_in_time(call, 0.0015 + 0.00001 * n)
                outcomes.append(True)
            except time_limit.OutOfTime:
                outcomes.append(False)
            sum(range(2000))  # where a late one would strike
        return outcomes

    assert len(many()) == len(in_thread(many)) == 100
    assert threading.active_count() <= threads


def test_a_users_own_alarm_still_reaches_its_handler(monkeypatch):
    monkeypatch.setattr(time_limit, "SECONDS", 5)

    def own():
        before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("own")))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(3)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    with pytest.raises(TimeoutError, match="own"):
        time_limit.call_in_time(own)


@pytest.mark.parametrize(("text", "reason"), [("exit", r"SystemExit.*: 3"), ("", "CancelledError")])
def test_a_reward_that_exits_is_refused(text, reason):
    own = weighed([f"mine={__name__}:leaves"])
    with pytest.raises(BrokenReward, match=f"the reward mine raised {reason}"):
        earned(Rollout(text=text), SAMPLE, SPEC, own)


def test_a_module_that_exits_is_refused(tmp_path, monkeypatch):
    (tmp_path / "exits_at_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="mine=exits_at_import:fn: SystemExit: 0"):
        weighed(["mine=exits_at_import:fn"])


def test_the_time_limit_costs_a_reward_little(monkeypatch):
    own = weighed([f"mine={__name__}:endless"])
    begun = time.process_time()
    for _ in range(200):
        earned(Rollout(text="x"), SAMPLE, SPEC, own)
    assert (time.process_time() - begun) / 200 < 0.005
