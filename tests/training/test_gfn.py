"""Sampling rationales in proportion to how well they explain the answer, with the real classes and checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import COUNT, Died, config, drawn, encoder_of, in_rounds, questions, weights
from vcot.errors import GateFailed, InputError, SettingsError
from vcot.grounding import Trace
from vcot.grounding.tags import render
from vcot.records.rollout import Rollout
from vcot.storage import Store
from vcot.training.config import GFNOptions


@pytest.fixture(scope="module")
def encoder(toy_base: Path) -> Any:
    return encoder_of(toy_base, roles=("rationale",))


def options(**changes: Any) -> GFNOptions:
    usual = {"num_generations": 3, "questions_per_step": 2, "max_completion_length": 24, "reward_stride": 4,
             "reward_floor": 0.0}  # fmt: skip
    return GFNOptions(**usual | changes)


def learn(
    base: Path, encoder: Any, scratch: Path, given: GFNOptions | None = None, **changes: Any
) -> tuple[Any, dict[int, list[Rollout]]]:
    """The result, and the rationales of each step."""
    from vcot.training.gfn import learn_to_sample

    return in_rounds(learn_to_sample, given or options(), base, encoder, scratch, **{"batch_tokens": 800} | changes)


def lines(result: Any) -> list[tuple[Any, ...]]:
    """Of each step, what must be the same twice."""
    names = ("step", "loss", "grad_norm", "reward", "entropy", "boxes", "distinct", "log_z", "replayed", "kl")
    return [tuple(line.get(name) for name in names) for line in result.history if "loss" in line]


# --- a training ----------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_to_the_same_numbers(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    """Also with rationales that are learned from again: every question is asked more than once."""
    given = options(replay_share=0.6, explore_share=0.5)
    whole, kept = learn(toy_base, encoder, tmp_path / "whole", given, max_steps=7)
    with pytest.raises(Died):
        learn(toy_base, encoder, tmp_path / "killed", given, die_at=4, max_steps=7)
    again, rest = learn(toy_base, encoder, tmp_path / "killed", given, max_steps=7)
    assert lines(again) == lines(whole)
    assert any(line.get("replayed") for line in whole.history)
    assert all((value == weights(whole)[name]).all() for name, value in weights(again).items())
    assert all(kept[step] == each for step, each in rest.items())


def test_what_is_in_memory_at_once_changes_nothing(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    whole, _ = learn(toy_base, encoder, tmp_path / "whole", batch_tokens=4000)
    parts, _ = learn(toy_base, encoder, tmp_path / "parts", options(generation_batch_size=3), batch_tokens=200)
    for ours, theirs in zip(lines(whole), lines(parts), strict=True):
        assert [x for x in ours if x is not None] == pytest.approx([x for x in theirs if x is not None], rel=2e-3)


def test_it_goes_on_from_an_adapter_which_stays_what_rewards_are_of(
    toy_base: Path, encoder: Any, tmp_path: Path
) -> None:
    from vcot.models.branches import as_it_was
    from vcot.training.publish import save_adapter

    first, _ = learn(toy_base, encoder, tmp_path / "first", max_steps=2, learning_rate=1e-2)
    save_adapter(first.model, tmp_path / "adapter")
    second, _ = learn(toy_base, encoder, tmp_path / "second", adapter=tmp_path / "adapter", learning_rate=1e-2)
    asked = questions(encoder, tmp_path / "asked")
    batch = encoder.family.model_inputs(asked.prompts([0, 1]))
    with torch.no_grad():
        began = first.model(**batch).logits
        ended = second.model(**batch).logits
        with as_it_was(second.model):
            as_was = second.model(**batch).logits
        after = second.model(**batch).logits
        with as_it_was(first.model):
            without = first.model(**batch).logits
    assert (as_was - began).abs().max() < 1e-5
    assert (ended - began).abs().max() > 1e-3
    assert (after == ended).all()
    assert (without - began).abs().max() > 1e-3
    assert {name for name, value in second.model.named_parameters() if value.requires_grad} == set(weights(second))
    assert not any("reference" in name for name in weights(second))


def test_one_that_no_rationale_has_written_for_is_learned_from_too(
    toy_base: Path, encoder: Any, tmp_path: Path
) -> None:
    _, kept = learn(toy_base, encoder, tmp_path, reasonings=0)
    assert {len(each) for each in kept.values()} == {6}


# --- rewards -------------------------------------------------------------------------------------------------


def trainer_of(base: Path, encoder: Any, scratch: Path, given: GFNOptions, samples: Any = None) -> Any:
    """A trainer with adapters that have been moved, ready to judge."""
    from vcot.models.loading import attach_lora, load_base
    from vcot.stage import Bar
    from vcot.training.checkpoints import Checkpoints
    from vcot.training.engine import RunContext
    from vcot.training.gfn import GFNTrainer
    from vcot.training.questions import Curriculum
    from vcot.training.setup import training_arguments

    torch.manual_seed(0)
    model = attach_lora(load_base(base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    for value in model.parameters():
        if value.requires_grad:
            value.data.normal_(0, 0.05)
    asked = questions(encoder, scratch, samples=samples)
    context, settings = RunContext(scratch), config(tune="lora", lora_dropout=0.0, batch_tokens=800, max_steps=1)
    return GFNTrainer(
        model, training_arguments(settings, context, steps=1, accumulation=1, evaluating=False, checkpointing=False),
        encoder=encoder, questions=asked, options=given, curriculum=Curriculum(asked, 1, by_success=False),
        questions_per_step=2, compute=torch.float32, start=0, keep=lambda *_: None, config=settings, context=context,
        checkpoints=Checkpoints(Store(), str(scratch / "kept"), scratch / "local"), epoch=float, batches_per_step=1,
        bar=Bar("train", 1, "steps", shown=False),
    )  # fmt: skip


def judged(trainer: Any, *rationales: tuple[int, str]) -> list[Any]:
    from vcot.training.replay import Trajectory

    said = [Trajectory(n, tuple(trainer.encoder.said(text)), torch.zeros(0)) for n, text in rationales]
    return list(trainer._judged(said, {n: trainer._asked(n, 0) for n, _ in rationales}))


def by_hand(trainer: Any, number: int, ids: Any, answer: str) -> float:
    """log P(z_1:t end, answer end | question) by one plain pass, with the adapters off."""
    asked, encoder = trainer.questions, trainer.encoder
    end = encoder.eos_token_ids[0]
    batch = asked.prompts([number])
    own = [*ids, end]
    last = [*encoder._plain(f"Answer: {answer}"), end]
    said = torch.tensor([[*own, *encoder.between, *last]])
    length = batch["input_ids"].shape[1]
    for name, more in (("input_ids", said), ("attention_mask", said * 0 + 1), ("mm_token_type_ids", said * 0)):
        batch[name] = torch.cat([batch[name], more], dim=1)
    with torch.no_grad(), trainer.model.disable_adapter():
        likely = trainer.model(**encoder.family.model_inputs(batch)).logits[0].log_softmax(-1)
    counted = [*range(len(own)), *range(len(own) + len(encoder.between), said.shape[1])]
    return sum(float(likely[length + place - 1, said[0, place]]) for place in counted)


def test_the_reward_of_every_prefix_is_that_of_a_pass_of_its_own(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    """The end counts once, and what another rationale of the batch is longer by counts nothing."""
    trainer = trainer_of(toy_base, encoder, tmp_path, options(reward_stride=1, box_weight=0.0))
    short, long = "The square.", "I see a red square and, beside it, another one that is blue."
    found = judged(trainer, (0, short), (0, long), (3, short))
    for number, one in zip((0, 0, 3), found, strict=True):
        answer = trainer.questions.sample(number).answers[0]
        expected = [by_hand(trainer, number, one.ids[:t], answer) for t in range(len(one.ids) + 1)]
        assert one.log_reward.tolist() == pytest.approx(expected, abs=2e-3)
    (alone,) = judged(trainer, (0, short))
    assert (alone.log_reward - found[0].log_reward).abs().max() < 1e-3


def test_what_was_said_twice_counts_twice(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    trainer = trainer_of(toy_base, encoder, tmp_path, options(box_weight=0.0, across_weight=0.0))
    one, other = judged(trainer, (0, "The square."), (0, "I see a red square."))
    twice = trainer._learn(trainer.model, [one, other, one], [1.0] * 3, 0)
    alone = [trainer._learn(trainer.model, [each], [1.0], 0) for each in (one, other)]
    assert float(twice) == pytest.approx(float(2 * alone[0] + alone[1]) / 3, rel=1e-4)


def test_whole_rationales_are_held_against_those_of_the_same_question_alone(
    toy_base: Path, encoder: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(toy_base, encoder, tmp_path, options(box_weight=0.0, across_weight=2.0))
    plain = trainer_of(toy_base, encoder, tmp_path / "plain", options(box_weight=0.0, across_weight=0.0))
    said = judged(trainer, (0, "The square."), (0, "I see a red square."), (1, "The square."))
    more, less = (float(one._learn(one.model, said, [1.0] * 3, 0)) for one in (trainer, plain))
    # By how many nats each is drawn too seldom; of the third there is no other to be held against.
    apart = trainer._too_seldom[said[0].key] - trainer._too_seldom[said[1].key]
    assert more - less == pytest.approx(2 * (apart**2 / 2) / 3, rel=1e-3)
    assert apart**2 > 0.1


def test_another_answer_is_another_reward(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    samples = [drawn(number)[0] for number in range(COUNT)]
    other = [one.model_copy(update={"answers": ("zebra",)}) for one in samples]
    first = trainer_of(toy_base, encoder, tmp_path / "one", options(box_weight=0.0), samples)
    second = trainer_of(toy_base, encoder, tmp_path / "two", options(box_weight=0.0), other)
    text = "The square is there."
    assert judged(first, (0, text))[0].worth - judged(second, (0, text))[0].worth > 1


def test_between_stops_only_the_answers_likelihood_is_a_guess(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    text = "I see a red square and, beside it, another one that is blue."
    exact, coarse = (
        judged(trainer_of(toy_base, encoder, tmp_path / str(stride), options(reward_stride=stride, box_weight=0.0)),
               (0, text))[0]
        for stride in (1, 5)
    )  # fmt: skip
    apart = (exact.log_reward - coarse.log_reward).abs()
    assert apart[::5].max() < 1e-3
    assert apart[-1] < 1e-3
    assert apart.max() > 1e-2


def test_who_points_elsewhere_or_nowhere_is_worth_less(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    trainer = trainer_of(toy_base, encoder, tmp_path, options(reward_floor=0.01))
    plain = trainer_of(toy_base, encoder, tmp_path / "plain", options(reward_floor=0.01, box_weight=0.0))
    sample = trainer.questions.sample(1)
    label, (box,) = sample.evidence[0].label, sample.evidence[0].boxes
    frame = sample.frame(trainer.spec)
    from vcot.grounding import Box, Mention

    away = Box(0, 0, 10, 10) if box.x1 > 20 else Box(sample.image.width - 10, sample.image.height - 10, sample.image.width, sample.image.height)  # fmt: skip  # noqa: E501
    texts = [render(Trace(("The ", Mention(label, (where,)), " is there.")), frame) for where in (box, away)]
    texts.append(f"The {label} is there.")
    lost = [
        before.worth - with_boxes.worth
        for before, with_boxes in zip(
            judged(plain, *[(1, t) for t in texts]), judged(trainer, *[(1, t) for t in texts]), strict=True
        )
    ]
    assert lost[0] < lost[1] - 1
    assert lost[1] <= -math.log(0.01) + 1e-3
    assert lost[2] == pytest.approx(-math.log(0.01), abs=1e-3)


def test_prefix_rewards_use_boxes_of_the_prefix(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    """A prefix that ends before its first box earns the floor, although the complete rationale points right."""
    trainer = trainer_of(toy_base, encoder, tmp_path, options(reward_stride=1, reward_floor=0.01))
    plain = trainer_of(toy_base, encoder, tmp_path / "plain", options(reward_stride=1, reward_floor=0.01, box_weight=0))
    sample = trainer.questions.sample(1)
    first, second = sample.evidence
    text = render(Trace(("The ", first, " and the ", second, " are there.")), sample.frame(trainer.spec))
    (with_boxes,), (without,) = (judged(each, (1, text)) for each in (trainer, plain))
    earned = (with_boxes.log_reward - without.log_reward).tolist()
    boxes = [encoder.decode(with_boxes.ids[:length]).count("</box>") for length in range(len(earned))]
    assert set(boxes) == {0, 1, 2}
    # F1 of n of two annotated boxes: precision 1, recall n / 2. Coordinates are rounded to thousandths.
    f1 = {0: 0.01, 1: 2 / 3, 2: 1.0}
    assert earned == pytest.approx([math.log(f1[count]) for count in boxes], abs=0.05)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_reward_temperature_divides_the_learned_log_rewards(
    toy_base: Path, encoder: Any, tmp_path: Path, temperature: float
) -> None:
    changes = {"box_weight": 0.0, "reward_temperature_start": temperature, "reward_temperature_end": temperature}
    tempered, plain = (
        trainer_of(toy_base, encoder, tmp_path / name, options(**more))
        for name, more in (("tempered", changes), ("plain", {"box_weight": 0.0}))
    )
    rationales = judged(plain, (0, "The square."), (0, "I see a red square."))
    divided = [replace(each, log_reward=each.log_reward / temperature) for each in rationales]
    expected = float(plain._learn(plain.model, divided, [1.0] * 2, 0))
    assert float(tempered._learn(tempered.model, rationales, [1.0] * 2, 0)) == pytest.approx(expected, rel=1e-4)
    assert float(plain._learn(plain.model, rationales, [1.0] * 2, 0)) != pytest.approx(expected, rel=0.1)


def test_rationale_at_the_limit_ends_without_a_choice(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    """The loss takes log q(end) = 0 there, and compares all pairs of prefixes."""
    text = "I see a red square."
    limit = len(encoder.said(text))
    given = options(max_completion_length=limit, box_weight=0.0, across_weight=0.0)
    trainer = trainer_of(toy_base, encoder, tmp_path, given)
    (rationale,) = judged(trainer, (0, text))
    loss = float(trainer._learn(trainer.model, [rationale], [1.0], 0))
    with torch.no_grad():
        scored = trainer._scored(trainer.model, [rationale], None)
    assert scored.ends[0, limit] < -0.1
    drawn_likely = [float(scored.tokens[0, :length].sum()) for length in range(limit + 1)]
    ends = [*scored.ends[0, :limit].tolist(), 0.0]
    too_seldom = [r - t - e for r, t, e in zip(rationale.log_reward.tolist(), drawn_likely, ends, strict=True)]
    pairs = [(x - y) ** 2 for x, y in combinations(too_seldom, 2)]
    assert loss == pytest.approx(sum(pairs) / len(pairs), rel=1e-3)


def test_what_is_impossible_is_worth_a_bounded_nothing_and_counted(
    toy_base: Path, encoder: Any, tmp_path: Path
) -> None:
    from vcot.models.branches import Scored
    from vcot.training.gfn import LEAST
    from vcot.training.replay import Trajectory

    trainer = trainer_of(toy_base, encoder, tmp_path, options(reward_stride=1, box_weight=0.0))
    tokens, ends = torch.tensor([[-1.0, -math.inf]]), torch.tensor([[-1.0, -1.0, -1.0]])
    never = Scored(tokens, ends, torch.zeros(1, 3), [[-1.0, -math.inf, -1.0]])
    one = trainer._reward(Trajectory(0, (5, 6), torch.zeros(0)), never, 0)
    assert one.log_reward.tolist() == [-2.0, LEAST, LEAST]


def test_too_short_rationales_are_worth_nothing(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    text = "The square is there."
    usual, long = (
        judged(
            trainer_of(toy_base, encoder, tmp_path / str(least), options(min_rationale_length=least, box_weight=0.0)),
            (0, text),
        )[0]
        for least in (0, 3)
    )
    assert (usual.log_reward - long.log_reward).tolist() == pytest.approx([99.0] * 3 + [0] * (len(usual.ids) - 2))


# --- what is refused -----------------------------------------------------------------------------------------


def test_examples_without_the_role_are_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no end of its own; make them with tokenize --roles rationale"):
        learn(toy_base, toy_encoder, tmp_path, asked=questions(toy_encoder, tmp_path / "q"))


def test_what_does_not_fit_is_refused_with_the_number_that_would(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--batch-tokens=90 has no room .* together, \d+ tokens; give \d+ or more"):
        learn(toy_base, encoder, tmp_path, batch_tokens=90)
    with pytest.raises(SettingsError, match=r"--max-completion-length=9999999 .* and this base reads \d+; give less"):
        learn(toy_base, encoder, tmp_path, options(max_completion_length=9999999), batch_tokens=99999999)


def test_answers_longer_than_a_reply_are_counted_and_stop_it(toy_base: Path, encoder: Any, tmp_path: Path) -> None:
    samples = [drawn(n)[0].model_copy(update={"answers": ("far " * 40,)}) for n in range(COUNT)]
    with pytest.raises(InputError, match=r"the answer of train-\d has \d+ tokens, --max-completion-length"):
        learn(toy_base, encoder, tmp_path, asked=questions(encoder, tmp_path / "q", samples=samples))


def test_one_rationale_for_everything_stops_it() -> None:
    from transformers import TrainerState

    from vcot.training.guards import STEPS, Guards

    guards, state = Guards(options()), TrainerState()
    usual = {"boxes": 1.0, "malformed": 0.0, "cut_off": 0.0, "entropy": 0.3, "kl": 0.1, "distinct": 0.9}
    for step in range(2 * STEPS):
        state.global_step = step + 1
        state.log_history.append(usual | ({"distinct": 0.2} if step >= STEPS else {}) | {"step": step + 1})
        if step < 2 * STEPS - 1:
            guards.on_log(None, state, None)
    with pytest.raises(
        GateFailed, match=r"distinct rationales, as a share of those drawn: 0\.2, less than --min-distinct"
    ):
        guards.on_log(None, state, None)


def test_settings_that_have_no_meaning_together_are_refused() -> None:
    from vcot.training.config import disagreements

    full = config(tune="full", gradient_checkpointing="on")
    found = "\n".join(disagreements(full, options()))
    assert "--tune full with --method gfn: rewards are what the model finds likely without its adapters" in found
    assert "--gradient-checkpointing on with --method gfn" in found
    assert "log-rewards are below 0" in "\n".join(options(tolerance_start=0.5).faults())
    assert "leaves nothing of --max-completion-length=24" in "\n".join(options(min_rationale_length=24).faults())


# --- exactness -----------------------------------------------------------------------------------------------

LONGEST = 4


class Grammar:
    """The rehearsal model whose head knows a few words alone, of which a rationale has four at most: so all of its
    rationales can be enumerated, and with them what is to be sampled."""

    def __init__(self, encoder: Any, answer: str) -> None:
        self.encoder = encoder
        self.end = encoder.eos_token_ids[0]
        self.answer = encoder.said(f"Answer: {answer}", ended=True, rationale=False)
        words = {*self.answer[:-1], *encoder.said(" yellow")}
        self.words = sorted(words)
        self.rationales = [z for length in range(LONGEST + 1) for z in product(self.words, repeat=length)]

    def load(self, *arguments: Any, **named: Any) -> Any:
        """In the place of `load_base`."""
        from vcot.models.loading import load_base

        model = load_base(*arguments, **named)
        unknown = torch.ones(model.config.text_config.vocab_size, dtype=torch.bool)
        unknown[[*self.words, self.end]] = False
        model.lm_head.register_forward_hook(lambda _, __, logits: logits.masked_fill(unknown, -1e4))
        return model

    def posterior(self, model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(wanted, sampled) probabilities of all rationales of the one question in the batch."""
        from vcot.models.branches import Branch, as_it_was, score_branches

        branches = [Branch(0, z, (len(z),), self.answer) for z in self.rationales]
        rows = torch.arange(len(branches))
        lengths = torch.tensor([len(z) for z in self.rationales])

        def scored() -> Any:
            return model(
                **batch,
                want=lambda inner, **given: score_branches(
                    inner, branches, end=self.end, between=self.encoder.between, **given
                ),
            )

        with torch.no_grad():
            now = scored()
            with as_it_was(model):
                was = scored()
        said = now.tokens.sum(1) + torch.where(lengths == LONGEST, 0.0, now.ends[rows, lengths])
        explained = was.tokens.sum(1) + was.ends[rows, lengths] + torch.tensor([each[0] for each in was.answers])
        return explained.softmax(0), said.exp()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_under_a_grammar_the_model_samples_the_enumerated_posterior(
    toy_base: Path, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    answer = ("red", "blue", "green")[seed - 1]
    grammar = Grammar(encoder, answer)
    monkeypatch.setattr("vcot.training.setup.load_base", grammar.load)
    sample = drawn(0)[0].model_copy(update={"answers": (answer,)})
    asked = questions(encoder, tmp_path / "asked", count=1, samples=[sample])
    given = options(
        num_generations=96, questions_per_step=1, max_completion_length=LONGEST, reward_stride=1, box_weight=0.0,
        learn_reference=False, replay_share=0.0, explore_share=0.0, max_kl=100.0, max_malformed=1.0, max_cut_off=1.0,
        min_distinct=0.0,  # a posterior may be one rationale nearly alone
    )  # fmt: skip
    changes = {
        "max_steps": 150,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "save_steps": 1000,
        "batch_tokens": 4000,
        "seed": seed,
    }
    result, _ = learn(toy_base, encoder, tmp_path, given, asked=asked, lora_r=16, lora_alpha=32.0, **changes)
    wanted, sampled = grammar.posterior(result.model, asked.prompts([0]))
    began = learn(toy_base, encoder, tmp_path / "began", given, asked=asked, **(changes | {"max_steps": 1, "learning_rate": 1e-9}))  # fmt: skip  # noqa: E501
    _, at_first = grammar.posterior(began[0].model, asked.prompts([0]))
    distance = float((wanted - sampled).abs().sum() / 2)
    print(f"seed {seed}: total variation {float((wanted - at_first).abs().sum() / 2):.3f} → {distance:.4f}, "
          f"{len(grammar.rationales)} rationales")  # fmt: skip
    assert float(sampled.sum()) == pytest.approx(1, abs=1e-3)
    assert (wanted - at_first).abs().sum() / 2 > 0.15
    assert distance <= 0.05
