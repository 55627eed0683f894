"""Learning from rewards, by TRL's trainer on our examples, checkpoints and rewards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import (
    COUNT,
    Died,
    drawn,
    encoder_of,
    examples,
    in_rounds,
    questions,
    tuned_adapter,
    weights,
    write_examples,
)
from vcot.errors import GateFailed, InputError, SettingsError
from vcot.records.example import Examples
from vcot.records.rollout import Rollout
from vcot.storage import Store
from vcot.training.config import GRPOOptions, GuardOptions


def options(**changes: Any) -> GRPOOptions:
    return GRPOOptions(
        **{"num_generations": 4, "questions_per_step": 2, "max_completion_length": 40, "redraws": 0} | changes
    )


def learn(
    base: Path, encoder: Any, scratch: Path, given: GRPOOptions | None = None, **changes: Any
) -> tuple[Any, dict[int, list[Rollout]]]:
    """The result, and the replies of each step."""
    from vcot.training.grpo import learn_from_rewards

    return in_rounds(learn_from_rewards, given or options(), base, encoder, scratch, **{"batch_tokens": 400} | changes)


def lines(result: Any) -> list[tuple[Any, ...]]:
    """Of each step, what must be the same twice."""
    names = ("step", "loss", "grad_norm", "reward", "entropy", "boxes")
    return [tuple(line.get(name) for name in names) for line in result.history if "loss" in line]


# --- questions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", [(), ("rationale",)])
@pytest.mark.parametrize("reasonings", [2, 0])
def test_a_question_is_the_prompt_of_its_example_with_its_sample(
    toy_base: Path, tmp_path: Path, reasonings: int, roles: tuple[str, ...]
) -> None:
    toy_encoder = encoder_of(toy_base, roles=roles)
    asked = questions(toy_encoder, tmp_path, reasonings=reasonings)
    assert len(asked) == COUNT  # one for each sample, whatever reasonings it has
    seen = [drawn(number) for number in range(COUNT)]
    from vcot.storage.images import decode

    expected = toy_encoder.prompts([one for one, _ in seen], [[decode(data, "").pixels] for _, data in seen])
    found = asked.prompts(range(COUNT))
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert [asked.sample(number) for number in range(COUNT)] == [one for one, _ in seen]


def test_those_without_reasoning_can_be_asked_alone(toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.training.questions import Questions

    both = [*examples(toy_encoder, 2), *examples(toy_encoder, 4, 0, 0)[2:]]
    made = Examples([write_examples(tmp_path / "examples.parquet", both)])
    given: dict[str, Any] = {"way": "ground", "file": tmp_path / "samples.jsonl", "cache_bytes": 1 << 20}
    samples = [drawn(number)[0] for number in range(4)]
    asked = Questions(made, samples, toy_encoder, alone=True, **given)
    assert [asked.sample(number).id for number in range(len(asked))] == ["train-2", "train-3"]
    made = Examples([write_examples(tmp_path / "others.parquet", examples(toy_encoder, 2))])
    with pytest.raises(InputError, match="not one question without reasoning of the train split in the way ground"):
        Questions(made, samples, toy_encoder, alone=True, **given)


def test_each_epoch_asks_everything_once_in_another_order(toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.training.questions import Curriculum

    asked = Curriculum(questions(toy_encoder, tmp_path), 1, by_success=False)
    epochs = [[n for round_ in range(first, first + 3) for n in asked.of_round(round_, 2)] for first in (0, 3)]
    assert [sorted(one) for one in epochs] == [list(range(COUNT))] * 2
    assert epochs[0] != epochs[1]
    assert asked.of_round(0, 2, again=1) != asked.of_round(0, 2)


def test_by_success_the_second_epoch_begins_with_what_was_half_right(toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.training.questions import Curriculum

    right = {0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0), 4: (1, 1), 5: (0, 0)}
    asked = Curriculum(questions(toy_encoder, tmp_path), 1, by_success=True)
    first = [n for round_ in range(3) for n in asked.of_round(round_, 2)]
    for n in first:
        asked.earned((n, Rollout(text="", rewards={"answer": value, "boxes": 0.3})) for value in right[n])
    assert set(asked.of_round(3, 2)) == {1, 3}
    asked.earned([(0, Rollout(text="", rewards={"answer": 0.5}))])  # what is earned meanwhile changes no order
    assert sorted(n for round_ in (3, 4, 5) for n in asked.of_round(round_, 2)) == list(range(COUNT))
    again = Curriculum(questions(toy_encoder, tmp_path), 1, by_success=True)
    again.state = asked.state
    assert [again.of_round(round_, 2) for round_ in (4, 5, 6)] == [asked.of_round(round_, 2) for round_ in (4, 5, 6)]
    assert asked.needs(6, 1, 2)[3:] == [{0}] * 3


def test_examples_without_samples_are_refused(toy_encoder: Any, tmp_path: Path) -> None:
    some = [drawn(number)[0] for number in range(COUNT - 2)]
    with pytest.raises(InputError, match=rf"2 of {COUNT} examples have no Sample .* such as train-4; run tokenize"):
        questions(toy_encoder, tmp_path, samples=some)


# --- a training ----------------------------------------------------------------------------------------


def test_it_learns_what_is_rewarded_and_leaves_the_base_as_it_is(
    toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    from vcot.models.loading import load_base, whole_model

    given = options(rewards=(f"short={__name__}:short",), num_generations=8, epsilon_high=0.28)
    result, kept = learn(toy_base, toy_encoder, tmp_path, given, max_steps=18, learning_rate=5e-3)
    tokens = [sum(one.tokens for one in kept[step]) / len(kept[step]) for step in sorted(kept)]
    assert sum(tokens[-3:]) < 0.8 * sum(tokens[:3])
    assert [len(each) for each in kept.values()] == [16] * 18
    for each in kept.values():  # of each group the advantages make up for each other
        assert math.fsum(one.advantage for one in each[:8]) == pytest.approx(0, abs=1e-2)
    before = load_base(toy_base, dtype="float32").state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in whole_model(result.model).state_dict().items()}
    assert all((after[name] == value).all() for name, value in before.items())


def test_adapters_on_weights_in_4_bits_stay_float32(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    import torch

    given = options(rewards=(f"short={__name__}:short",))
    result, _ = learn(toy_base, toy_encoder, tmp_path, given, tune="qlora", max_steps=1)
    assert {value.dtype for value in weights(result).values()} == {torch.float32}


def short(rollout: Rollout, sample: Any, spec: Any) -> float:
    return 1 - rollout.tokens / 40


def test_grpo_console_shows_rewards_before_the_loss(
    toy_base: Path,
    toy_encoder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of an update from replies of the step before, for which TRL logs no reward."""
    monkeypatch.setattr("vcot.stage.REPORT_EVERY", 0.0)
    given = options(rewards=("format=0.5", f"short={__name__}:short"), num_iterations=2, max_completion_length=8)
    result, _ = learn(toy_base, toy_encoder, tmp_path, given, max_steps=2)
    line = next(entry for entry in result.history if "loss" in entry)
    shown = f"reward {line['reward']:.3f} (format {line['rewards/format/mean']:.3f}, short "
    shown += f"{line['rewards/short/mean']:.3f})"
    told = capsys.readouterr()
    printed = (told.out + told.err).splitlines()
    notes = [row for row in printed if "note=" in row]
    assert len(notes) == 3  # the first step has a line of its own
    assert all(shown in row and row.index("reward") < row.index("loss") for row in notes)
    assert not any("-0.000" in row for row in printed)


