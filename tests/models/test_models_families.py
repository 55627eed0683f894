"""Every family: its prompts, positions and logits are the library's own, what is tuned is what was asked for, and it
learns a handful of examples by heart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AttentionMaskInterface, Trainer
from transformers.masking_utils import sdpa_mask

from tests.fakes.families import KNOWN
from tests.training.toy import by_text, config, drawn, encoded, examples, loss_sum, tune, write_examples
from vcot.errors import InputError
from vcot.models.attention import NAME
from vcot.models.decoding import Decoding
from vcot.models.families import FAMILIES, family_in
from vcot.models.generation import generate
from vcot.models.loading import attach_lora, load_adapter, load_base
from vcot.records.example import Examples
from vcot.storage.images import decode
from vcot.tokens import Encoder, contract_of, load_processor, native_frame
from vcot.tokens.rows import check_mask
from vcot.training.data import Collator, SFTDataset
from vcot.training.parameters import freeze, parameter_groups

torch.set_num_threads(1)
Bases = Callable[[str], Path]
every_family = pytest.mark.parametrize("model_type", KNOWN)


def encoder_of(base: Path, **changes: Any) -> Encoder:
    processor = load_processor(base, min_pixels=56 * 56, max_pixels=448 * 448)
    values = {"mode": "multimodal", "frame": native_frame(base), "max_length": 1024}
    return Encoder(processor, contract_of(processor, **(values | changes)))


def batch_of(
    encoder: Encoder, folder: Path, train: int = 2, rows: Sequence[int] | None = None, packed: bool = False
) -> dict[str, Any]:
    made = [*examples(encoder, train, alternatives=1), *encoded(encoder, [by_text(1)])[: rows is not None]]
    dataset = SFTDataset(Examples([write_examples(folder / "batch.parquet", made)]), encoder, cache_bytes=0)
    chosen = [dataset[row] for row in (range(len(dataset)) if rows is None else rows)]
    return Collator(encoder.pad_token_id, packed=packed)(chosen)


def prompts_of(encoder: Encoder, numbers: list[int]) -> dict[str, Any]:
    made = [drawn(number) for number in numbers]
    return encoder.prompts([one for one, _ in made], [[decode(data, one.id).pixels] for one, data in made])


def test_every_family_of_the_table_has_a_base_to_test_with() -> None:
    assert tuple(FAMILIES) == KNOWN


def test_numbers_and_names_of_families_are_read_without_torch() -> None:
    code = "import sys, vcot.models.families; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every_family
def test_prompts_are_what_the_familys_own_processor_writes(family_base: Bases, model_type: str) -> None:
    encoder = encoder_of(family_base(model_type))
    sample, data = drawn(3)
    image = decode(data, sample.id).pixels
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
    text = encoder.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = encoder.processor(text=[text], images=[image], return_tensors="pt")
    ours = encoder.prompts([sample], [[image]])
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    made = examples(encoder, 1, alternatives=1)[0]
    check_mask(made, encoder.processor)


@every_family
@pytest.mark.parametrize("grids", [[(1, 4, 8)], [(1, 8, 4), (1, 4, 4), (1, 2, 6)], []])
def test_positions_are_the_models_own(family_base: Bases, model_type: str, grids: list[tuple[int, int, int]]) -> None:
    base = family_base(model_type)
    model, family = load_base(base, dtype="float32"), family_in(base)
    image = model.config.image_token_id
    ids = [5, 6]
    for number, (_, rows, columns) in enumerate(grids):
        ids += [*[image] * (rows * columns // 4), 7, *range(10, 10 + number)]
    found = family.positions(ids, grids, image_token_id=image, merge_size=2)
    given = torch.tensor([ids])
    if model_type == "internvl":  # its language model counts by itself
        expected = torch.arange(len(ids)).expand(3, 1, -1)
    else:
        kinds = (given == image).int()
        expected, _ = model.model.get_rope_index(given, kinds, torch.tensor(grids) if grids else None)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected[:, 0])


@every_family
def test_grids_that_do_not_fit_the_tokens_are_noticed(model_type: str) -> None:
    def positions(ids: list[int], grids: list[tuple[int, int, int]]) -> Any:
        return FAMILIES[model_type].positions(ids, grids, image_token_id=9, merge_size=2)

    for ids, grids in (
        ([5, 9, 9, 7], [(1, 4, 4)]),
        ([5, 9, 9, 9, 9, 7], [(1, 2, 4), (1, 2, 4)]),  # nothing stands between the two
        ([5, 7], [(1, 2, 4)]),
        ([5, 9, 7], []),
    ):
        with pytest.raises(ValueError, match=r"tokens stand for the images, their grids .* make"):
            positions(ids, grids)


@every_family
def test_training_computes_what_generating_computes(family_base: Bases, model_type: str, tmp_path: Path) -> None:
    """The same prompt through the collator with positions of ours, and as `generate` begins with it."""
    base = family_base(model_type)
    model, encoder = load_base(base, dtype="float32"), encoder_of(base)
    learned, asked = batch_of(encoder, tmp_path, train=1), prompts_of(encoder, [0])
    length = asked["input_ids"].shape[1]
    assert torch.equal(learned["input_ids"][:, :length], asked["input_ids"])
    with torch.no_grad():
        in_training = model(**encoder.family.model_inputs(learned)).logits[:, :length]
        generating = model(**encoder.family.model_inputs(asked)).logits
    assert torch.allclose(in_training, generating, atol=1e-5)


@every_family
@pytest.mark.parametrize("training", [True, False])
def test_packed_rows_teach_what_they_teach_alone(
    family_base: Bases, model_type: str, tmp_path: Path, training: bool
) -> None:
    """Two with images, and one by text alone between them."""
    model, encoder = (
        load_base(family_base(model_type), dtype="float32", weights="float32"),
        encoder_of(family_base(model_type)),
    )
    model.train(training)

    def learned(rows: list[int], packed: bool) -> tuple[float, Any]:
        model.zero_grad()
        loss = loss_sum(model, batch_of(encoder, tmp_path, rows=rows, packed=packed))
        loss.backward()
        return loss.item(), {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }

    alone = [learned([row], False) for row in (0, 2, 1)]
    total, gradients = learned([0, 2, 1], True)
    assert total == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    for name, value in gradients.items():
        expected = sum(each[name] for _, each in alone if name in each)
        # By the tensor: single entries near nothing differ by what another order of adding leaves.
        assert (value - expected).norm() <= 1e-5 * expected.norm() + 1e-9, name


def test_packed_rows_beyond_context_keep_rope_scaling(family_base: Bases, tmp_path: Path) -> None:
    """Dynamic RoPE scaling depends on the largest position of a row, not of the packed batch."""
    base = shutil.copytree(family_base("internvl"), tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    encoder = encoder_of(base)
    alone = [batch_of(encoder, tmp_path, rows=[row]) for row in (0, 1)]
    text = settings["text_config"]
    text["max_position_embeddings"] = max(batch["input_ids"].shape[1] for batch in alone) + 1
    text["rope_parameters"] = text["rope_parameters"] | {"rope_type": "dynamic", "factor": 2.0}
    (base / "config.json").write_text(json.dumps(settings))
    model = load_base(base, dtype="float32")
    with torch.no_grad():
        expected = sum(loss_sum(model, batch).item() for batch in alone)
        together = loss_sum(model, batch_of(encoder, tmp_path, rows=[0, 1], packed=True)).item()
    assert together == pytest.approx(expected, rel=1e-5)


@every_family
@pytest.mark.parametrize("packed", [True, False])
def test_training_batch_needs_no_attention_mask(
    family_base: Bases, model_type: str, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask of tokens × tokens would exclude the fast kernels and grow with the square of the batch."""
    base = family_base(model_type)
    batch = batch_of(encoder_of(base), tmp_path, rows=[0, 2, 1], packed=packed)
    model = load_base(base, dtype="float32")
    masks: list[Any] = []

    def record_mask(*arguments: Any, **named: Any) -> Any:
        masks.append(sdpa_mask(*arguments, **named))
        return masks[-1]

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, NAME, record_mask)
    bounds = {name: batch[name] for name in ("row_bounds", "longest_row") if name in batch}
    with torch.no_grad():
        model(**family_in(base).model_inputs(batch), **bounds, labels=batch["labels"], want="loss")
    assert masks
    assert all(mask is None for mask in masks)


