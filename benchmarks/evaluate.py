"""Replies a second of evaluate on this machine, beside a loop of one row at a time: `python -m benchmarks.evaluate`.

    stage    the rows of a finished convert stage, asked as evaluate asks: batches, cache (empty each round), shards,
             every reply scored and kept
    loop     the same questions, as a person would ask them: open the image, the library's processor with the base's
             own chat template, `model.generate` with its defaults, greedy; nothing is scored or kept

Rows are drawn scenes of the sizes that the rehearsal base knows, replies are as long as it makes them, at most
`--max-new-tokens`. Both have the same weights, dtype and torch threads, and take turns in this process, after a warm-up
that does not count. What counts is the ratio within a round: seconds of the wall belong to whoever else is on the
machine, so seconds of a core stand beside them. One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs.evaluate has it; before torch is loaded

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from benchmarks.distill import spread
from benchmarks.rows import ROOT
from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.evaluate import EvaluateSettings
from vcot import logging
from vcot.evaluation.evaluation import Evaluation, models_of
from vcot.evaluation.models import Models
from vcot.evaluation.runner import read_replies
from vcot.evaluation.subjects import Subject, subject_at
from vcot.models.device import compute_dtype, use_device
from vcot.records import Folder, Sample, read_samples
from vcot.records.metadata import EvaluateMetadata
from vcot.records.shards import EVALUATE, run_shards
from vcot.storage import Store
from vcot.tokens import prompt_text


class Measured(NamedTuple):
    texts: list[str]
    wall: float
    cpu: float


def measured(work: Callable[[], list[str]]) -> Measured:
    wall, cpu = time.monotonic(), time.process_time()
    texts = work()
    return Measured(texts, time.monotonic() - wall, time.process_time() - cpu)


def by_stage(store: Store, subject: Subject, settings: EvaluateSettings, models: Models, scratch: str) -> list[str]:
    """Replies to all rows, in order."""
    folder = Folder(store, tempfile.mkdtemp(dir=scratch), EVALUATE)
    evaluation = Evaluation(store, folder, subject, settings, models, cache_uri=tempfile.mkdtemp(dir=scratch))
    marker = run_shards(
        folder, settings, inputs=subject.inputs, shards=len(evaluation.runner.units), work=evaluation.runner.run,
        max_rejected_share=0, metadata=EvaluateMetadata(subject=subject.uri, base=None, base_sha256=None), bar=False,
    )  # fmt: skip
    assert marker is not None
    return [reply.completion.text for reply in read_replies(store, folder.uri, marker.shards)]


def by_loop(samples: Sequence[Sample], processor: Any, model: Any, max_new_tokens: int) -> list[str]:
    texts = []
    for sample in samples:
        said = [{"type": "image"}, {"type": "text", "text": prompt_text(sample)}]
        text = processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
        image = Image.open(sample.shown.kept.uri).convert("RGB")
        inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        ends = {*model.generation_config.eos_token_id}
        kept = [token for token in ids[0, inputs.input_ids.shape[1] :].tolist() if token not in ends]
        texts.append(processor.decode(kept, skip_special_tokens=False))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "rehearsal", help="folder of a base model")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5, help="that count, after a warm-up that does not")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    given = parser.parse_args()
    transformers_logging.disable_progress_bar()
    use_device("cpu")
    logging.configure()
    logging.quiet()
    store = Store()
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as scratch:
        whole: dict[str, Any] = {"source": "scenes", "scenes": given.rows, "validation_share": 0.0}
        run_convert(ConvertSettings(run_uri=scratch, num_shards=1, **whole))
        settings = EvaluateSettings(
            run_uri=scratch, subject=str(given.base), conditions=("real",), max_new_tokens=given.max_new_tokens,
            split="train", dtype=given.dtype, device="cpu",
        )  # fmt: skip
        subject = subject_at(store, scratch, settings.subject, samples_uri=None, fail_if_worse_than=None)
        dtype = compute_dtype(given.dtype)
        processor = AutoProcessor.from_pretrained(str(given.base))
        model = AutoModelForImageTextToText.from_pretrained(str(given.base), dtype=dtype).eval()
        with models_of(store, subject, settings, cache_uri=scratch, scratch=Path(scratch) / "base") as models:
            samples = list(read_samples(store, subject.samples.uri, subject.samples.marker))
            rounds: list[dict[str, Measured]] = []
            subjects: dict[str, Callable[[], list[str]]] = {
                "stage": lambda: by_stage(store, subject, settings, models, scratch),
                "loop": lambda: by_loop(samples, processor, model, given.max_new_tokens),
            }
            by_loop(samples[:8], processor, model, given.max_new_tokens)
            subjects["stage"]()
            for number in range(given.rounds):
                turn = [*subjects] if number % 2 else [*reversed(subjects)]
                rounds.append({name: measured(subjects[name]) for name in turn})
    print(json.dumps(result(rounds, dtype)))


def result(rounds: Sequence[dict[str, Measured]], dtype: torch.dtype) -> dict[str, Any]:
    stage, loop = ([each[name] for each in rounds] for name in ("stage", "loop"))
    texts, pairs = stage[0].texts, list(zip(stage, loop, strict=True))
    assert all(each.texts == texts for each in stage), "the same rows, and other replies in another round"
    rows = len(texts)
    return {
        "rows": rows, "rounds": len(rounds), "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "equal_replies": sum(ours == theirs for ours, theirs in zip(texts, loop[0].texts, strict=True)),
        "stage_per_second": round(median(rows / each.wall for each in stage), 2),
        "loop_per_second": round(median(rows / each.wall for each in loop), 2),
        "stage_cpu_ms": round(median(1000 * each.cpu / rows for each in stage), 1),
        "loop_cpu_ms": round(median(1000 * each.cpu / rows for each in loop), 1),
        "times_the_loop": spread([one.wall / ours.wall for ours, one in pairs]),
        "times_the_loop_by_cpu": spread([one.cpu / ours.cpu for ours, one in pairs]),
    }  # fmt: skip


if __name__ == "__main__":
    main()
