"""The rehearsal base model: the real classes, small, and it can see drawn scenes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from vcot.datasets.scenes import drawing
from vcot.datasets.scenes import objects as scenes
from vcot.datasets.scenes.objects import Pointing, SceneSpec
from vcot.grounding import Box, FrameSpec, Mention, Trace, tags

HERE = Path(__file__).resolve().parents[2]
BASE = HERE / "examples" / "rehearsal"


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def recipe() -> Any:
    """The script that made the weights."""
    sys.path.insert(0, str(BASE))
    try:
        import make_base
    finally:
        sys.path.remove(str(BASE))
    return make_base


def test_it_is_small_and_loads_as_the_real_classes(model: Any, processor: Any) -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir() if file.is_file()) <= 8_000_000
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert 2_500_000 < sum(p.numel() for p in model.parameters()) < 4_000_000
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)


@pytest.mark.parametrize("tag", ["<ref>", "</ref>", "<box>", "</box>"])
def test_tags_are_atomic_and_survive_decoding(processor: Any, tag: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize(f"red disc{tag}[1") == [*tokenizer.tokenize("red disc"), tag, "[", "1"]
    ids = tokenizer.encode(f"a{tag}b<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{tag}b"


def test_it_was_trained_on_the_projects_own_texts(recipe: Any) -> None:
    """What the script writes is what the language of the project renders."""
    rng = np.random.default_rng(4)
    spec = SceneSpec(223, 171, repeats=0.5)
    kinds = set()
    for _ in range(150):
        scene = drawing.draw_scene(rng, spec)
        for question in recipe.ask_several(rng, scene):
            kinds.add(question.kind)
            frame = FrameSpec("thousandths").on(*scene.image.size)
            trace = Trace(
                tuple(
                    Mention(p.label, tuple(Box.from_pixels(*b, width=223, height=171, overhang=1e-3) for b in p.boxes))
                    if isinstance(p, Pointing)
                    else p
                    for p in question.reasoning
                )
            )
            assert recipe.render(question, 223, 171) == tags.render_reply(trace, question.answer, frame)
    assert kinds == set(get_args(scenes.QuestionKind))


def test_it_points_at_scenes_it_has_never_seen(recipe: Any) -> None:
    numbers = recipe.evaluate(BASE, 60, seed=990_003)
    assert numbers["acc_50"] >= 0.6
    assert numbers["mean_iou"] >= 0.5
    assert numbers["blank_acc_50"] <= 0.05
    assert numbers["answer"] >= 0.6
