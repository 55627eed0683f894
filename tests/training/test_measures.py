"""What rewards read that a model must be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.teacher import Say, scripted_teacher
from tests.training.test_grpo import learn, options
from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import drawn, encoder_of, questions
from vcot.errors import BudgetSpent, SettingsError
from vcot.grounding import FrameSpec
from vcot.records.rollout import Rollout
from vcot.rewards import earned, weighed
from vcot.storage import Store

WHOLE = "<ref>image</ref><box>[0, 0, 1000, 1000]</box>"


@pytest.fixture
def asked(toy_encoder: Any, tmp_path: Path) -> Any:
    return questions(toy_encoder, tmp_path)


def reply(encoder: Any, number: int, text: str) -> Any:
    from vcot.training.measures import Reply

    return Reply(number, text, encoder.said(text, ended=True))


def pointing(number: int, where: str | None = None) -> str:
    """What the sample's own evidence says, and its answer."""
    from vcot.grounding import render_reply

    sample = drawn(number)[0]
    return render_reply(sample.reasoning[0], where or sample.answers[0], sample.frame(FrameSpec("thousandths")))


@pytest.mark.parametrize("roles", [(), ("rationale",)])
def test_necessity_is_the_share_of_the_answer_that_is_lost(
    toy_base: Path, tmp_path: Path, roles: tuple[str, ...]
) -> None:
    """Against a plain pass over each prompt, with the image as it is and with noise in its box."""
    import math

    import torch

    from vcot.models.loading import load_base
    from vcot.storage.images import decode, with_noise
    from vcot.training.measures import Necessity

    toy_encoder = encoder_of(toy_base, roles=roles)
    model, asked = load_base(toy_base, dtype="float32"), questions(toy_encoder, tmp_path)
    texts = [pointing(0), pointing(1), f"{WHOLE}\nAnswer: top", "top", "Answer: top"]
    numbers = [0, 1, 2, 3, 4]
    replies = [reply(toy_encoder, number, text) for number, text in zip(numbers, texts, strict=True)]
    found = Necessity(toy_encoder, asked, at_once=3)(model, replies)
    assert found[2] == pytest.approx(0, abs=1e-6)  # who points at everything has shown nothing
    assert found[3:] == [0, 0]
    for number in (0, 1):
        sample, data = drawn(number)
        image, [box] = decode(data, "").pixels, sample.reasoning[0].boxes
        frame = sample.frame(FrameSpec("thousandths"))
        from vcot.grounding import parse

        said = [one.as_list() for one in parse(texts[number], frame).trace.boxes]
        likely = []
        for seen in (image, with_noise(image, said, image.size, Necessity.SEED)):
            batch = toy_encoder.prompts([sample], [[seen]])
            ids = toy_encoder.said(texts[number], ended=True)
            answer = len(ids) - len(toy_encoder.said(texts[number].rpartition("Answer:")[0] + "Answer:"))
            whole = torch.cat([batch["input_ids"], torch.tensor([ids])], dim=1)
            padded = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, len(ids)))
            given = batch | {
                "input_ids": whole, "attention_mask": torch.ones_like(whole), "mm_token_type_ids": padded
            }  # fmt: skip
            with torch.no_grad():
                logits = model(**given).logits[0, -answer - 1 : -1].log_softmax(-1)
            likely.append(float(logits.gather(1, torch.tensor(ids[-answer:])[:, None]).sum()))
        free = 1 - box.area / (image.width * image.height)
        expected = free * (1 - math.exp(min(likely[1] - likely[0], 0)))
        assert found[number] == pytest.approx(expected, abs=0.02)  # the free share is counted on a grid


def test_a_training_reads_necessity(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    _, kept = learn(toy_base, toy_encoder, tmp_path, options(rewards=("answer=1", "necessity=1")), max_steps=1)
    for one in kept[0]:
        assert one.rewards["necessity"] == one.measured["necessity"]
        assert 0 <= (one.rewards["necessity"] or 0) <= 1


def test_the_judge_is_asked_once_for_the_same_answer_and_within_its_budget(
    toy_base: Path, toy_encoder: Any, tmp_path: Path, asked: Any
) -> None:
    from vcot.distill.judge import Judge
    from vcot.training.measures import Judged

    def judge(uri: str, **changes: Any) -> Any:
        return Judge(Store(), uri, "judge", cache_uri=str(tmp_path / "judge"), stage="train", **changes)

    said = ["Answer: top", "Answer: top", "Answer: left", "top"]
    replies = [reply(toy_encoder, 0, text) for text in said]
    with scripted_teacher(lambda one: Say(f"score: {0.75 if 'top' in one.words else 0.25}")) as teacher:
        with judge(teacher.address, budget_requests=2) as one:
            found = Judged(one, asked)(None, replies)
            assert found == [0.75, 0.75, 0.25, 0.0]
            assert Judged(one, asked)(None, replies) == found
        assert len(teacher.asked) == 2
        with judge(teacher.address, budget_requests=2) as one, pytest.raises(BudgetSpent):
            Judged(one, asked)(None, [reply(toy_encoder, 1, "Answer: up")])
    sample, rewards = drawn(0)[0], weighed(["judge=1", "necessity=1"])
    judged = Rollout(text=said[0], measured={"judge": 0.75, "necessity": None})
    assert earned(judged, sample, FrameSpec("thousandths"), rewards) == {"judge": 0.75, "necessity": None}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rewards": ("answer=1", "judge=1")}, "--rewards judge: by whom"),
        ({"judge": "http://x/v1#y"}, "--judge=http://x/v1#y: nothing asks it"),
        ({"beta": 0.1, "tune": "full"}, "--beta=0.1 with --tune full"),
        ({"rollouts": "vllm"}, "--rollouts vllm with --tune qlora"),
        ({"rollouts": "vllm", "tune": "full"}, "--rollouts vllm with --tune full"),
        ({"rollouts": "vllm", "tune": "lora", "targets": "all"}, "--rollouts vllm with --targets all"),
        ({"rollouts": "vllm", "tune": "lora", "use_dora": True}, "--rollouts vllm with --use-dora"),
    ],
)
def test_what_cannot_be_together_is_told_before_it_begins(given: dict[str, Any], told: str) -> None:
    from jobs.train import TrainSettings

    with pytest.raises(SettingsError, match=told):
        TrainSettings.of({"run_uri": "runs/a", "base_uri": "base", "method": "grpo"} | given)
