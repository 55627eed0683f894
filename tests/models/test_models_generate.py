"""Greedy and drawn replies, and the log-probabilities of their tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import drawn, encoder_of
from vcot.models import generation
from vcot.models.decoding import Decoding
from vcot.models.generation import Generated, Step, generate
from vcot.models.loading import load_base
from vcot.storage.images import decode

GREEDY = Decoding(12)


@pytest.fixture(scope="module")
def model(toy_base: Path) -> Any:
    torch.set_num_threads(1)
    return load_base(toy_base, dtype="float32")


def prompts(encoder: Any, numbers: list[int]) -> dict[str, Any]:
    made = [drawn(number) for number in numbers]
    batch: dict[str, Any] = encoder.prompts(
        [sample for sample, _ in made], [[decode(data, sample.id).pixels] for sample, data in made]
    )
    return batch


def say(model: Any, encoder: Any, batch: dict[str, Any], decoding: Decoding = GREEDY) -> list[list[Generated]]:
    return generate(model, batch, decoding, eos_token_ids=encoder.eos_token_ids)


def ids(replies: list[list[Generated]]) -> list[list[list[int]]]:
    return [[draw.ids for draw in draws] for draws in replies]


def test_a_reply_is_the_most_likely_token_again_and_again(model: Any, toy_encoder: Any) -> None:
    """Held against a loop that computes everything anew for each token, without a cache."""
    batch = prompts(toy_encoder, [1])
    ((reply,),) = say(model, toy_encoder, batch)
    so_far, kinds = batch["input_ids"], batch["mm_token_type_ids"]
    expected, likely = list[int](), list[float]()
    with torch.no_grad():
        while len(expected) < 12 and not set(expected) & set(toy_encoder.eos_token_ids):
            logits = model(
                input_ids=so_far, attention_mask=torch.ones_like(so_far), mm_token_type_ids=kinds,
                pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            ).logits  # fmt: skip
            expected.append(int(logits[0, -1].argmax()))
            likely.append(float(logits[0, -1].log_softmax(-1).max()))
            so_far = torch.cat([so_far, torch.tensor([[expected[-1]]])], dim=1)
            kinds = torch.cat([kinds, torch.zeros(1, 1, dtype=torch.long)], dim=1)
    assert reply.ids == expected
    assert reply.logprobs == pytest.approx(likely, abs=1e-4)


def test_the_bases_own_way_of_sampling_is_not_used(model: Any, toy_encoder: Any) -> None:
    batch = prompts(toy_encoder, [1])
    plain = say(model, toy_encoder, batch)
    own = model.generation_config
    model.generation_config = type(own)(
        **{**own.to_dict(), "do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 3}
    )
    try:
        assert say(model, toy_encoder, batch) == plain
        assert model.generation_config.repetition_penalty == 9.0
    finally:
        model.generation_config = own


def test_a_draw_depends_on_the_seed_and_the_prompt_alone(model: Any, toy_encoder: Any) -> None:
    def drawn_from(numbers: list[int], **changes: Any) -> list[list[list[int]]]:
        decoding = Decoding(**({"max_new_tokens": 8, "temperature": 4.0, "samples": 3, "seed": 7} | changes))
        return ids(say(model, toy_encoder, prompts(toy_encoder, numbers), decoding))

    together = drawn_from([1, 2, 3])
    assert together == drawn_from([1, 2, 3])
    assert together == [draws for number in (1, 2, 3) for draws in drawn_from([number])]
    assert together[::-1] == drawn_from([3, 2, 1])
    assert [draws[:2] for draws in together] == drawn_from([1, 2, 3], samples=2)
    assert [[draw[:5] for draw in draws] for draws in together] == drawn_from([1, 2, 3], max_new_tokens=5)
    assert together != drawn_from([1, 2, 3], seed=8)
    assert len({tuple(draw) for draws in together for draw in draws}) > 6


def test_the_same_question_about_another_image_draws_by_other_numbers(model: Any, toy_encoder: Any) -> None:
    """Else all questions of a suite that are worded alike would be lucky together."""
    (one, data), (_, other) = drawn(2), drawn(2, size=(112, 112))
    batch = toy_encoder.prompts([one, one], [[decode(each, "a").pixels] for each in (data, other)])
    first, second = ids(say(model, toy_encoder, batch, Decoding(1, temperature=100.0, samples=20)))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 5


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_tempered_distribution_and_are_scored_by_the_models_own(
    model: Any, toy_encoder: Any, temperature: float
) -> None:
    batch = prompts(toy_encoder, [1])
    (draws,) = say(model, toy_encoder, batch, Decoding(1, temperature, samples=4000))
    with torch.no_grad():
        inputs = toy_encoder.family.model_inputs(batch)
        logits = model(**inputs).logits[0, -1].double()
    found = torch.bincount(torch.tensor([draw.ids[0] for draw in draws]), minlength=len(logits)) / 4000
    expected = (logits / temperature).softmax(-1)
    # 4000 draws from the right distribution are this far from it, on the average (of a binomial, in each place).
    by_chance = 0.5 * (expected * (1 - expected) * 2 / torch.pi / 4000).sqrt().sum()
    assert 0.5 * (found - expected).abs().sum() < 1.5 * by_chance
    own = logits.log_softmax(-1)
    assert all(draw.logprobs == pytest.approx([float(own[draw.ids[0]])], abs=1e-4) for draw in draws)


def test_a_draw_ends_at_its_own_end_token_and_not_with_the_batch(model: Any, toy_encoder: Any) -> None:
    batch = prompts(toy_encoder, [1, 2])
    decoding = Decoding(10, temperature=4.0, samples=4, seed=3)
    longest = [draw for draws in generate(model, batch, decoding, eos_token_ids=()) for draw in draws]
    end = longest[0].ids[2]
    cut = [draw for draws in generate(model, batch, decoding, eos_token_ids=(end,)) for draw in draws]
    for whole, part in zip(longest, cut, strict=True):
        length = whole.ids.index(end) + 1 if end in whole.ids else 10
        assert part.ids == whole.ids[:length]
        assert part.logprobs == pytest.approx(whole.logprobs[:length], abs=1e-5)
    assert len(cut[0].ids) <= 3


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_no_reply_holds_a_token_that_stands_for_an_image(model: Any, toy_encoder: Any, temperature: float) -> None:
    """The model reads one as an image of which there are no pixels, and the next pass over the reply fails."""
    image, video = toy_encoder.processor.image_token_id, toy_encoder.processor.video_token_id

    def likely(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([image, video]), 50.0)

    batch = prompts(toy_encoder, [1, 2])
    hook = model.get_output_embeddings().register_forward_hook(likely)
    try:
        replies = say(model, toy_encoder, batch, Decoding(12, temperature, samples=4 if temperature else 1))
    finally:
        hook.remove()
    assert not {image, video} & {token for draws in replies for draw in draws for token in draw.ids}
    # How likely the model finds what it says is not bent by what it may not say.
    assert all(value < -20 for draws in replies for draw in draws for value in draw.logprobs)


# --- somebody listens ----------------------------------------------------------------------------------


def test_a_listener_is_told_what_is_returned_as_it_comes(model: Any, toy_encoder: Any) -> None:
    batch = prompts(toy_encoder, [1, 2])
    decoding = Decoding(10, temperature=4.0, samples=4, seed=3)
    end = say(model, toy_encoder, batch, decoding)[0][0].ids[2]  # so that replies end at different places
    steps: list[Step] = []
    said = generate(model, batch, decoding, eos_token_ids=(end,), top=3, listener=lambda step: steps.append(step) or [])
    assert said == generate(model, batch, decoding, eos_token_ids=(end,))
    assert len({len(draw.ids) for draws in said for draw in draws}) > 1
    for number, draw in enumerate(draw for draws in said for draw in draws):
        told = [(step, step.replies.index(number)) for step in steps if number in step.replies]
        assert [step.ids[at] for step, at in told] == draw.ids
        assert [step.logprobs[at] for step, at in told] == draw.logprobs
        for step, at in told:
            likeliest = [value for _, value in step.top[at]]
            assert likeliest == sorted(likeliest, reverse=True)
            assert all(value <= likeliest[0] for value in [step.logprobs[at]])
            assert dict(step.top[at]).get(step.ids[at], step.logprobs[at]) == step.logprobs[at]


def test_a_reply_ends_where_its_listener_says_and_the_others_go_on(model: Any, toy_encoder: Any) -> None:
    batch = prompts(toy_encoder, [1, 2, 3])
    whole = [draw for (draw,) in generate(model, batch, GREEDY, eos_token_ids=())]
    steps: list[Step] = []

    def enough(step: Step) -> list[int]:
        steps.append(step)
        return [1] if len(steps) == 3 else [0, 1, 2] if len(steps) == 7 else []

    cut = [draw for (draw,) in generate(model, batch, GREEDY, eos_token_ids=(), listener=enough)]
    assert [draw.ids for draw in cut] == [whole[0].ids[:7], whole[1].ids[:3], whole[2].ids[:7]]
    assert not any(draw.ended for draw in cut)
    assert [len(step.replies) for step in steps] == [3] * 3 + [2] * 4  # and nothing is computed after the seventh


def test_each_prompt_may_have_a_seed_of_its_own(model: Any, toy_encoder: Any) -> None:
    batch, decoding = prompts(toy_encoder, [1, 1, 2]), Decoding(8, temperature=4.0, samples=2, seed=7)
    mixed = ids(generate(model, batch, decoding, eos_token_ids=(), seeds=[7, 8, 8]))
    (first, _, _), (_, second, third) = (
        ids(generate(model, batch, replace(decoding, seed=seed), eos_token_ids=())) for seed in (7, 8)
    )
    assert mixed == [first, second, third]
    assert first != second


# --- a rationale that is a turn of its own -------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(toy_base: Path) -> Any:
    return encoder_of(toy_base, roles=("rationale",))


def continued(batch: dict[str, Any], more: list[int]) -> dict[str, Any]:
    """A prompt and what was said after it."""
    wider = {"input_ids": torch.tensor([more]), "attention_mask": torch.ones(1, len(more), dtype=torch.long)}
    wider["mm_token_type_ids"] = torch.zeros_like(wider["input_ids"])
    return batch | {name: torch.cat([batch[name], each], dim=1) for name, each in wider.items()}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_behind_a_rationale_what_leads_to_the_answer_is_put_and_the_reply_goes_on(
    model: Any, encoder: Any, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against two plain generations, with what is put between them, by the numbers of one draw."""
    samples = 6 if temperature else 1
    decoding, between = Decoding(24, temperature, samples=samples, seed=5), encoder.between
    numbers, noise = [1, 2, 3], generation._noise
    first = [draw.ids for draws in generate(model, prompts(encoder, [1]), decoding, eos_token_ids=()) for draw in draws]
    ends = (first[0][4], first[-1][9])  # whatever is said soon
    found = generate(model, prompts(encoder, numbers), decoding, eos_token_ids=ends, between=between)
    seen = set()
    for number, draws in zip(numbers, found, strict=True):
        batch = prompts(encoder, [number])
        [prompt] = generation.prompts_of(model, batch)
        for draw, whole in enumerate(draws):

            def said(batch: dict[str, Any], used: int, draw: int = draw, prompt: Any = prompt) -> Generated:
                monkeypatch.setattr(generation, "_noise", lambda *_: noise(prompt, decoding)[draw : draw + 1, used:])
                once = Decoding(24 - used, temperature)
                [[one]] = generate(model, batch, once, eos_token_ids=ends)
                monkeypatch.undo()
                return one

            rationale = said(batch, 0)
            expected, likely, ended = rationale.ids, rationale.logprobs, rationale.ended
            if expected[-1] == ends[0]:
                expected = [*expected, *between][:24]
                likely, ended = [*likely, *[0.0] * (len(expected) - len(likely))], False
                if len(expected) < 24:
                    answer = said(continued(batch, expected), len(expected))
                    expected, likely, ended = expected + answer.ids, likely + answer.logprobs, answer.ended
            assert whole.ids == expected
            assert whole.logprobs == pytest.approx(likely, abs=1e-4)
            assert whole.ended == ended
            put = generation.put_there(whole.ids, ends, between)
            assert tuple(whole.ids[put.start : put.stop]) == between[: len(put)]
            seen.add((len(put), ended))
    assert (len(between), True) in seen or not temperature
    assert len(seen) > 1 or not temperature


