"""What a training takes, before it begins, by arithmetic on the base's config.json and the settings: memory by part.

    needs = Memory.of(shapes, config, batch, where="cuda")
    needs.peak, needs.weights, needs.activations, …      bytes on each GPU

No weights are read and no torch is loaded. Counted is what torch allocates (`torch.cuda.max_memory_allocated`); what a
GPU needs beside that is CONTEXT. Where each number comes from stands beside it. The method for activations is that of
Korthikanti et al. 2022 (arXiv 2205.05198): which tensors autograd keeps of each layer, one by one; its coefficients are
not (34 · hidden of GPT-3's layer): these layers are gated, have adapters beside frozen weights, and an attention that
keeps no scores. They were derived from the libraries' code and held against `torch.autograd.graph.saved_tensors_hooks`,
and the sum against what trainings really take (`make bench-plan`, docs/log.md).

Legend: N tokens of a batch, padding included; P patches of its images; e bytes of a number that is computed with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vcot.models.families import Part
from vcot.models.shapes import Shapes, Tower
from vcot.training.config import TrainingConfig
from vcot.training.flops import part_learns

Where = Literal["cuda", "cpu"]
DtypeName = Literal["bfloat16", "float32"]

CONTEXT = 1 << 30
"""Of a GPU beside what torch allocates: CUDA's context, cuBLAS' workspace (0.5 to 0.8 GiB), and gaps between blocks."""

PROCESS = {"float32": 7.0 * 2**20, "bfloat16": 21.0 * 2**20}
"""Of a CPU's process, beside tensors and what it had before: objects of Python, and in bfloat16 the kernels that oneDNN
compiles for each shape. Measured, alike for batches of one size and of three times that."""

ERROR = 0.1
"""How far a plan may be from what is measured (docs/log.md)."""

NF4_BITS = 4.127
"""A number in 4 bits, with a scale of 8 bits for each 64 and, of these, one of 32 bits for each 256 (double
quantisation): 4 + 8/64 + 32/(64 · 256), as in the paper of QLoRA (arXiv 2305.14314, §3)."""

OPTIMISER_BYTES = {"adamw_torch_fused": 8.0, "adamw_8bit": 2.0 + 8 / 256, "paged_adamw_8bit": 2.0 + 8 / 256}
"""AdamW's two numbers for each that is trained: float32, or 8 bits with a scale of 32 bits for each 256
(bitsandbytes)."""

HEAD_CHUNK = 1 << 26
"""Numbers of the head that exist at once (vcot.models.loss.CHUNK; a test holds them equal)."""


@dataclass(frozen=True)
class BatchShape:
    """Rows that are alike, side by side. text: tokens of a row beside its image; learned: of these. grid: (rows,
    columns) of the image in patches; merge² patches are a visual token."""

    rows: int
    text: int
    learned: int
    grid: tuple[int, int] = (0, 0)
    merge: int = 2

    @property
    def visual(self) -> int:
        return self.grid[0] * self.grid[1] // self.merge**2

    @property
    def tokens(self) -> int:
        """Of one row."""
        return self.text + self.visual

    @property
    def load(self) -> Load:
        rows = self.rows
        return Load(rows * self.tokens, rows * self.grid[0] * self.grid[1], rows * self.learned)


@dataclass(frozen=True)
class Load:
    """What a batch has: tokens (padding included), patches of all images, tokens that are learned."""

    tokens: float
    patches: float
    learned: float


def batch_of(load: Load, shapes: Shapes) -> BatchShape:
    """Rows that are alike and together have about this: of some 500 tokens, or of an image where there are any."""
    side = shapes.fixed_side // shapes.patch_size if shapes.fixed_side else 0
    rows = max(1, round(load.patches / side**2 if side else load.tokens / 500))
    if not side:
        side = shapes.merge * max(0, round(math.sqrt(load.patches / rows) / shapes.merge))
    text = max(8, round(load.tokens / rows) - side * side // shapes.merge**2)
    learned = min(text - 2, max(1, round(load.learned / rows)))
    return BatchShape(rows, text, learned, (side, side) if load.patches else (0, 0), shapes.merge)


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU.

    Attributes:
        weights: of the base. adapters: what is trained beside it. gradients, optimiser: of what is trained.
        kept: what the backward pass needs of the forward pass. working: what one layer takes for itself beside that,
        where it takes most. logits: the output head's, forward and backward. images: pixels as they are given.
        peak: the most at once; less than the sum of the parts, as these are not all there at the same time.
    """

    weights: float
    adapters: float
    gradients: float
    optimiser: float
    kept: float
    working: float
    logits: float
    images: float
    process: float
    peak: float

    @classmethod
    def of(
        cls, shapes: Shapes, config: TrainingConfig, load: Load, *, dtype: DtypeName, where: Where = "cuda",
        checkpointing: bool = False, ranks: int = 1, sharded: bool = False,
    ) -> Memory:  # fmt: skip
        """
        Args:
            load: of the largest batch. dtype: what is computed with. checkpointing: activations are made twice.
            ranks: GPUs that train together. sharded: each holds a part of every weight (FSDP2), else all of it.
        """
        run = _Activations(shapes, config, dtype, where)
        weights, adapters, trained = _weights(shapes, config, run.e, images=load.patches > 0)
        parts = ranks if sharded else 1
        whole = 0.0  # what FSDP2 gathers: two layers, and what is not among the layers all the time
        if sharded:
            rest = shapes.parameters() - shapes.text.parameters - shapes.vision.parameters
            whole = run.e * (rest + 2 * (shapes.text.matrices + shapes.text.others))
        gradients = 4 * trained / (parts if config.tune == "full" else 1)
        optimiser = OPTIMISER_BYTES[config.optim] * trained / (parts if config.tune == "full" else 1)
        # DDP has what it exchanges a second time, in buckets.
        buckets = 4 * trained if ranks > 1 and not (sharded and config.tune == "full") else 0
        static = weights / parts + whole + adapters + optimiser + buckets
        kept, seen = run.kept(load, checkpointing), run.kept_of_vision(load, checkpointing)
        working, logits, images = run.working(load, checkpointing), run.logits(load), 4 * shapes.patch * load.patches
        # Gradients of earlier batches are there while later ones are computed; those of the first come one by one, of
        # the language model's first layer and what is before it last.
        before = gradients if config.gradient_accumulation_steps > 1 else 0
        moments = (
            before + (0 if seen else run.seeing(load)),  # the vision tower looks
            before + kept + seen + max(logits, working - run.last_norm(load)),  # the last layer's backward pass begins
            max(before, gradients * run.late) + seen + working,  # the first layer's
            gradients,  # the optimiser's step
        )
        process = 0.0 if where == "cuda" else PROCESS[dtype]
        peak = static + images + process + max(moments)
        found = weights / parts + whole, adapters, gradients + buckets, optimiser, kept + seen, working
        return cls(*found, logits, images, process, peak)