@every_family
def test_it_learns_examples_by_heart_and_says_them(family_base: Bases, model_type: str, tmp_path: Path) -> None:
    base = family_base(model_type)
    encoder = encoder_of(base)
    made = examples(encoder, 2, alternatives=1)
    stored = Examples([write_examples(tmp_path / "train.parquet", made)])
    result = tune(
        base, encoder, stored, tmp_path, tune="full", learning_rate=3e-3, num_train_epochs=60,
        optim="adamw_torch_fused", gradient_accumulation_steps=1, neftune_noise_alpha=0.0, max_grad_norm=1.0,
        save_steps=1000, batch_tokens=1024, packing="on",
    )  # fmt: skip
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.1 * losses[0]
    said = generate(result.model, prompts_of(encoder, [0, 1]), Decoding(80), eos_token_ids=encoder.eos_token_ids)
    replies = [[token for token, label in zip(one.ids, one.labels, strict=True) if label >= 0] for one in made]
    assert [encoder.decode(reply.ids) for (reply,) in said] == [encoder.decode(ids) for ids in replies]


@every_family
@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ("language", {"language"}),
        ("language+merger", {"language", "merger"}),
        ("all", {"language", "merger", "vision"}),
    ],
)
def test_adapters_sit_on_all_linear_layers_of_the_parts_asked_for_and_learn(
    family_base: Bases, model_type: str, tmp_path: Path, targets: Any, parts: set[str]
) -> None:
    base = family_base(model_type)
    model, encoder, family = load_base(base, dtype="float32"), encoder_of(base), family_in(base)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    adapted = attach_lora(model, r=2, alpha=4, dropout=0.0, targets=targets).train()
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    for name, value in trained.items():
        if "lora_B" in name:  # zero at first, which would leave the A matrices without a gradient
            torch.nn.init.normal_(value, std=0.02)
    layers = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained}
    assert layers == {name for name in linear if family.part(name) in parts}
    assert {family.part(name) for name in trained} == parts
    loss_sum(adapted, batch_of(encoder, tmp_path)).backward()
    changed = {name for name, value in adapted.named_parameters() if value.grad is not None and value.grad.any()}
    assert changed == trained.keys()


