"""A rationale that is a turn of its own: what of it is learned, and that its text and its ids are the same thing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from tests.tokens.base import SYSTEM, WHERE, encoder, sample
from vcot.errors import InputError
from vcot.grounding import Trace
from vcot.grounding.ways import LearnedWay
from vcot.records import Contract
from vcot.records.example import ALONE, IGNORED, Example
from vcot.records.sample import Turn
from vcot.storage import images
from vcot.tokens import Encoder
from vcot.tokens.rows import check_mask, learned_replies, pieces, reply_begins, view

WAYS: tuple[LearnedWay, ...] = ("direct", "reason", "ground")
REASONING = "The <ref>red disc</ref><box>[100, 100, 300, 300]</box> is at the top left."


@pytest.fixture(scope="module")
def coder(processor: Any) -> Encoder:
    return encoder(processor, roles=("rationale",), ways=WAYS)


def made(coder: Encoder, **changes: Any) -> Example:
    found = coder.example(sample(**changes), 0, *shown(coder))
    assert isinstance(found, Example)
    return found


def shown(coder: Encoder, count: int = 1) -> Any:
    from tests.tokens.base import png

    return [images.decode(png(), "a.png")] * count, [png()] * count


def check(found: Example, processor: Any) -> None:
    check_mask(found, processor, ("rationale",))


def ids_of(processor: Any, text: str) -> tuple[int, ...]:
    return tuple(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_rationale_and_its_end_are_learned_and_what_leads_to_the_answer_is_not(
    coder: Encoder, processor: Any
) -> None:
    found = made(coder)
    check(found, processor)
    text = [processor.tokenizer.decode(list(found.ids[first:end])) for first, end in learned_replies(found.labels)]
    assert text == [f"{REASONING}<|im_end|>", "Answer: top left<|im_end|>\n"]
    assert processor.tokenizer.decode(list(found.ids)) == (
        f"{SYSTEM}<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 12}<|vision_end|>"
        f"Where is the red disc?<|im_end|>\n<|im_start|>rationale\n"
        f"{REASONING}<|im_end|>\n<|im_start|>assistant\nAnswer: top left<|im_end|>\n"
    )
    assert coder.between == ids_of(processor, "\n<|im_start|>assistant\n")
    (first, end), (answer, _) = learned_replies(found.labels)
    assert found.ids[end:answer] == coder.between
    assert found.labels[end:answer] == (IGNORED,) * len(coder.between)
    assert all(a in (b, IGNORED) for a, b in zip(found.labels, found.ids, strict=True))
    prompt = coder.prompts([sample()], [[PILImage.new("RGB", (320, 240))]])["input_ids"][0].tolist()
    assert list(found.ids[:first]) == prompt


def test_an_answer_alone_has_no_such_turn_and_a_question_alone_ends_where_its_reply_begins(
    coder: Encoder, processor: Any
) -> None:
    plain = encoder(processor, ways=WAYS)
    direct = coder.example(sample(), 0, *shown(coder), "direct")
    assert direct == plain.example(sample(), 0, *shown(coder), "direct")
    assert isinstance(direct, Example)
    check(direct, processor)
    alone = coder.example(sample(), ALONE, *shown(coder))
    assert isinstance(alone, Example)
    check(alone, processor)
    found = made(coder)
    assert alone.ids == found.ids[: reply_begins(found.labels, rationale=True)]
    with pytest.raises(InputError, match="a question alone must end behind the assistant's header"):
        check_mask(alone, processor)


def test_without_the_role_nothing_is_between(processor: Any) -> None:
    plain = encoder(processor)
    assert plain.between == ()
    assert "roles" not in plain.contract.model_dump()
    assert plain.said("A\nAnswer: b") == plain.said("A\n") + plain.said("Answer: b")
    found = encoder(processor, roles=("rationale",)).contract
    assert Contract.model_validate_json(found.model_dump_json()) == found


def test_texts_are_tokenised_ahead_turn_by_turn(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = encoder(processor, roles=("rationale",), ways=WAYS)
    wanted = [coder.example(sample(), 0, *shown(coder), way) for way in WAYS]
    coder.tokenize_ahead([sample()])
    monkeypatch.setattr(coder, "_plain_tokenizer", None)
    assert [coder.example(sample(), 0, *shown(coder), way) for way in WAYS] == wanted


def test_earlier_turns_stay_as_they_are(coder: Encoder, processor: Any) -> None:
    first = Trace(("How many\nAnswer: discs?",))
    row = sample(turns=(Turn(role="user", said=first, images=1), Turn(role="assistant", said=first, learned=True)))
    found, plain = (one.example(row, 0, *shown(coder)) for one in (coder, encoder(processor, ways=WAYS)))
    assert isinstance(found, Example)
    assert isinstance(plain, Example)
    check(found, processor)
    runs = learned_replies(found.labels)
    assert len(runs) == 3
    assert learned_replies(plain.labels)[0] == runs[0]
    begins = reply_begins(found.labels, rationale=True)
    assert begins == runs[1][0]
    own, usual = (ids_of(processor, f"<|im_start|>{role}\n") for role in ("rationale", "assistant"))
    prompt = plain.ids[: reply_begins(plain.labels, rationale=False)]
    assert prompt[-len(usual) :] == usual
    assert found.ids[:begins] == prompt[: -len(usual)] + own
    batch = coder.prompts([row], [[PILImage.new("RGB", (320, 240))]], pointing=(coder.contract.frame_spec, "vcot"))
    assert batch["input_ids"][0].tolist() == list(found.ids[:begins])


def moved(found: Example, first: int, end: int, *replaced: int) -> dict[str, Any]:
    """With these labels in the place of some."""
    return {"labels": (*found.labels[:first], *replaced, *found.labels[end:])}


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda f, a, b, c: moved(f, b, c, *f.ids[b:c]), "begins behind '', not behind the rationale's header"),
        (lambda f, a, b, c: moved(f, a - 1, a, f.ids[a - 1]), "not behind the rationale's header"),
        (lambda f, a, b, c: moved(f, a, b, *[IGNORED] * (b - a)), "begins behind '', not behind the rationale's"),
        (lambda f, a, b, c: moved(f, b - 1, b, IGNORED), "the rationale ends with .* top left.'; one"),
        (lambda f, a, b, c: moved(f, b, b + 1, f.ids[b]), "one <|im_end|>, and no other control token, is right"),
        (lambda f, a, b, c: moved(f, c - 1, c, f.ids[c - 1]), "between rationale and answer stands"),
        (lambda f, a, b, c: moved(f, c, c + 1, IGNORED), "between rationale and answer stands"),
        (lambda f, a, b, c: moved(f, c, len(f.ids), *[IGNORED] * (len(f.ids) - c)), "not one piece up to the end"),
        (lambda f, a, b, c: {"way": "direct"}, "not behind the assistant's header"),
    ],
)  # fmt: skip
def test_a_wrong_mask_is_refused(coder: Encoder, processor: Any, harm: Any, line: str) -> None:
    found = made(coder)
    (first, end), (answer, _) = learned_replies(found.labels)
    check(found, processor)
    with pytest.raises(InputError, match=line.replace("|", r"\|")):
        check(replace(found, **harm(found, first, end, answer)), processor)
    with pytest.raises(InputError):
        check_mask(found, processor)  # by a contract without the role
    plain = encoder(processor).example(sample(), 0, *shown(coder))
    assert isinstance(plain, Example)
    with pytest.raises(InputError, match="not behind the rationale's header"):
        check(plain, processor)


def test_the_page_shows_both_turns(coder: Encoder, processor: Any) -> None:
    found = made(coder)
    one = view(found, (320, 240), coder.contract, processor)
    assert one.learned == f"{REASONING}\nAnswer: top left"
    assert one.parsed.boxes == WHERE.boxes
    green = "".join(piece.text for piece in pieces(found, processor) if piece.learned)
    assert green == f"{REASONING}<|im_end|>Answer: top left<|im_end|>\n"


# --- text and ids --------------------------------------------------------------------------------------


def test_a_whole_reply_is_one_text(coder: Encoder, processor: Any) -> None:
    found = made(coder)
    begins, text = reply_begins(found.labels, rationale=True), f"{REASONING}\nAnswer: top left"
    assert coder.decode(found.ids[begins:]) == text
    assert coder.said(text, ended=True) == list(found.ids[begins:-1])  # without the line break behind it
    (first, end), (answer, _) = learned_replies(found.labels)
    assert coder.said(f"{REASONING}\nAnswer:") + coder.said(" top left", ended=True, rationale=False) == list(
        found.ids[first:-1]
    )
    assert coder.said(REASONING, ended=True) == list(found.ids[first:end])
    assert coder.decode(found.ids[first : answer - 1]) == REASONING
    assert coder.said("Answer: top left", ended=True) == list(found.ids[answer:-1])
    assert coder.said(text, rationale=False) == encoder(processor).said(text)


TEXTS = st.lists(
    st.sampled_from(["\n", "Answer:", " red", "**The answer: ", "a disc.", "<|im_end|>", " ", "答え", "<answer>"]),
    max_size=7,
).map("".join)


@given(TEXTS, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
def test_text_becomes_ids_and_the_same_text_again(coder: Encoder, text: str, ended: bool) -> None:
    assert coder.decode(coder.said(text, ended=ended)) == text
    assert coder.decode(coder.said(text, ended=ended, rationale=False)) == text


# --- which bases can -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "assistant of the assistant"])
def test_a_template_that_does_not_name_the_assistant_once_is_refused(processor: Any, name: str) -> None:
    other = copy.deepcopy(processor)
    text = str(other.chat_template or other.tokenizer.chat_template).replace(
        "<|im_start|>assistant", f"<|im_start|>{name}"
    )
    role = f"'{name}' if message['role'] == 'assistant' else message['role']"
    other.chat_template = other.tokenizer.chat_template = text.replace("{{ message['role'] }}", f"{{{{ {role} }}}}")
    encoder(other)
    with pytest.raises(InputError, match=r'--roles rationale: .* should name the role "assistant" there, once'):
        encoder(other, roles=("rationale",))