def fits(memory: Memory, gpu: int) -> bool:
    """Whether it does even where the plan is too low by as much as it has been found to be."""
    return memory.peak * (1 + ERROR) + CONTEXT <= gpu


def divides(shapes: Shapes, config: TrainingConfig, *, ranks: int, memory: int | None) -> bool:
    """Whether each of the ranks holds a part of every weight (--parallel). memory: bytes of a GPU; None: a CPU."""
    if ranks == 1 or memory is None or config.parallel != "auto" or config.tune == "qlora":
        return config.parallel == "fsdp" and ranks > 1
    whole = Memory.of(shapes, config, Load(1, 0, 1), dtype="bfloat16", ranks=ranks)
    return whole.peak >= 0.7 * memory  # the rest is for activations


def checkpoints(
    shapes: Shapes, config: TrainingConfig, *, dtype: DtypeName, memory: int | None, ranks: int = 1,
    sharded: bool = False,
) -> bool:  # fmt: skip
    """Whether activations are computed twice (--gradient-checkpointing): on a GPU that cannot keep those of the largest
    batch that there may be."""
    if config.gradient_checkpointing != "auto" or memory is None:
        return config.gradient_checkpointing == "on"
    n = config.batch_tokens
    load = Load(n, n * shapes.merge**2, n)
    return not fits(Memory.of(shapes, config, load, dtype=dtype, ranks=ranks, sharded=sharded), memory)