@every_family
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_with_dora_come_back_as_they_were(
    family_base: Bases, model_type: str, tmp_path: Path, quantization: Any
) -> None:
    base = family_base(model_type)
    encoder = encoder_of(base)
    batch = batch_of(encoder, tmp_path)
    model = load_base(base, dtype="float32", quantization=quantization)
    adapted = attach_lora(
        model, r=2, alpha=4, dropout=0.5, base_uri="s3://b/base", targets="all", use_rslora=True, use_dora=True
    )
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                value.add_(0.05 * torch.randn(value.shape))
        expected = loss_sum(adapted.eval(), batch)
        adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        plain = load_base(base, dtype="float32", quantization=quantization)
        assert not torch.isclose(loss_sum(plain, batch), expected)
        assert torch.equal(loss_sum(load_adapter(plain, tmp_path / "adapter"), batch), expected)


@every_family
def test_nf4_takes_the_language_models_linear_layers_and_nothing_else(family_base: Bases, model_type: str) -> None:
    model = load_base(family_base(model_type), quantization="nf4", dtype="float32")
    narrow = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert narrow == {name for name in linear if name.startswith("model.language_model.")}
    assert len(narrow) == 7 * 3


@every_family
def test_each_part_learns_at_its_rate_and_norms_and_biases_do_not_decay(
    family_base: Bases, model_type: str, tmp_path: Path
) -> None:
    base = family_base(model_type)
    model, family = load_base(base, dtype="float32", weights="float32"), family_in(base)
    settings = config(tune="full", learning_rate=1e-5, merger_learning_rate=3e-6, weight_decay=0.1)
    rates = {"language": 1e-5, "merger": 3e-6, "vision": 1e-5 / 5}
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    found = {id(value): group for group in parameter_groups(model, settings, family) for value in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, value in model.named_parameters():
        group = found[id(value)]
        assert (group["lr"], group["weight_decay"]) == (rates[family.part(name)], 0.1 if name in decayed else 0.0), name
    loss_sum(model.train(), batch_of(encoder_of(base), tmp_path)).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]