def test_a_reply_that_ends_with_its_rationale_is_cut_off(model: Any, encoder: Any) -> None:
    batch = prompts(encoder, [1])
    [[plain]] = generate(model, batch, Decoding(8), eos_token_ids=())
    place = next(place for place in range(2, 8) if plain.ids[place] not in plain.ids[:place])
    end = (plain.ids[place],)
    for more, put in ((1, 0), (3, 2)):
        [[cut]] = generate(model, batch, Decoding(place + more), eos_token_ids=end, between=encoder.between)
        assert cut.ids == [*plain.ids[: place + 1], *encoder.between[:put]]
        assert not cut.ended
        assert len(generation.put_there(cut.ids, end, encoder.between)) == put


def test_a_prompt_that_is_past_its_rationale_goes_on_as_any_other(model: Any, encoder: Any, toy_base: Path) -> None:
    """Asked for the answer alone, or with a rationale that was given."""
    sample, data = drawn(1)
    images = [[decode(data, sample.id).pixels]]
    direct = encoder.prompts([sample], images, rationales=[False])
    assert (direct["input_ids"] == encoder_of(toy_base).prompts([sample], images)["input_ids"]).all()
    given = encoder.prompts([sample], images, prefixes=["It is there.\nAnswer:"])
    begun = encoder.said("It is there.\nAnswer:")
    assert given["input_ids"][0].tolist()[-len(begun) :] == begun
    end, head = encoder.eos_token_ids[0], model.get_output_embeddings().weight
    kept = head[end].clone()
    for batch in (direct, given):
        [[whole]] = generate(model, batch, GREEDY, eos_token_ids=())
        with torch.no_grad():
            head[end] = head[whole.ids[3]] * 1.01  # the end of a turn is said where its fourth token was
            try:
                plain = generate(model, batch, GREEDY, eos_token_ids=(end,))
                assert plain == generate(model, batch, GREEDY, eos_token_ids=(end,), between=encoder.between)
            finally:
                head[end] = kept
        [[cut]] = plain
        assert cut.ended
        assert len(cut.ids) < len(whole.ids)


def test_decodings_that_make_no_sense_are_refused() -> None:
    for changes, said in (
        ({"samples": 2}, "at temperature 0 all samples are alike"),
        ({"samples": 0}, "at least one token and one sample"),
        ({"max_new_tokens": 0}, "at least one token and one sample"),
        ({"temperature": -1.0}, "nothing may be below 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Decoding(**changes)