def _weights(shapes: Shapes, config: TrainingConfig, e: int, *, images: bool) -> tuple[float, float, float]:
    """Bytes of the base's weights and of adapters, and how many numbers get gradients. images: there are any; else
    what sees them gets none."""
    if config.tune == "full":
        # float32, as bfloat16 has no room for small steps.
        seeing: tuple[Part, ...] = ("merger", "vision")
        frozen = sum(shapes.parameters(part) for part in seeing if not (images and config.part_learning_rate(part)))
        if config.freeze_embeddings:
            frozen += shapes.embeddings * (1 if shapes.tied else 2)
        return 4.0 * shapes.parameters(), 0.0, float(shapes.parameters() - frozen)
    trained = shapes.adapter_parameters(config.lora_r, config.targets)
    if config.use_dora:  # the length of each of a weight's rows
        trained += sum(out * times for _, out, times in shapes.adapted(config.targets))
    weights = float(e * shapes.parameters())
    if config.tune == "qlora":
        narrow = shapes.text.layers * shapes.text.matrices
        weights -= narrow * (e - NF4_BITS / 8)
    return weights, 4.0 * trained, float(trained)


@dataclass(frozen=True)
class _Activations:
    """What autograd keeps, and what is there for a moment."""

    shapes: Shapes
    config: TrainingConfig
    dtype: DtypeName
    where: Where

    @property
    def e(self) -> int:
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def _attends_in(self) -> int:
        """Bytes of a number of queries, keys, values: on a CPU attention is float32 (vcot.models.attention)."""
        return 4 if self.where == "cpu" else self.e

    def _residual(self, *, vision: bool) -> int:
        """Bytes of a number between layers: with full weights the embeddings are float32, the patches are not."""
        return 4 if self.config.tune == "full" and not vision else self.e

    def kept(self, load: Load, checkpointing: bool) -> float:
        """Of the language model, from its first layer to the head."""
        text, full = self.shapes.text, self.config.tune == "full"
        found = self.last_norm(load)
        if checkpointing:
            return found + text.layers * load.tokens * self._residual(vision=False) * text.hidden
        found += text.layers * self._of_layer(text, load.tokens)
        if not (full or part_learns(self.config, "merger")):
            # What comes before the first adapter needs no gradient: the first norm, what was dropped of its result.
            drops = self._mask * len(text.into_attention) * text.hidden if self._drops else 0
            found -= load.tokens * (4 * text.hidden + 4 + drops)
        if self.e == 2 and full:
            found += 2 * self.shapes.embeddings  # the head in bfloat16, as in _casts
        return found

    def last_norm(self, load: Load) -> float:
        """What it keeps, and the head behind it: gone when the last layer's backward pass begins."""
        h = self.shapes.text.hidden
        return load.tokens * h * 4 * (1 + (self.config.tune == "full")) + load.learned * h * self.e

    def kept_of_vision(self, load: Load, checkpointing: bool) -> float:
        """Of the vision tower and what is behind it, where they learn."""
        vision, full, found = self.shapes.vision, self.config.tune == "full", 0.0
        if part_learns(self.config, "vision"):
            found += vision.layers * (
                load.patches * self.e * vision.hidden if checkpointing
                else self._of_layer(vision, load.patches, vision=True)
            )  # fmt: skip
            found += load.patches * self.shapes.patch * 2 * (full and self.e == 2)  # pixels in bfloat16
        if part_learns(self.config, "merger"):
            # A norm in float32; of each linear layer what goes in, and what GELU is given.
            merged = load.patches / self.shapes.merge**2
            found += load.patches * vision.hidden * 4 * (1 + full)
            found += merged * sum(self._goes_in(a, 1, fresh=True) + self._adapter for a, _ in self.shapes.mergers)
            found += merged * self.e * sum(b for _, b in self.shapes.mergers[::2])
            found += 2 * self.shapes.parameters("merger") * (self.e == 2 and full)
        return found if load.patches else 0.0

    def _of_layer(self, tower: Tower, tokens: float, *, vision: bool = False) -> float:
        h, q, k, m, e = tower.hidden, tower.wide, tower.narrow, tower.inner, self.e
        full, attends = self.config.tune == "full", self._attends_in
        # Two norms: their input in float32 and, where their weights learn, what these are multiplied with.
        norms = 2 * (4 * h + 4 + h * self._residual(vision=vision) * full) if tower.rms else 2 * (4 * h + 8)
        into, up = len(tower.into_attention), 2 if tower.gated else 1
        padded = self.where == "cpu" and (vision or self.config.packing == "on")
        inputs = (
            self._goes_in(h, into, fresh=True) + self._goes_in(h, up, fresh=True) + self._goes_in(m, 1, fresh=False)
        )
        out = self._goes_in(q, 1, fresh=False)
        if not padded and attends == e and not self._drops and not self._widened:
            out = 0  # attention keeps the very same tensor
        inputs += out + self._adapter * len(tower.linears)
        heads = 4 * tower.heads + (2 * q + 2 * k) * attends  # queries, keys, values, result, and a number for each sum
        if tower.fused and attends == e:
            heads += 2 * q * e  # values are a view of what one layer made of all three
        if padded:
            heads += 8 + (q + 2 * k) * attends
        mlp = (3 if tower.gated else 1) * m * e
        return tokens * (norms + inputs + heads + mlp) + self._casts(tower)

    @property
    def _drops(self) -> bool:
        return self.config.tune != "full" and self.config.lora_dropout > 0

    @property
    def _widened(self) -> bool:
        """Whether PEFT hands adapters their input in float32."""
        return self.e == 2 and (self.config.tune == "lora" or self.where == "cpu")

    @property
    def _mask(self) -> int:
        """Bytes that say what was dropped of a number."""
        return 1 if self.where == "cuda" else 4 if self._widened else self.e

    def _goes_in(self, size: int, layers: int, *, fresh: bool) -> float:
        """Bytes a token that linear layers keep of one input. fresh: it comes from a norm.

        Without dropout, and without a cast, several layers keep the same tensor. Frozen weights keep nothing, the
        adapters beside them do: after dropout a tensor each, and what was dropped (a byte each on a GPU, a number on
        a CPU). PEFT casts to the adapters' float32 before, and autocast back.
        """
        e = self.e
        if self.config.tune == "full":
            return float(size * e * (layers if e == 2 and fresh else 1))
        if not self._drops:
            return float(size * e * (layers if self._widened else 1))
        return float(size * (self._mask + e) * layers)

    @property
    def _adapter(self) -> float:
        """Bytes a token between the two matrices of an adapter."""
        return 0.0 if self.config.tune == "full" else float(self.config.lora_r * self.e)

    def _casts(self, tower: Tower) -> float:
        """Copies in bfloat16 of weights that are kept in float32: those that are trained."""
        if self.e == 4:
            return 0.0
        if self.config.tune == "full":
            return 2.0 * tower.matrices
        return 2.0 * self.config.lora_r * sum(a + b for a, b in tower.linears)

    def working(self, load: Load, checkpointing: bool) -> float:
        """Of a layer's MLP backward, where it is widest: gradients of what goes into its last linear layer, once for
        the weight and once for the adapter beside it, in float32 on their way through PEFT's casts and the dropout.
        Measured; of h and m, as bases with m = 2h and m = 6h tell them apart."""
        text = self.shapes.text
        h, m, full = text.hidden, text.inner, self.config.tune == "full"
        if full:
            a_token = 2 * self.e * m + 4 * h
        elif self.e == 4:
            a_token = 4 * m + 16 * h if self._drops else 8 * m + 4 * h
        elif self._drops:
            a_token = (10 if self._widened else 6) * m + 6 * h
        else:
            a_token = 6 * m + 10 * h
        found = float(load.tokens * a_token)
        if self.config.tune == "qlora" and self.where == "cuda":
            found += 2 * h * m  # the weight itself, for a moment in 16 bits
        if checkpointing:
            found += self._of_layer(text, load.tokens)
            if self._residual(vision=False) == 4:  # the first norm's input is what was kept
                found -= load.tokens * 4 * h
            elif self.e == 2:
                found += load.tokens * 8 * h
        return found

    @property
    def late(self) -> float:
        """Share of the gradients that are there when the first layer's are still to come."""
        layers = self.shapes.text.layers
        if self.config.tune != "full":
            return (layers - 1) / layers
        text = self.shapes.text
        head = 0 if self.shapes.tied else self.shapes.embeddings
        return ((layers - 1) * text.matrices + head) / self.shapes.parameters()

    def logits(self, load: Load) -> float:
        """Of at most HEAD_CHUNK numbers at once: their logarithms, the gradients of these, and those of the logits."""
        return 12 * min(load.learned * self.shapes.vocabulary, HEAD_CHUNK)

    def seeing(self, load: Load) -> float:
        """Of one layer of a vision tower that keeps nothing: queries and keys are turned in float32."""
        vision = self.shapes.vision
        return load.patches * max((5 * self.e + 24) * vision.hidden, self.e * (2 * vision.hidden + 3 * vision.inner))