@every_family
def test_a_part_with_a_rate_of_zero_and_frozen_embeddings_stay_as_they_are(
    family_base: Bases, model_type: str, tmp_path: Path
) -> None:
    base = family_base(model_type)
    encoder = encoder_of(base)
    stored = Examples([write_examples(tmp_path / "train.parquet", examples(encoder, 2, alternatives=1))])
    before = {name: value.clone() for name, value in load_base(base, dtype="float32").named_parameters()}
    result = tune(
        base, encoder, stored, tmp_path, tune="full", max_steps=2, freeze_embeddings=True, vision_learning_rate=0.0,
        weight_decay=0.1, batch_tokens=1024,
    )  # fmt: skip
    changed = {name for name, value in result.model.named_parameters() if not torch.equal(value, before[name])}
    part = encoder.family.part
    stays = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert changed == {name for name in before if part(name) != "vision" and name not in stays}


def test_nothing_left_to_train_is_refused(family_base: Bases) -> None:
    model = load_base(family_base("qwen2_vl"), dtype="float32")
    for value in model.parameters():
        value.requires_grad_(False)
    with pytest.raises(InputError, match="nothing of this base is left to train"):
        freeze(model, config(tune="full"), FAMILIES["qwen2_vl"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tune": "full", "use_dora": True}, "--use-dora: --tune full has no adapters"),
        ({"tune": "full", "targets": "all"}, "--targets: --tune full has no adapters"),
        ({"tune": "qlora", "vision_learning_rate": 1e-6}, "--vision-learning-rate: --tune qlora trains adapters alone"),
        ({"tune": "lora", "freeze_embeddings": True}, "--freeze-embeddings: --tune lora trains adapters alone"),
    ],
)
def test_knobs_of_another_way_to_tune_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_a_base_of_no_known_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    said = f"'llava'; supported are {', '.join(KNOWN)}"
    with pytest.raises(InputError, match=said):
        load_base(tmp_path, dtype="float32")
    with pytest.raises(InputError, match=said):
        load_processor(tmp_path, min_pixels=3136, max_pixels=12544)


def test_boxes_are_written_as_contract_json_says_or_else_as_the_family_does(family_base: Bases, tmp_path: Path) -> None:
    native = {"qwen2_vl": "thousandths", "qwen2_5_vl": "resized_pixels", "qwen3_vl": "thousandths"}
    assert {kind: native_frame(family_base(kind)) for kind in native} == native
    (tmp_path / "config.json").write_bytes((family_base("qwen2_5_vl") / "config.json").read_bytes())
    (tmp_path / "contract.json").write_text('{"contract": {"frame": {"name": "fractions"}}}')
    assert native_frame(tmp_path) == "fractions"
    (tmp_path / "contract.json").write_text('{"contract": {}}')
    with pytest.raises(InputError, match="say it with --frame"):
        native_frame(tmp_path)


def test_a_family_of_one_size_takes_no_other_and_no_numbers_that_depend_on_it(family_base: Bases) -> None:
    base = family_base("internvl")
    with pytest.raises(InputError, match=r"every image at 448x448 = 200704 pixels, which is not in --min-pixels=3136"):
        load_processor(base, min_pixels=3136, max_pixels=12544)
    with pytest.raises(InputError, match="choose --frame thousandths"):
        encoder_of(base, frame="resized_pixels")
    encoder = encoder_of(base)
    assert (encoder.contract.min_pixels, encoder.contract.max_pixels) == (448 * 448, 448 * 448)
    sizes = [drawn(1, size=size) for size in ((900, 300), (64, 64))]
    grids = [encoder.example(one, 0, [decode(data, one.id)], [data]).image_grids for one, data in sizes]
    assert grids == [((1, 32, 32),)] * 2
    short = encoder_of(base, max_length=300)
    refused = short.example(sizes[0][0], 0, [decode(sizes[0][1], "a")], [sizes[0][1]])
    assert "256 of them for the image" in refused.detail
