"""What `--plan` is asked with. Apart from the plan itself, whose libraries a run need not wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vcot.settings import Options, nearest, setting
from vcot.training.flops import GPUS

DEFAULT_GPU = "h100-80gb"


class EstimateOptions(Options):
    plan: bool = setting(
        False, "say what the run will take (rows, steps, memory, GPU-hours, money), start nothing; docs/plan.md"
    )
    overlay: Path | None = setting(
        None, "with --plan: an overlay of k8s whose settings are judged, as k8s/overlays/gpu"
    )
    gpu: str | None = setting(
        None,
        f"with --plan: {', '.join(GPUS)}, or cpu; default: what the overlay's node pool asks for, else {DEFAULT_GPU}",
    )
    gpu_memory_gib: float | None = setting(None, "with --plan: its memory, where it is another", unit="GiB", gt=0)
    gpus: int = setting(1, "with --plan: GPUs that train together", unit="GPUs", ge=1)
    gpu_hour_usd: float | None = setting(None, "with --plan: price of one of them", unit="US dollars an hour", gt=0)
    rows: int | None = setting(
        None, "with --plan: rows of the input, where they cannot be read; what they are like is assumed then",
        unit="rows", ge=1,
    )  # fmt: skip
    visual_tokens: int = setting(600, "with --rows: of an image", unit="tokens", ge=0)
    text_tokens: int = setting(80, "with --rows: of a question and what is around it", unit="tokens", ge=1)
    reply_tokens: int = setting(150, "with --rows: of reasoning and answer", unit="tokens", ge=1)
    calibrate: bool = setting(
        False, "with --plan: make five real training steps on this computer first, and say both what is computed and "
        "what was measured"
    )  # fmt: skip
    plan_json: Path | None = setting(None, "with --plan: file for the same numbers in JSON")

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        given = [name for name in EstimateOptions.model_fields if name != "plan" and name in self.model_fields_set]
        if given and not self.plan:
            yield f"--{given[0].replace('_', '-')}: it says something about a plan; give --plan, too"
        if self.gpu is not None and self.gpu not in (*GPUS, "cpu"):
            yield (
                f"--gpu={self.gpu}: no such GPU; there are {', '.join(GPUS)}, and cpu{nearest(self.gpu, GPUS)} Of "
                "another give the most similar one, and --gpu-memory-gib"
            )
        sizes = [name for name in ("visual_tokens", "text_tokens", "reply_tokens") if name in self.model_fields_set]
        if sizes and self.rows is None:
            yield f"--{sizes[0].replace('_', '-')}: what rows are like is assumed with --rows alone; else they are read"
