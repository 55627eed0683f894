"""What only a GPU shows of training a 7B model, in one command of at most ten minutes, as one JSON file.

    python -m benchmarks.gpu --out build/gpu.json          toy size where there is no GPU, or with --toy

A model of Qwen2.5-VL-7B's shape with random weights made on the GPU; rows of about 1,000 visual tokens and 300 of
text, tokenised and prepared by the rehearsal base's processor, whose ids the model takes. Our trainer and TRL's,
adapters of rank 16 on the language model, on bfloat16 and on NF4 weights, each in a process of its own; so one that
fails or runs out of memory leaves the others. Nothing is downloaded.

Of each: MFU, the share of the card's peak by `vcot.training.flops` (what a step needs: no recomputing, no padding);
tokens and rows a second after two steps of warm-up; memory by part; seconds to the first step, of waiting for batches,
and that training stood still for a checkpoint. The exit code is 1 where a training failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "rehearsal"
WARM = 2
GIB = 1 << 30

# Qwen/Qwen2.5-VL-7B-Instruct, config.json; ids of tokens are the rehearsal base's.
TEXT = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
    "initializer_range": 0.02, "layer_types": ["full_attention"] * 28,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "initializer_range": 0.02,
}  # fmt: skip

SUBJECTS: dict[str, dict[str, Any]] = {
    "ours, NF4, packed": {"nf4": True, "packed": True},
    "TRL, NF4": {"nf4": True, "trl": True},
    "ours, bfloat16, packed": {"packed": True},
    "TRL, bfloat16": {"trl": True},
    "ours, NF4, unpacked": {"nf4": True},
    "ours, bfloat16, unpacked": {},
    "ours, bfloat16, packed, activations kept": {"packed": True, "gradient_checkpointing": "off"},
}
"""In the order of their weight, for a machine on which time runs out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu.json")
    parser.add_argument("--toy", action="store_true", help="the same path with the rehearsal base's shape")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="these trainings alone")
    parser.add_argument("--seconds", type=float, default=570, help="no training begins that may end later")
    parser.add_argument("--batch-tokens", type=int, help="of our batches; default 8192, at toy size 400")
    parser.add_argument("--steps", type=int, help=f"that count, after {WARM}; default 8, at toy size 2")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, results on stdout
    options = parser.parse_args()
    import torch

    toy = options.toy or not torch.cuda.is_available()
    size = {"batch_tokens": options.batch_tokens or (400 if toy else 8192), "steps": options.steps or (2 if toy else 8)}
    names = options.only or list(SUBJECTS)
    if options.here:
        for name in names:
            print(json.dumps({"name": name, **told(name, toy=toy, **size)}), flush=True)
        return
    found = apart(names, toy, size, time.monotonic() + options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "toy": toy, **size, "trainings": found}, indent=2) + "\n")
    for result in found:
        print(line(result))
    print(options.out)
    if any("error" in result for result in found):
        raise SystemExit(1)


def apart(names: list[str], toy: bool, size: Mapping[str, int], end: float) -> list[dict[str, Any]]:
    """Each training in a process of its own; at toy size, where memory does not matter, all in one."""
    found: list[dict[str, Any]] = []
    for some in [names] if toy else [[name] for name in names]:
        if (left := end - time.monotonic()) < 45:
            found += [{"name": name, "left_out": "no time"} for name in some]
            continue
        # The parent has asked torch alone whether there is a GPU, so all of its memory is the child's.
        command = [sys.executable, "-m", "benchmarks.gpu", "--here", *["--toy"] * toy, "--only", *some]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in size.items()]
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=left, check=False)
            output = done.stdout
            ended = f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, ended = error.stdout or b"", f"not done after {left:.0f} s"
        lines = [json.loads(row) for row in output.decode().splitlines() if row.startswith("{")]
        there = {result["name"] for result in lines}
        found += lines + [{"name": name, "error": ended} for name in some if name not in there]
    return found


