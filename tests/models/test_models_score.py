"""Every family: replies and scores that share one pass over the prompt are those of a pass of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.fakes.families import KNOWN
from tests.training.toy import by_text, drawn
from vcot.models.branches import Branch, score_branches
from vcot.models.decoding import Decoding
from vcot.models.generation import generate, placeholders, score_continuations
from vcot.models.loading import load_base
from vcot.storage.images import decode
from vcot.tokens import Encoder, contract_of, load_processor, native_frame

torch.set_num_threads(1)
every_family = pytest.mark.parametrize("model_type", KNOWN)
Asked = list[tuple[Any, list[Any]]]
CONTINUATIONS = [[[5, 6, 7, 8], [9], [5, 6, 10]], [[11, 12]], [], [[13], [], [14, 15, 16, 17, 18]]]


@pytest.fixture
def loaded(family_base: Callable[[str], Path], model_type: str) -> tuple[Any, Encoder]:
    base = family_base(model_type)
    processor = load_processor(base, min_pixels=56 * 56, max_pixels=448 * 448)
    contract = contract_of(processor, mode="multimodal", frame=native_frame(base), max_length=2048)
    model = load_base(base, dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():  # with the head it is made with, its embeddings, it says its input again whatever it sees
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(model.lm_head.weight.shape))
        for value in model.parameters():
            value.add_(0.03 * torch.randn(value.shape))
    return model, Encoder(processor, contract)


def questions() -> Asked:
    """Of unlike length: one about an image, one by text alone, one about two images, one about a wider image."""
    (one, first), (other, second), (wide, third) = drawn(1), drawn(2), drawn(3, size=(224, 84))
    seen = [decode(data, "image").pixels for data in (first, second, third)]
    two = other.model_copy(update={"images": (*other.images, *one.images), "evidence": None})
    return [(one, seen[:1]), (by_text(7), []), (two, [seen[1], seen[0]]), (wide, [seen[2]])]


def batch_of(encoder: Encoder, asked: Asked) -> dict[str, Any]:
    samples, images = zip(*asked, strict=True)
    return encoder.prompts(samples, images)


def alone(model: Any, encoder: Encoder, one: tuple[Any, list[Any]], continuation: list[int]) -> list[float]:
    """By one pass over prompt and continuation, without a cache, at the model's own positions."""
    batch = batch_of(encoder, [one])
    length, more = batch["input_ids"].shape[1], torch.tensor([continuation], dtype=torch.long)
    for name, value in (("input_ids", more), ("attention_mask", more * 0 + 1), ("mm_token_type_ids", more * 0)):
        batch[name] = torch.cat([batch[name], value], dim=1)
    with torch.no_grad():
        said = model(**encoder.family.model_inputs(batch)).logits[0].log_softmax(-1)
    return [float(said[length + place - 1, token]) for place, token in enumerate(continuation)]


@every_family
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [0, 3], [1]])
def test_scores_are_those_of_a_full_pass_over_each_alone(
    loaded: tuple[Any, Encoder], model_type: str, chosen: list[int]
) -> None:
    model, encoder = loaded
    asked, wanted = [questions()[i] for i in chosen], [CONTINUATIONS[i] for i in chosen]
    for _ in range(2):  # what the model keeps of an earlier batch must not matter
        found = score_continuations(model, batch_of(encoder, asked), wanted)
        expected = [
            [alone(model, encoder, one, each) for each in each_of] for one, each_of in zip(asked, wanted, strict=True)
        ]
        assert [[len(each) for each in several] for several in found] == [
            [len(e) for e in several] for several in wanted
        ]
        for ours, theirs in zip(found, expected, strict=True):
            for mine, their in zip(ours, theirs, strict=True):
                assert mine == pytest.approx(their, abs=1e-4)


@every_family
def test_what_follows_several_beginnings_of_a_reply_is_scored_as_after_each_alone(
    loaded: tuple[Any, Encoder], model_type: str
) -> None:
    model, encoder = loaded
    begun = [(0, [21, 22, 23]), (0, [24]), (3, [25, 26]), (1, [27, 28, 29, 30])]
    found = score_continuations(model, batch_of(encoder, questions()), CONTINUATIONS, begun)
    for (row, said), several, scores in zip(begun, CONTINUATIONS, found, strict=True):
        for continuation, score in zip(several, scores, strict=True):
            expected = alone(model, encoder, questions()[row], said + continuation)[len(said) :]
            assert score == pytest.approx(expected, abs=1e-4)