@pytest.mark.parametrize(
    ("loss", "shown"), [(-1e-9, "0"), (-0.0, "0"), (-0.000317, "-0.000317"), (1.23456, "1.235"), (12.3456, "12.35")]
)
def test_loss_is_shown_in_a_readable_form(loss: float, shown: str) -> None:
    from vcot.training.engine import progress_note

    assert progress_note({"loss": loss}) == f"loss {shown}"


@pytest.mark.parametrize("updates", [1, 2])
def test_a_killed_training_goes_on_to_the_same_numbers(
    toy_base: Path, toy_encoder: Any, tmp_path: Path, updates: int
) -> None:
    """With two updates for each round of replies, it dies between the first and the second."""
    given = options(num_iterations=updates, beta=0.01)
    whole, kept = learn(toy_base, toy_encoder, tmp_path / "whole", given, max_steps=4)
    with pytest.raises(Died):
        learn(toy_base, toy_encoder, tmp_path / "killed", given, die_at=3, max_steps=4)
    again, rest = learn(toy_base, toy_encoder, tmp_path / "killed", given, max_steps=4)
    assert lines(again) == lines(whole)
    assert all((value == weights(whole)[name]).all() for name, value in weights(again).items())
    assert bool(rest) == (updates == 1)  # with two, the replies of the last step were drawn before the stop
    assert all(kept[step] == each for step, each in rest.items())