def line(result: Mapping[str, Any]) -> str:
    if "mfu" not in result:
        return f"{result['name']}: {result.get('left_out') or result.get('out_of_memory') or result['error']}"
    mfu = "no MFU" if result["mfu"] is None else f"MFU {result['mfu']:.1%}"
    return (
        f"{result['name']}: {mfu}, {result['tokens_per_second']:,.0f} tokens/s, "
        f"{result['rows_per_second']:.2f} rows/s, first step after {result['seconds_to_first_step']:.1f} s, "
        f"{result['waiting_share']:.1%} waiting for batches"
    )


def machine() -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    versions = {}
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu else f"CPU, {os.cpu_count()} cores",
        "cuda": torch.version.cuda, "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


# --- one training ------------------------------------------------------------------------------------------


def told(name: str, *, toy: bool, batch_tokens: int, steps: int) -> dict[str, Any]:
    """`measure`, or what it failed with."""
    import torch

    try:
        return measure(**SUBJECTS[name], toy=toy, batch_tokens=batch_tokens, steps=steps)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}
    except Exception as error:
        traceback.print_exc()
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def measure(
    *, toy: bool, batch_tokens: int, steps: int, nf4: bool = False, packed: bool = False, trl: bool = False,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    import torch

    from benchmarks import trainings
    from benchmarks.rows import encoder_of, examples, visual
    from vcot import logging
    from vcot.models.device import device, use_device
    from vcot.models.loading import prepare_model
    from vcot.models.shapes import Shapes
    from vcot.training.config import TrainingConfig
    from vcot.training.flops import PEAKS, step_flops

    use_device("cpu" if toy and not torch.cuda.is_available() else "cuda")
    logging.configure("lines")
    on_gpu = device().type == "cuda"
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder, seconds(result, "seconds_all"):
        scratch = Path(folder)
        tokens, words = (24, 10) if toy else (1000, 100)
        count = 8 if toy else 64
        rows = visual(count, tokens=tokens, words=words)
        encoder = encoder_of(BASE, rows)
        with seconds(result, "seconds_rows"):
            made = examples(rows, encoder, scratch / "rows.parquet")
        with seconds(result, "seconds_model"):
            model = random_model(toy)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            if nf4:
                quantise(model)
        config = model.config
        memory = Memory()
        lengths = [row.tokens for row in made.rows]
        batch_rows = max(1, round(batch_tokens * len(lengths) / sum(lengths)))
        shared = {"max_steps": WARM + steps, "epochs": 99, "each_step": memory.step}
        if trl:
            clock = trainings.trl(model, encoder, rows, made, scratch, batch_rows=batch_rows, **shared, **changes)
        else:
            prepare_model(model, model.lm_head.weight.dtype)
            checkpointing = {"gradient_checkpointing": "on"} | changes  # at toy size, too
            clock = trainings.ours(
                model, encoder, made, scratch, packed=packed, batch_tokens=batch_tokens, workers=2 if on_gpu else 0,
                **shared, **checkpointing,
            )  # fmt: skip
        memory.end()
        wall = clock.wall[-1] - clock.wall[WARM - 1]
        batches = clock.batches[WARM : WARM + steps]
        shapes, adapters = Shapes.of(config.to_dict()), TrainingConfig(tune="lora", lora_r=trainings.R)
        needed = [step_flops(shapes, adapters, lengths=b.lengths, learned=b.learned, grids=b.grids) for b in batches]
        flops = sum(each.total for each in needed)
        card = torch.cuda.get_device_name(0) if on_gpu else ""
        peak = next((value for word, value in PEAKS.items() if word in card), None)
        real = sum(sum(batch.lengths) for batch in batches)
        real_rows = sum(len(batch.lengths) for batch in batches)
        waits = clock.waits[WARM : WARM + steps]
        result |= {
            "mfu": None if peak is None else flops / wall / peak,
            "peak_flops_per_second": peak,
            "model_flops": {part: sum(asdict(each)[part] for each in needed) for part in asdict(needed[0])},
            "seconds": wall,
            "tokens_per_second": real / wall,
            "rows_per_second": real_rows / wall,
            "rows_per_step": real_rows / steps,
            "tokens_per_row": sum(lengths) / len(lengths),
            "visual_tokens_per_row": sum(a * b for batch in batches for _, a, b in batch.grids) / 4 / real_rows,
            "real_tokens": real / sum(batch.slots for batch in batches),
            "seconds_to_first_step": clock.first_step,
            "waiting_share": sum(waits) / wall,
            "longest_wait_seconds": max(waits),
            "checkpoint_stall_seconds": clock.saving,
            "losses": clock.losses,
            "parameters": parameters,
            "memory_gib": memory.parts() | ({} if trl else {"head_and_loss_alone": head_memory(model, batches)}),
        }
        del model
        gc.collect()
    return result


@contextlib.contextmanager
def seconds(result: dict[str, Any], name: str) -> Any:
    begun = time.monotonic()
    yield
    result[name] = time.monotonic() - begun


class Memory:
    """Of the GPU, by part; nothing without one.

    weights: the model alone. adapters_and_optimiser: what else is there between two steps. activations: the most
    that a step needs above both, logits and gradients among it.
    """

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._weights = self._between = self._peak = 0
        self._steps = 0
        if self._cuda:
            self._cuda.synchronize()
            self._weights = self._cuda.memory_allocated()

    def step(self) -> None:
        """At the end of each step."""
        self._steps += 1
        if self._cuda and self._steps == WARM:
            self._between = self._cuda.memory_allocated()
            self._cuda.reset_peak_memory_stats()

    def end(self) -> None:
        if self._cuda:
            self._peak = self._cuda.max_memory_allocated()

    def parts(self) -> dict[str, float | None]:
        if not self._cuda:
            return dict.fromkeys(("weights", "adapters_and_optimiser", "activations", "peak", "reserved"))
        return {
            "weights": self._weights / GIB,
            "adapters_and_optimiser": (self._between - self._weights) / GIB,
            "activations": (self._peak - self._between) / GIB,
            "peak": self._peak / GIB,
            "reserved": self._cuda.max_memory_reserved() / GIB,
        }


def head_memory(model: Any, batches: Any) -> float | None:
    """GiB that head and loss take by themselves, forward and backward, of the batch that learns most."""
    import torch

    from vcot.models.loss import head_loss

    head = model.lm_head
    learned = max(batch.learned for batch in batches)
    states = torch.zeros(learned, head.in_features, device=head.weight.device, requires_grad=True)
    targets = torch.zeros(learned, dtype=torch.long, device=head.weight.device)
    on_gpu = states.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    head_loss(head, states, targets).backward()
    if not on_gpu:
        return None
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GIB


# --- the model ---------------------------------------------------------------------------------------------


def shape(toy: bool) -> Any:
    """The configuration: of 7B's shape, or of the rehearsal base's."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(BASE), local_files_only=True)
    if not toy:
        for part, values in ((config.text_config, TEXT), (config.vision_config, VISION)):
            for name, value in values.items():
                setattr(part, name, value)
    return config


def random_model(toy: bool) -> Any:
    """Qwen2.5-VL with random weights on this device."""
    import torch
    from transformers import AutoModelForImageTextToText

    from vcot.models.device import compute_dtype, device

    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForImageTextToText.from_config(
            shape(toy), dtype=torch.float32 if toy else compute_dtype("auto")
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def quantise(model: Any) -> None:
    """The language model's linear layers in NF4 with double quantization, as `load_base` has them from files."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    numbers = model.lm_head.weight.dtype
    language = model.model.language_model
    for name, layer in list(language.named_modules()):
        if not isinstance(layer, torch.nn.Linear):
            continue
        where = layer.weight.device
        with torch.device("meta"):
            narrow = Linear4bit(
                layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=numbers,
                compress_statistics=True, quant_type="nf4",
            )  # fmt: skip
        weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        narrow.weight = weight.to(where)  # quantised on the way, also to where it is
        narrow.bias = layer.bias
        parent, _, last = name.rpartition(".")
        setattr(language.get_submodule(parent), last, narrow)
    model.is_loaded_in_4bit = True  # what PEFT and TRL ask


if __name__ == "__main__":
    main()