@every_family
def test_the_prompt_is_computed_once_and_logits_for_the_continuations_alone(
    loaded: tuple[Any, Encoder], model_type: str
) -> None:
    model, encoder = loaded
    batch = batch_of(encoder, questions())
    rows, width = batch["input_ids"].shape
    text, vision, head = list[Any](), list[Any](), list[Any]()
    tower = model.model.vision_tower if model_type == "internvl" else model.model.visual
    hooks = [
        model.model.language_model.register_forward_hook(lambda *given: text.append(tuple(given[-1][0].shape[:2]))),
        tower.register_forward_hook(lambda *_: vision.append(1)),
        model.lm_head.register_forward_hook(lambda *given: head.append(given[-1].numel() // given[-1].shape[-1])),
    ]
    score_continuations(model, batch, CONTINUATIONS)
    assert (text, vision, head) == ([(rows, width), (7, 4)], [1], [rows, 3 + 2 + 1 + 4])
    text.clear()
    generate(model, batch, Decoding(3, temperature=1.0, samples=5), eos_token_ids=())
    assert text == [(rows, width), (5 * rows, 1), (5 * rows, 1)]
    for hook in hooks:
        hook.remove()


@every_family
def test_greedy_replies_are_the_librarys_own_and_score_as_they_were_said(
    loaded: tuple[Any, Encoder], model_type: str
) -> None:
    model, encoder = loaded
    batch = batch_of(encoder, questions())
    config = GenerationConfig(
        do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=[len(encoder.processor.tokenizer) - 1],
        suppress_tokens=placeholders(model.config),
    )  # fmt: skip
    theirs = model.generate(**encoder.family.model_inputs(batch), generation_config=config)
    ours = generate(model, batch, Decoding(12), eos_token_ids=config.eos_token_id)
    assert [reply.ids for (reply,) in ours] == theirs[:, batch["input_ids"].shape[1] :].tolist()
    assert len({token for (reply,) in ours for token in reply.ids}) > 6
    drawn_ones = generate(model, batch, Decoding(6, temperature=0.7, samples=3), eos_token_ids=())
    scores = score_continuations(model, batch, [[draw.ids for draw in draws] for draws in drawn_ones])
    for draws, found in zip(drawn_ones, scores, strict=True):
        for draw, score in zip(draws, found, strict=True):
            assert draw.logprobs == pytest.approx(score, abs=1e-4)


def test_continuations_of_another_number_of_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 lists of continuations for 2 prompts"):
        score_continuations(None, {"input_ids": torch.zeros(2, 3)}, [[[1]]])


# --- branches ----------------------------------------------------------------------------------------------

END, BETWEEN = 3, (17, 18)
BRANCHES = [
    Branch(0, (5, 6, 7, 8, 9, 10, 11), (0, 2, 4, 7), (20, 21, 22)), Branch(0, (), (0,), (20, 21, 22)),
    Branch(2, (12, 13, 14), (0, 1, 2, 3), (23,)), Branch(1, (15, 16), (2,), (24, 25)),
    Branch(0, (5, 6, 40), (3,), (30, 31, 32, 33)),
]  # fmt: skip
"""Of unlike lengths, with answers of unlike lengths, stops at both ends and an empty rationale."""


@every_family
@pytest.mark.parametrize("branch_tokens", [1, 40, 4096])
def test_branches_are_those_of_a_full_pass_over_each_alone(
    loaded: tuple[Any, Encoder], model_type: str, branch_tokens: int
) -> None:
    model, encoder = loaded
    asked = questions()
    with torch.no_grad():
        found = score_branches(
            model, BRANCHES, end=END, between=BETWEEN, branch_tokens=branch_tokens, **batch_of(encoder, asked)
        )
    for row, branch in enumerate(BRANCHES):
        one, length = asked[branch.row], len(branch.ids)
        assert found.tokens[row, :length].tolist() == pytest.approx(alone(model, encoder, one, [*branch.ids]), abs=2e-4)
        assert not found.tokens[row, length:].any()
        ends = [alone(model, encoder, one, [*branch.ids[:t], END])[-1] for t in range(length + 1)]
        assert found.ends[row, : length + 1].tolist() == pytest.approx(ends, abs=2e-4)
        answers = [
            sum(alone(model, encoder, one, [*branch.ids[:t], END, *BETWEEN, *branch.answer])[-len(branch.answer) :])
            for t in branch.stops
        ]
        assert found.answers[row] == pytest.approx(answers, abs=5e-4)


def test_gradients_through_the_shared_prompt_are_those_of_separate_passes(toy_base: Path, toy_encoder: Any) -> None:
    """With adapters, and logits in parts that are computed twice."""
    from vcot.models import branches
    from vcot.models.loading import attach_lora, whole_model

    torch.manual_seed(0)
    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in learned.values():
        value.data.normal_(0, 0.05)
    asked = questions()
    weights = torch.linspace(-1, 1, 8)

    def gradients(total: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        total.backward()
        return {name: value.grad.clone() for name, value in learned.items() if value.grad is not None}

    def shared(chunk: int) -> dict[str, torch.Tensor]:
        branches.CHUNK = chunk
        batch = batch_of(toy_encoder, asked)
        found = model(**batch, want=lambda inner, **given: score_branches(inner, BRANCHES, end=END, **given))
        return gradients((found.tokens * weights[: found.tokens.shape[1]]).sum() + found.ends[:, 0].sum())

    def apart() -> dict[str, torch.Tensor]:
        total = torch.zeros(())
        for branch in BRANCHES:
            batch = batch_of(toy_encoder, [asked[branch.row]])
            length, more = batch["input_ids"].shape[1], torch.tensor([[*branch.ids]], dtype=torch.long)
            for name, value in (("input_ids", more), ("attention_mask", more * 0 + 1), ("mm_token_type_ids", more * 0)):
                batch[name] = torch.cat([batch[name], value], dim=1)
            said = whole_model(model)(**toy_encoder.family.model_inputs(batch)).logits[0].log_softmax(-1)
            total = total + said[length - 1, END]
            for place, token in enumerate(branch.ids):
                total = total + weights[place] * said[length + place - 1, token]
        return gradients(total)

    expected, whole = apart(), branches.CHUNK
    try:
        for chunk in (whole, 5 * model.config.text_config.vocab_size):
            found = shared(chunk)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert (found[name] - value).abs().max() < 1e-5 * max(1, float(value.abs().max())), name
    finally:
        branches.CHUNK = whole