def test_neither_slices_nor_activations_computed_twice_change_what_is_learned(
    toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    whole, replies = learn(toy_base, toy_encoder, tmp_path / "whole")
    given = options(generation_batch_size=4)
    parts, same = learn(toy_base, toy_encoder, tmp_path / "parts", given, gradient_checkpointing="on")
    assert [[one.text for one in same[step]] for step in same] == [
        [one.text for one in replies[step]] for step in replies
    ]
    for name, value in weights(parts).items():
        assert (value - weights(whole)[name]).abs().max() < 1e-5


def test_the_first_steps_stay_on_the_page_after_a_stop(toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.records.shards import TRAIN, Folder
    from vcot.training.rollout_log import RolloutLog

    asked = questions(toy_encoder, tmp_path)
    folder = Folder(Store(), str(tmp_path / "run"), TRAIN)

    def log() -> RolloutLog:
        return RolloutLog(folder, asked, toy_encoder.contract.frame_spec, every=1, save_steps=1)

    def said(step: int, text: str) -> list[tuple[int, Rollout]]:
        return [(2, Rollout(step=step, sample="train-2", text=text, rewards={"answer": 0.5}, reward=0.5))] * 2

    before, after = log(), log()
    before.keep(0, said(0, "from the very first step"), [])
    before.keep(1, said(1, "drawn again"), [])
    after.keep(1, said(1, "after the stop"), [])
    page = (tmp_path / "run" / "train" / "rollouts.html").read_text()
    assert "from the very first step" in page
    assert "after the stop" in page
    assert "drawn again" not in page
    assert len(list((tmp_path / "run" / "train" / "rollouts").iterdir())) == 2


def test_the_loss_is_that_of_the_formula(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    """Of the first update, from a plain pass of the model over each prompt with its image and reply, one by one."""
    import torch

    from vcot.models.loading import load_base
    from vcot.training.questions import Curriculum

    result, kept = learn(toy_base, toy_encoder, tmp_path, options(loss_type="grpo"), max_steps=1)
    # The policy is the one that drew, so the ratio is 1 and the loss −Σ advantage / replies, whatever is said.
    advantages = [one.advantage for one in kept[0]]
    assert result.history[0]["loss"] == pytest.approx(-sum(advantages) / len(advantages), abs=1e-4)
    model, asked = load_base(toy_base, dtype="float32"), questions(toy_encoder, tmp_path / "again")
    numbers = [n for n in Curriculum(asked, 1, by_success=False).of_round(0, 2) for _ in range(4)]
    entropies, tokens = 0.0, 0
    for number, one in zip(numbers, kept[0], strict=True):
        batch = asked.prompts([number])
        said = torch.tensor([toy_encoder.said(one.text, ended=one.ended)])
        assert said.shape[1] == one.tokens
        ids = torch.cat([batch["input_ids"], said], dim=1)
        given = batch | {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.nn.functional.pad(batch["mm_token_type_ids"], (0, said.shape[1])),
        }  # fmt: skip
        with torch.no_grad():
            likely = model(**given).logits[:, -said.shape[1] - 1 : -1].log_softmax(-1)
        entropies += float(-(likely.exp() * likely).sum())
        tokens += one.tokens
    assert result.history[0]["entropy"] == pytest.approx(entropies / tokens, rel=1e-5)


def test_a_rationale_with_a_turn_of_its_own_is_learned_and_what_is_put_behind_it_is_not(
    toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and entropy of the first update are those of a plain pass, over the tokens that were drawn alone."""
    import torch

    from vcot.models.loading import load_adapter, load_base
    from vcot.training.grpo import RewardedTrainer

    encoder = encoder_of(toy_base, roles=("rationale",))
    adapter = tuned_adapter(toy_base, encoder, tmp_path / "sft")
    recorded: list[dict[str, Any]] = []
    plainly = RewardedTrainer._recorded
    monkeypatch.setattr(RewardedTrainer, "_recorded", lambda *given: recorded.append(plainly(*given)) or recorded[-1])
    given = options(rewards=(f"short={__name__}:short",), loss_type="dapo")
    result, kept = learn(toy_base, encoder, tmp_path, given, adapter=adapter, max_steps=2, batch_tokens=2000, seed=2)
    end, between, lines_ = encoder.eos_token_ids[0], encoder.between, [one for one in result.history if "loss" in one]
    assert len(lines_) == 2
    model, asked = load_adapter(load_base(toy_base, dtype="float32"), adapter), questions(encoder, tmp_path / "again")
    entropies, learned, weighed, whole = 0.0, 0, 0.0, 0
    for ids, mask, one in zip(recorded[0]["completion_ids"], recorded[0]["env_mask"], kept[0], strict=True):
        ended = [place for place, token in enumerate(ids) if token in encoder.eos_token_ids]
        first = ended[0] + 1 if ended and ids[ended[0]] == end else len(ids)
        drawn_ = [not first <= place < first + len(between) for place in range(len(ids))]
        assert mask == [int(one) for one in drawn_]
        assert one.tokens == len(ids)
        assert one.text == encoder.decode(ids)
        # By a second end, or by one that is not the rationale's.
        over = len(ids) != first or ids[-1] != end
        assert one.ended == (len(ids) in [place + 1 for place in ended] and over)
        whole += one.ended and "\nAnswer:" in one.text
        batch = asked.prompts([int(one.sample.removeprefix("train-"))])
        more = torch.tensor([ids])
        together = torch.cat([batch["input_ids"], more], dim=1)
        forward = batch | {
            "input_ids": together, "attention_mask": torch.ones_like(together),
            "mm_token_type_ids": torch.nn.functional.pad(batch["mm_token_type_ids"], (0, len(ids))),
        }  # fmt: skip
        with torch.no_grad():
            likely = model(**forward).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
        entropies += float(-(likely.exp() * likely).sum(-1)[torch.tensor(drawn_)].sum())
        learned += sum(drawn_)
        weighed += one.advantage * sum(drawn_)
    assert whole > 2
    assert lines_[0]["loss"] == pytest.approx(-weighed / learned, abs=1e-4)
    assert lines_[0]["entropy"] == pytest.approx(entropies / learned, rel=1e-4)
    assert lines_[0]["cut_off"] == pytest.approx(sum(not one.ended for one in kept[0]) / len(kept[0]))


def test_a_reply_cut_off_at_the_end_of_its_rationale_teaches_nothing_where_such_do_not(toy_base: Path) -> None:
    from types import SimpleNamespace

    from vcot.models.generation import Generated
    from vcot.training.grpo import RewardedTrainer

    encoder = encoder_of(toy_base, roles=("rationale",))
    ids = encoder.said("A disc.", ended=True)
    for masked in (True, False):
        trainer: Any = SimpleNamespace(encoder=encoder, mask_truncated_completions=masked)
        for ended in (True, False):
            found = RewardedTrainer._said_by_it(trainer, Generated(ids, [0.0] * len(ids), ended))
            assert found == [int(ended or not masked)] * len(ids)


def test_a_server_that_ends_a_reply_with_its_rationale_is_refused(toy_base: Path, tmp_path: Path) -> None:
    given = options(rollouts="vllm", vllm_url="http://localhost:1/v1", vllm_folder=str(tmp_path))
    with pytest.raises(SettingsError, match="--rollouts=vllm: in the examples the rationale is a turn of its own"):
        learn(toy_base, encoder_of(toy_base, roles=("rationale",)), tmp_path, given)


def test_questions_that_teach_nothing_are_drawn_again(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    given = options(rewards=(f"rare={__name__}:rare",), redraws=3)
    _, kept = learn(toy_base, toy_encoder, tmp_path, given, max_steps=2)
    groups = [each[at : at + 4] for each in kept.values() for at in (0, 4)]
    assert any(one.sample == "train-3" for group in groups for one in group)
    assert all(len({one.reward for one in group}) > 1 or group[0].sample != "train-3" for group in groups)


def rare(rollout: Rollout, sample: Any, spec: Any) -> float:
    return float(sample.id == "train-3" and rollout.draw == 0)


# --- what is refused -----------------------------------------------------------------------------------


def test_what_could_not_be_judged_is_no_worse_than_the_others() -> None:
    from vcot.training.grpo import _comparable

    assert _comparable([1.0, None, 0.5]) == [1.0, 0.75, 0.5]
    assert _comparable([None, None]) == [None, None]


def test_what_weighs_nothing_teaches_nothing(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    """Replies differ in their form alone, which weighs nothing: every group is drawn again, and none teaches."""
    rewards = ("same=tests.training.test_grpo:the_same", "format=0")
    result, kept = learn(
        toy_base, toy_encoder, tmp_path, options(rewards=rewards, redraws=1), die_at=None, max_steps=2
    )  # fmt: skip
    assert {line["groups_that_teach"] for line in result.history if "groups_that_teach" in line} == {0.0}
    assert {one.advantage for replies in kept.values() for one in replies} == {0.0}


def test_the_curriculum_learns_of_all_that_were_asked(
    toy_base: Path, toy_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that taught nothing and had others drawn in their place."""
    from vcot.training.questions import Curriculum

    told: list[list[tuple[int, Rollout]]] = []
    monkeypatch.setattr(Curriculum, "earned", lambda _, replies: told.append(list(replies)))
    rewards = ("same=tests.training.test_grpo:the_same",)
    learn(toy_base, toy_encoder, tmp_path, options(rewards=rewards, redraws=2), max_steps=1)
    (replies,) = told
    assert len(replies) == 4 * 2 * 3  # 2 questions and, twice, 2 others, of 4 replies each


def the_same(*_: Any) -> float:
    return 0.5


def test_a_reward_that_fails_too_often_stops_it(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the reward bad gave nan on train-\d; .* so it was for \d+ of \d+ replies"):
        learn(toy_base, toy_encoder, tmp_path, options(rewards=("answer=1", f"bad={__name__}:bad")))


def bad(rollout: Rollout, sample: Any, spec: Any) -> float:
    return float("nan")


def test_a_prompt_that_does_not_fit_a_batch_is_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--batch-tokens=60 has no room for the longest example and --max-"):
        learn(toy_base, toy_encoder, tmp_path, batch_tokens=60)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"boxes": 9.5}, "boxes of a reply: 9.5, more than --max-boxes=3 times"), ({}, None),
        ({"malformed": 0.9}, "share of malformed replies: 0.9, more than --max-malformed=0.5"),
        ({"cut_off": 0.6}, "share of replies cut off"), ({"entropy": 0.001}, "entropy of a token: 0.001, less than"),
        ({"masked": 0.8}, "that the server finds otherwise likely: 0.8, more than --max-masked=0.5"),
        ({"kl": 4.0}, "distance from the model it began with: 4, more than --max-kl=1"),
        ({"groups_that_teach": 0.0}, "nothing to learn from"),
    ],
)  # fmt: skip
def test_a_guard_stops_what_has_left_its_bounds(changed: dict[str, float], told: str | None) -> None:
    from transformers import TrainerState

    from vcot.training.guards import STEPS, Guards

    usual = {"boxes": 2.0, "malformed": 0.1, "cut_off": 0.1, "entropy": 0.3, "kl": 0.1, "groups_that_teach": 0.6}
    guards, state = Guards(GuardOptions()), TrainerState()
    for step in range(3 * STEPS):
        state.global_step = step + 1
        state.log_history.append(usual | (changed if step >= STEPS else {}) | {"step": step + 1})
        if step < 2 * STEPS - 1 or told is None:
            if told is None or step < STEPS:
                guards.on_log(None, state, None)
            continue
        with pytest.raises(GateFailed, match=told):
            guards.on_log(None, state, None)
