"""Make the rehearsal base model from nothing: tokenizer, configuration, weights.

    python examples/rehearsal/make_base.py --out build/rehearsal      (`make rehearsal-base`)

The classes are Hugging Face's own `Qwen2_5_VLForConditionalGeneration` and
`Qwen2_5_VLProcessor`; only the sizes are small. It learns to point on drawn scenes
(`vcot/datasets/scenes`). Batch number i is a pure function of the seed and i, so a run that
was cut off goes on from its state as if nothing had happened.

What is not plain next-token training, and why:

- Several questions about one image share one sequence: every question sees the image and
  itself, never another question. The image is paid for once.
- Dense auxiliary losses (what lies under each patch, and its box) behind the vision part, behind
  the merger and in the middle of the text model, and the box regressed from the hidden state at
  `<box>`. A next-token loss alone takes ten times as long to discover that images matter. These
  heads are thrown away.
- Digits count by their place: a wrong hundreds digit costs more than a wrong units digit.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vcot.datasets.scenes import drawing  # noqa: E402
from vcot.datasets.scenes import objects as scenes  # noqa: E402
from vcot.datasets.scenes.objects import Pointing, Question, Scene, SceneObject, SceneSpec  # noqa: E402
from vcot.grounding import Box, FrameSpec, Mention, Trace, iou, parse, render_reply, split_answer  # noqa: E402
from vcot.tokens import contract_of  # noqa: E402

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TAGS = ("<ref>", "</ref>", "<box>", "</box>")
VOCABULARY = 480
MOST_PIXELS = 112 * 112
PATCH, CELL = 14, 28
SHAPES_OF_IMAGES = ((84, 112), (112, 112), (112, 84))  # (height, width) after resizing
THOUSANDTHS = FrameSpec("thousandths")
PROMPT_OPEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TEXT_LAYERS = 5
RANKS = 2  # processes of one thread each; gradients are averaged


# --------------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------------


def grey(spec: SceneSpec) -> Image.Image:
    """A uniform grey image: what a model says of it was not seen."""
    return Image.new("RGB", (spec.width, spec.height), (128, 128, 128))


_ONSETS = ("b", "bl", "c", "ch", "d", "f", "g", "h", "j", "l", "m", "n", "p", "pl", "s", "st", "t", "tr", "v", "w", "")
_VOWELS = ("a", "e", "i", "o", "oo", "u", "ea")
_ENDS = ("", "ck", "d", "ll", "m", "n", "r", "t", "s", "x", "ng")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def absent_label(rng: np.random.Generator, scene: Scene) -> str:
    """A label that nothing in the scene has; mostly of words that no scene knows, often of words without meaning: one
    to three, some behind the name of a colour.
    """
    if rng.random() >= 0.7:
        return scenes.undrawn_label(rng, scene)
    if rng.random() >= 0.6:
        return _pick(rng, scenes.NEVER_DRAWN)
    words = [_pick(rng, scenes.COLOURS)] if rng.random() < 0.6 else []
    for _ in range(int(rng.integers(1, 3))):
        syllables = int(rng.integers(1, 4))
        words.append("".join(_pick(rng, _ONSETS) + _pick(rng, _VOWELS) + _pick(rng, _ENDS) for _ in range(syllables)))
    return " ".join(words)


def ask_several(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """The questions one training image is used for: mostly "where", some of the others."""
    single = [x for x in dict.fromkeys(scene.labels) if len(scene.boxes(x)) == 1]
    asked = [scenes.ask_where(rng, scene, x) for x in single]
    if not asked or rng.random() < 0.25:
        asked.append(scenes.ask_where(rng, scene, absent_label(rng, scene)))
    repeated = len(single) < len(set(scene.labels))
    if repeated or rng.random() < 0.3:
        kind = ("count", "point", "presence")[int(rng.integers(2 if repeated else 3))]
        asked.append(scenes.ask(rng, scene, kind))
    return asked


def render(question: Question, width: int, height: int) -> str:
    """The assistant's text: reasoning with boxes in thousandths, then the answer."""
    parts = [
        Mention(p.label, tuple(_box(b, width, height) for b in p.boxes)) if isinstance(p, Pointing) else p
        for p in question.reasoning
    ]
    return render_reply(Trace(tuple(parts)), question.answer, THOUSANDTHS.on(width, height))


def _box(edges: tuple[float, float, float, float], width: int, height: int) -> Box:
    return Box.from_pixels(*edges, width=width, height=height, overhang=1e-3)


def _corpus() -> Iterator[str]:
    """What the byte pairs are learned from: the questions, the replies, and some plain English."""
    rng = np.random.default_rng(7)
    box = (10.0, 20.0, 60.0, 80.0)
    image = grey(SceneSpec())
    for colour in scenes.COLOURS:
        for shape in scenes.SHAPES:
            scene = Scene(image, (SceneObject(colour, shape, box),))
            for _ in range(6):
                label = scene.labels[0]
                for q in (
                    scenes.ask_where(rng, scene, label),
                    scenes.ask_count(rng, scene, label),
                    scenes.ask_count(rng, scene, label, "point"),
                    scenes.ask_presence(rng, scene, label),
                    scenes.ask_presence(rng, scene, scenes.absent_label(rng, scene)),
                ):
                    yield PROMPT_OPEN.replace("<|", " ").replace("|>", " ")
                    yield q.text
                    yield render(q, 160, 120)
    for row in scenes.PLACES:
        for spot in row:
            for _ in range(30):
                yield f" is at the {spot}.\nAnswer: {spot}"
    english = (
        "First, I see the object. Next to it, I find another one, which is to the right of the "
        "first. Finally, this means that the answer is as follows. Because there are more of "
        "these than of those, it must be the larger one. What is shown in the picture? Which of "
        "the following is true? It is above, below, in front of, behind, near, between. "
        "Yes, no. Options: (A) (B) (C) (D). The number of things in this image. Then I look at."
    )
    for _ in range(40):
        yield english


def make_tokenizer() -> Any:
    """Byte-level BPE with Qwen's special tokens; digits one by one, the tags atomic."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Qwen's own pattern (one digit at a time), with ", " before a digit as one piece: it is the
    # separator inside boxes and would otherwise be two tokens.
    pattern = (
        r", (?=\p{N})|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    learned = VOCABULARY - len(SPECIAL) - len(TAGS)
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [t for line in _corpus() for t in _without_tags(line)]
    tok.train_from_iterator(lines, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    # Not special: decoding with skip_special_tokens must keep them.
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _without_tags(line: str) -> list[str]:
    for tag in TAGS:
        line = line.replace(tag, "\0")
    return [piece for piece in line.split("\0") if piece]


def make_processor(tokenizer: Any) -> Any:
    """The real processor with a budget of 112 x 112 pixels and TRL's copy of Qwen's template."""
    import trl
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": 56 * 56, "longest_edge": MOST_PIXELS}
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja"
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=template.read_text(encoding="utf-8"),
    )


def make_config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.04,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_heads": 5,
            "out_hidden_size": 192,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "initializer_range": 0.04,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def make_model(config: Any, tokenizer: Any, seed: int) -> Any:
    """The real class with random weights, float32."""
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # What is added to the residual stream starts small, as deep as the stack is.
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                p.mul_(1 / math.sqrt(2 * TEXT_LAYERS))
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=ends[1], bos_token_id=ends[1]
    )
    return model


def own_form(processor: Any) -> str:
    """contract.json: in which form the base was taught to point, for who asks it before it is tuned."""
    contract = contract_of(processor, mode="multimodal", frame="thousandths", max_length=512)
    return json.dumps({"contract": contract.model_dump(mode="json")}, indent=1, sort_keys=True) + "\n"


def save(model: Any, processor: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """A folder `from_pretrained` loads, bfloat16, swapped in whole."""
    import copy

    import torch

    temporary = folder.with_name(folder.name + f".{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    small = copy.deepcopy(model)
    if weights is not None:
        small.load_state_dict(weights)
    small = small.to(torch.bfloat16)
    small.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    (temporary / "contract.json").write_text(own_form(processor))
    old = folder.with_name(folder.name + f".old{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# --------------------------------------------------------------------------------------------
# Batches
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on."""

    seed: int = 1
    looks: int = 3000  # steps that train the vision part alone, on the dense losses
    steps: int = 9800  # steps in all
    look_batch: int = 16  # images a rank in a step of looking
    batch: int = 8  # images a rank in a step of pointing
    rate: float = 1e-3
    warmup: int = 300
    decay_from: float = 0.8  # share of the steps after which the rate falls to nothing
    chunk: int = 128  # scenes drawn at once
    weight_decay: float = 0.05
    ema: float = 0.995


@dataclass
class Batch:
    """Images of one size with their questions.

    pixels uint8 [B, 3, H, W]; ids, weights, segments [B, T]; positions int64 [3, B, T];
    colour, shape int64 [B, N, 4] and corners float32 [B, N, 4, 4] for the 4 patches of each of
    N visual tokens (0 = nothing there; corners are x1 y1 x2 y2 from the patch's centre, in units
    of 28 pixels); asked float32 [B, T, 4]: the box being told at this token in 0..1, -1 where none.
    """

    pixels: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    corners: np.ndarray
    asked: np.ndarray


def curriculum(progress: float, rng: np.random.Generator, shape: int) -> SceneSpec:
    """What to draw when this share of the training is done."""
    aspect = SHAPES_OF_IMAGES[shape]
    scale = float(rng.choice([1.0, 1.4, 2.0]))
    height, width = round(aspect[0] * scale), round(aspect[1] * scale)
    if progress < 0.03:
        return SceneSpec(width, height, 1, 2, float(rng.uniform(0, 1)), 0.1, 0.12, 0.5)
    least = 0 if rng.random() < 0.04 else 1 if rng.random() < 0.5 else 2
    rough = 1.0 if rng.random() < 0.85 else float(rng.uniform(0, 1))
    return SceneSpec(width, height, least, 3, rough, 0.12, 0.09, 0.5)


def _mirrored(scene: Scene, pixels: np.ndarray, how: int) -> tuple[Scene, np.ndarray]:
    """The scene and its pixels [3, H, W] as they are (0), left-right (1) or upside down (2)."""
    if how == 0:
        return scene, pixels
    w, h = scene.image.size
    turned = []
    for o in scene.objects:
        x1, y1, x2, y2 = o.box
        box = (w - x2, y1, w - x1, y2) if how == 1 else (x1, h - y2, x2, h - y1)
        turned.append(SceneObject(o.colour, o.shape, box))
    pixels = pixels[:, :, ::-1] if how == 1 else pixels[:, ::-1, :]
    return Scene(scene.image, tuple(turned)), pixels


def _dense(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies under every patch, in the order of the processor's patches (2 x 2 blocks)."""
    rows, cols = height // PATCH, width // PATCH
    colour = np.zeros((rows, cols), np.int64)
    shape = np.zeros((rows, cols), np.int64)
    corners = np.zeros((rows, cols, 4), np.float32)
    best = np.zeros((rows, cols), np.float32)
    sx, sy = width / scene.image.width, height / scene.image.height
    left = np.arange(cols) * PATCH
    top = np.arange(rows) * PATCH
    for o in scene.objects:
        x1, y1, x2, y2 = o.box[0] * sx, o.box[1] * sy, o.box[2] * sx, o.box[3] * sy
        ox = np.clip(np.minimum(left + PATCH, x2) - np.maximum(left, x1), 0, None)
        oy = np.clip(np.minimum(top + PATCH, y2) - np.maximum(top, y1), 0, None)
        share = oy[:, None] * ox[None, :] / min(PATCH * PATCH, (x2 - x1) * (y2 - y1))
        won = (share > 0.2) & (share > best)
        best[won] = share[won]
        colour[won] = 1 + scenes.COLOURS.index(o.colour)
        shape[won] = 1 + scenes.SHAPES.index(o.shape)
        cx, cy = (left + PATCH / 2)[None, :], (top + PATCH / 2)[:, None]
        there = np.stack(np.broadcast_arrays(x1 - cx, y1 - cy, x2 - cx, y2 - cy), axis=-1).astype(np.float32)
        corners[won] = there[won] / CELL

    def blocks(a: np.ndarray) -> np.ndarray:
        tail = a.shape[2:]
        a = a.reshape(rows // 2, 2, cols // 2, 2, *tail)
        a = np.moveaxis(a, 2, 1)
        return a.reshape(rows * cols // 4, 4, *tail)

    return blocks(colour), blocks(shape), blocks(corners)


class Encoder:
    """Questions to token ids with weights; holds the ids that recur."""

    def __init__(self, tokenizer: Any) -> None:
        self.tok = tokenizer
        self.open = self._ids(PROMPT_OPEN + "<|vision_start|>")
        self.image = self._ids("<|image_pad|>")[0]
        self.close = self._ids("<|vision_end|>")
        self.reply = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self._ids("<|im_end|>")
        self.pad = self._ids("<|endoftext|>")[0]
        self.box, self.box_end = self._ids("<box>")[0], self._ids("</box>")[0]
        self.digits = {self._ids(str(d))[0] for d in range(10)}
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        return list(self.tok(text, add_special_tokens=False)["input_ids"])

    def ids(self, text: str) -> list[int]:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = self._ids(text)
        return found

    def question(self, q: Question, scene: Scene) -> tuple[list[int], list[float], list[list[float]]]:
        """ids, weight of each as a target, and the box each token is telling (or -1s)."""
        w, h = scene.image.size
        prompt = self.ids(q.text) + self.reply
        target = self._ids(render(q, w, h)) + self.end
        weights = [0.3] * len(target)
        none = [-1.0] * 4
        asked = [none] * len(target)
        boxes = [b for p in q.reasoning if isinstance(p, Pointing) for b in p.boxes]
        i = 0
        while i < len(target):
            if target[i] != self.box:
                i += 1
                continue
            x1, y1, x2, y2 = boxes.pop(0)
            here = [x1 / w, y1 / h, x2 / w, y2 / h]
            stop = target.index(self.box_end, i)
            run: list[int] = []
            for j in range(i, stop + 1):
                if j < stop:
                    asked[j] = here
                if target[j] in self.digits:
                    run.append(j)
                else:
                    weights[j] = 0.1
                    for place, k in enumerate(run):
                        weights[k] = (1.0, 0.6, 0.25, 0.25)[place]
                    run = []
            weights[i] = 0.3
            i = stop + 1
        return (
            prompt + target,
            [0.0] * len(prompt) + weights,
            [none] * len(prompt) + asked,
        )

    def image_part(self, rows: int, cols: int) -> tuple[list[int], np.ndarray, int]:
        """What stands before all questions about an image: ids, positions [3, T] and the last of these."""
        n, p = rows * cols, len(self.open)
        after = p + max(rows, cols)
        grid = np.stack([np.full(n, p), p + np.repeat(np.arange(rows), cols), p + np.tile(np.arange(cols), rows)])
        head = np.concatenate([np.tile(np.arange(p), (3, 1)), grid, np.full((3, 1), after)], axis=1)
        return [*self.open, *([self.image] * n), *self.close], head, after

    def batch(self, items: list[tuple[Scene, np.ndarray, list[Question]]]) -> Batch:
        height, width = items[0][1].shape[1:]
        rows, cols = height // CELL, width // CELL
        n = rows * cols
        prefix, head, after = self.image_part(rows, cols)
        rows_out = []
        for scene, _, questions in items:
            ids, weights = list(prefix), [0.0] * len(prefix)
            segments = [0] * len(prefix)
            asked = [[-1.0] * 4] * len(prefix)
            positions = [head]
            for k, q in enumerate(questions, start=1):
                i, wt, a = self.question(q, scene)
                ids += i
                weights += wt
                asked = asked + a
                segments += [k] * len(i)
                positions.append(np.tile(after + 1 + np.arange(len(i)), (3, 1)))
            rows_out.append((ids, weights, segments, asked, np.concatenate(positions, axis=1)))
        longest = max(len(r[0]) for r in rows_out)
        longest += -longest % 8
        b = len(items)
        out = Batch(
            pixels=np.stack([x for _, x, _ in items]),
            ids=np.full((b, longest), self.pad, np.int64),
            weights=np.zeros((b, longest), np.float32),
            segments=np.full((b, longest), 99, np.int64),
            positions=np.zeros((3, b, longest), np.int64),
            colour=np.zeros((b, n, 4), np.int64),
            shape=np.zeros((b, n, 4), np.int64),
            corners=np.zeros((b, n, 4, 4), np.float32),
            asked=np.full((b, longest, 4), -1.0, np.float32),
        )
        for r, ((scene, _, _), (ids, weights, segments, asked, positions)) in enumerate(
            zip(items, rows_out, strict=True)
        ):
            t = len(ids)
            out.ids[r, :t], out.weights[r, :t], out.segments[r, :t] = ids, weights, segments
            out.asked[r, :t] = asked
            out.positions[:, r, :t] = positions
            out.colour[r], out.shape[r], out.corners[r] = _dense(scene, height, width)
        return out


def _length(questions: list[Question]) -> int:
    """About how many tokens an image's questions take."""
    parts = [p for q in questions for p in q.reasoning if isinstance(p, Pointing)]
    return 26 * len(questions) + 21 * sum(len(p.boxes) for p in parts)


def shrunk(scene: Scene, height: int, width: int) -> np.ndarray:
    """The image at the model's size, uint8 [3, height, width]: exactly what the processor makes of it."""
    import torch
    from torchvision.transforms.v2 import functional as tvf

    image = torch.from_numpy(np.asarray(scene.image).transpose(2, 0, 1).copy())
    return tvf.resize(image, [height, width], tvf.InterpolationMode.BICUBIC, antialias=True).numpy()


_encoder: Encoder | None = None


def draw_chunk(recipe: Recipe, number: int, progress: float, size: int) -> list[Batch]:
    """Chunk `number`: its scenes three times (as drawn, mirrored, upside down) in batches."""
    import torch

    global _encoder
    if _encoder is None:
        torch.set_num_threads(1)
        _encoder = Encoder(make_tokenizer())
    rng = np.random.default_rng([recipe.seed, number])
    batches: list[Batch] = []
    # Three quarters of the images are 4:3, the rest square or upright.
    unit = recipe.chunk // 8
    for shape, count in enumerate((6 * unit, unit, unit)):
        height, width = SHAPES_OF_IMAGES[shape]
        items: list[tuple[Scene, np.ndarray]] = []
        for _ in range(count):
            scene = drawing.draw_scene(rng, curriculum(progress, rng, shape))
            small = shrunk(scene, height, width)
            items += [_mirrored(scene, small, how) for how in range(3)]
        asked = [(s, x, ask_several(rng, s)) for s, x in items]
        # Images with as many boxes to tell lie in one batch: little is padding then.
        order = np.argsort([_length(qs) + rng.uniform(0, 9) for _, _, qs in asked])
        for i in range(0, len(items), size):
            batches.append(_encoder.batch([asked[j] for j in order[i : i + size]]))
    rng.shuffle(batches)  # type: ignore[arg-type]
    return batches


def batches(recipe: Recipe, first: int, rank: int) -> Iterator[Batch]:
    """This rank's batches from number `first` on, drawn ahead in another process."""
    images = 3 * recipe.chunk

    def plan() -> Iterator[tuple[int, float, int]]:
        """Chunk number, progress of the training, images a batch."""
        done, number = 0, 0
        while True:
            looking = done < recipe.looks
            size = recipe.look_batch if looking else recipe.batch
            yield RANKS * number + rank, done / recipe.steps, size
            done += images // size
            number += 1

    context = multiprocessing.get_context("spawn")
    skip = first
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.nice, initargs=(5,)) as pool:
        ahead: list[Future[list[Batch]]] = []
        for number, progress, size in plan():
            if skip >= images // size:
                skip -= images // size
                continue
            ahead.append(pool.submit(draw_chunk, recipe, number, progress, size))
            if len(ahead) == 3:
                yield from ahead.pop(0).result()[skip:]
                skip = 0


# --------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------


class Trainer:
    """The model with its throw-away heads."""

    def __init__(self, model: Any) -> None:
        import torch
        from torch import nn

        self.model = model
        self.torch = torch
        vision, text = model.config.vision_config, model.config.text_config
        self.kinds = (1 + len(scenes.COLOURS), 1 + len(scenes.SHAPES), 4)
        wide = sum(self.kinds)
        self.heads = nn.ModuleDict(
            {
                "patch": nn.Linear(vision.hidden_size, wide),
                "token": nn.Linear(text.hidden_size, 4 * wide),
                "middle": nn.Linear(text.hidden_size, 4 * wide),
                "place": nn.Linear(text.hidden_size, 4 * 4 + 2),
                "box_middle": nn.Linear(text.hidden_size, 4),
                "box_late": nn.Linear(text.hidden_size, 4),
            }
        )
        with torch.no_grad():
            for name in ("box_middle", "box_late"):
                self.heads[name].bias.copy_(torch.tensor([0.35, 0.35, 0.65, 0.65]))
        processor_mean = (0.48145466, 0.4578275, 0.40821073)
        processor_std = (0.26862954, 0.26130258, 0.27577711)
        self.mean = torch.tensor(processor_mean).view(1, 3, 1, 1)
        self.std = torch.tensor(processor_std).view(1, 3, 1, 1)
        self._rope: dict[tuple[int, int], Any] = {}

    def patches(self, pixels: Any) -> Any:
        """uint8 [B, 3, H, W] to what the processor makes of it, [B, patches, 3 * 2 * 14 * 14]."""
        b, _, h, w = pixels.shape
        x = (pixels.float() / 255 - self.mean) / self.std
        x = x.view(b, 3, h // CELL, 2, PATCH, w // CELL, 2, PATCH)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        x = x.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
        return x.reshape(b, h * w // PATCH**2, 3 * 2 * PATCH**2)

    def vision(self, pixels: Any) -> tuple[Any, Any]:
        """Hidden states of the patches [B, P, d] and the merged visual tokens [B, P / 4, D]."""
        torch, visual = self.torch, self.model.model.visual
        b, _, h, w = pixels.shape
        x = self.patches(pixels)
        weight = visual.patch_embed.proj.weight
        x = torch.nn.functional.linear(x, weight.flatten(1))
        if (h, w) not in self._rope:
            rows, cols = h // PATCH, w // PATCH
            y, z = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")

            def order(a: Any) -> Any:
                return a.view(rows // 2, 2, cols // 2, 2).transpose(1, 2).reshape(-1)

            self._rope[h, w] = visual.rotary_pos_emb(x, torch.stack([order(y), order(z)], dim=-1))
        cos, sin = self._rope[h, w]
        heads = visual.config.num_heads
        for block in visual.blocks:
            y = block.norm1(x)
            q, k, v = block.attn.qkv(y).view(b, x.shape[1], 3, heads, -1).unbind(2)
            q, k = self._turn(q, cos, sin), self._turn(k, cos, sin)
            y = self._attend(q, k, v, None)
            x = x + block.attn.proj(y)
            x = x + block.mlp(block.norm2(x))
        return x, visual.merger(x).view(b, x.shape[1] // 4, -1)

    def _turn(self, x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return x * cos + self.torch.cat((-b, a), dim=-1) * sin

    def _attend(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        """Attention of q, k, v [B, T, heads, d] under an additive mask [B * heads, T, T].

        Written out: torch's fused CPU kernel takes four times as long, most of it backwards.
        """
        torch = self.torch
        b, t, heads, d = q.shape
        q, k, v = (a.transpose(1, 2).reshape(b * heads, t, d) for a in (q, k, v))
        scale = d**-0.5
        if mask is None:
            scores = torch.bmm(q, k.transpose(1, 2)) * scale
        else:
            scores = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=scale)
        shares = scores.softmax(-1, dtype=scores.dtype)
        self.shares = shares.view(b, heads, t, t)
        mixed = torch.bmm(shares, v)
        return mixed.view(b, heads, t, d).transpose(1, 2).reshape(b, t, heads * d)

    def _layer(self, layer: Any, x: Any, rope: tuple[Any, Any], mask: Any) -> Any:
        attention = layer.self_attn
        b, t, _ = x.shape
        y = layer.input_layernorm(x)
        q = attention.q_proj(y).view(b, t, -1, attention.head_dim)
        k = attention.k_proj(y).view(b, t, -1, attention.head_dim)
        v = attention.v_proj(y).view(b, t, -1, attention.head_dim)
        q, k = self._turn(q, *rope), self._turn(k, *rope)
        groups = attention.num_key_value_groups
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        x = x + attention.o_proj(self._attend(q, k, v, mask))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """logits [B, T, V] and the hidden states the heads look at."""
        torch = self.torch
        patch, tokens = self.vision(batch["pixels"])
        text = self.model.model.language_model
        ids = batch["ids"]
        x = text.embed_tokens(ids)
        start = int((ids[0] == self.model.config.image_token_id).nonzero()[0])
        n = tokens.shape[1]
        x = torch.cat([x[:, :start], tokens.to(x.dtype), x[:, start + n :]], dim=1)
        seg = batch["segments"]
        t = ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        same = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
        heads = self.model.config.text_config.num_attention_heads
        mask = torch.zeros(seg.shape[0], t, t, dtype=torch.bfloat16)
        mask = mask.masked_fill(~(causal & same), -1e9).repeat_interleave(heads, 0)
        rope = text.rotary_emb(x, batch["positions"])
        states, shares = [], []
        for layer in text.layers:
            x = self._layer(layer, x, rope, mask)
            states.append(x)
            shares.append(self.shares)
        return {
            "logits": self.model.lm_head(text.norm(x)),
            "patch": patch,
            "token": tokens,
            "states": states,
            "shares": shares,
            "start": start,
        }

    def _dense_loss(self, guess: Any, batch: dict[str, Any]) -> Any:
        """`guess` [B, N, 4, kinds]."""
        f = self.torch.nn.functional
        colour, shape, corners = guess.float().split(self.kinds, dim=-1)
        there = batch["colour"] > 0
        weight = there.float() * 2 + (~there).float() * 0.4
        loss = 0.0
        for logits, truth in ((colour, batch["colour"]), (shape, batch["shape"])):
            ce = f.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none")
            loss = loss + (ce * weight.flatten()).sum() / weight.sum()
            self.seen.append(float((ce.detach() * there.flatten()).sum() / there.sum().clamp(min=1)))
        if there.any():
            guess, truth = corners[there], batch["corners"][there]
            near = f.smooth_l1_loss(guess, truth, beta=0.05)
            overlap = _giou(guess, truth).mean()
            self.seen.append(float(overlap.detach()))
            loss = loss + 2 * near + (1 - overlap)
        return loss

    def _place_loss(self, guess: Any, batch: dict[str, Any]) -> Any:
        """Where in the image each visual token lies, and the boxes under it, in 0..1 of the image.

        Rotary positions are relative: a visual token does not say where it is. It has to find out in the text
        model, from the prompt before it, so that whoever attends to it can read its place.
        """
        torch, f = self.torch, self.torch.nn.functional
        guess = guess.float()
        h, w = batch["pixels"].shape[2] // CELL, batch["pixels"].shape[3] // CELL
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        centre = torch.stack([x, y], -1).view(1, h * w, 2)
        loss = 4 * f.smooth_l1_loss(guess[..., 16:], centre.expand_as(guess[..., 16:]), beta=0.02)
        there = batch["colour"] > 0
        if there.any():
            # Corners are counted from the centres of the four patches of a token.
            offset = torch.tensor([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
            unit = torch.tensor([1.0 / w, 1.0 / h])
            patch = centre.unsqueeze(2) + offset * unit
            true = patch.repeat(1, 1, 1, 2) + batch["corners"] * unit.repeat(2)
            boxes = guess[..., :16].view(*guess.shape[:2], 4, 4)
            loss = loss + 4 * f.smooth_l1_loss(boxes[there], true[there], beta=0.02)
            overlap = _giou(boxes[there], true[there]).mean()
            self.seen.append(float(overlap.detach()))
            loss = loss + 1 - overlap
        return loss

    def _asked_loss(self, states: Any, name: str, batch: dict[str, Any]) -> Any:
        told = batch["asked"][..., 0] >= 0
        if not told.any():
            return 0.0
        guess, truth = self.heads[name](states[told]).float(), batch["asked"][told]
        near = self.torch.nn.functional.smooth_l1_loss(guess, truth, beta=0.02)
        return 4 * near + 0.3 * (1 - _giou(guess, truth)).mean()

    def _gaze_loss(self, shares: Any, start: int, batch: dict[str, Any]) -> Any:
        """How little two heads look at the object whose box is being told.

        `shares` [B, heads, T, T]. Without it a model of this size points well at a single object and picks at
        random among several, for thousands of steps.
        """
        torch = self.torch
        told = batch["asked"][..., 0] >= 0
        if not told.any():
            return 0.0
        h, w = batch["pixels"].shape[2] // CELL, batch["pixels"].shape[3] // CELL
        looked = shares[:, [4, 5]].transpose(1, 2)[told][..., start : start + h * w].float()
        x1, y1, x2, y2 = batch["asked"][told].unsqueeze(1).unbind(-1)
        left, top = torch.arange(w) / w, torch.arange(h) / h
        wide = (torch.minimum(x2, left + 1 / w) - torch.maximum(x1, left)).clamp(min=0)
        high = (torch.minimum(y2, top + 1 / h) - torch.maximum(y1, top)).clamp(min=0)
        there = (high.unsqueeze(2) * wide.unsqueeze(1)).flatten(1)
        there = there / there.amax(1, keepdim=True)
        return -((looked * there.unsqueeze(1)).sum(-1) + 1e-3).log().mean()

    def look(self, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        """The loss of the vision part alone."""
        self.seen = []
        patch, token = self.vision(batch["pixels"])
        b, n = token.shape[:2]
        wide = sum(self.kinds)
        dense = self._dense_loss(self.heads["patch"](patch).view(b, n, 4, wide), batch)
        dense = dense + self._dense_loss(self.heads["token"](token).view(b, n, 4, wide), batch)
        names = [f"{w}_{k}" for w in "pt" for k in ("col", "shp", "giou")]
        parts = dict(zip(names, self.seen, strict=False))
        return dense, {"dense": float(dense.detach()), **parts}

    def loss(self, batch: dict[str, Any], auxiliary: float) -> tuple[Any, dict[str, float]]:
        torch = self.torch
        out = self.forward(batch)
        weight = batch["weights"][:, 1:]
        keep = weight > 0
        ce = torch.nn.functional.cross_entropy(
            out["logits"][:, :-1][keep].float(), batch["ids"][:, 1:][keep], reduction="none"
        )
        main = (ce * weight[keep]).sum() / weight[keep].sum()
        b, n = out["token"].shape[:2]
        start = out["start"]
        self.seen: list[float] = []
        middle = out["states"][1][:, start : start + n]
        wide = sum(self.kinds)
        dense = (
            self._dense_loss(self.heads["patch"](out["patch"]).view(b, n, 4, wide), batch)
            + self._dense_loss(self.heads["token"](out["token"]).view(b, n, 4, wide), batch)
            + 0.5 * self._dense_loss(self.heads["middle"](middle).view(b, n, 4, wide), batch)
        )
        dense = dense + 2 * self._place_loss(self.heads["place"](middle), batch)
        asked = self._asked_loss(out["states"][2], "box_middle", batch) + self._asked_loss(
            out["states"][3], "box_late", batch
        )
        gaze = sum(self._gaze_loss(out["shares"][i], out["start"], batch) for i in (2, 3))
        total = main + auxiliary * (0.3 * dense + asked + 0.3 * gaze)
        parts = {"main": main, "dense": dense, "asked": asked, "gaze": gaze}
        if len(self.seen) == 10:
            names = [f"{w}_{k}" for w in "ptm" for k in ("col", "shp", "giou")] + ["place"]
            parts |= dict(zip(names, self.seen, strict=True))
        return total, {k: float(torch.as_tensor(v).detach()) for k, v in parts.items()}


def _giou(a: Any, b: Any) -> Any:
    import torch

    lt, rb = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (rb - lt).clamp(min=0).prod(-1)
    area = (a[:, 2:] - a[:, :2]).clamp(min=1e-4).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1)
    union = area - inter
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return inter / union - (hull - union) / hull.clamp(min=1e-4)


def tensors(batch: Batch) -> dict[str, Any]:
    import torch

    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in vars(batch).items()}


def rate_at(recipe: Recipe, step: int) -> float:
    for start in (0, recipe.looks):
        if start <= step < start + recipe.warmup:
            return recipe.rate * (step - start + 1) / recipe.warmup
    done = step / recipe.steps
    if done < recipe.decay_from:
        return recipe.rate
    left = max(0.0, (1 - done) / (1 - recipe.decay_from))
    return recipe.rate * left


def train(rank: int, meeting: str, recipe: Recipe, work: Path, every: int, quick: int) -> None:
    """Train (or go on), writing `work/state.pt` and `work/snapshot`.

    Two processes of one thread each: on two cores that others use too, one process of two
    threads spends half its time waiting for itself.
    """
    import datetime

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    dist.init_process_group(
        "gloo", init_method=meeting,
        rank=rank, world_size=RANKS, timeout=datetime.timedelta(minutes=20),
    )  # fmt: skip
    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    model = make_model(make_config(tokenizer), tokenizer, recipe.seed)
    trainer = Trainer(model)
    everything = [*model.parameters(), *trainer.heads.parameters()]
    flat = [p for p in everything if p.ndim < 2]
    deep = [p for p in everything if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": deep, "weight_decay": recipe.weight_decay}, {"params": flat, "weight_decay": 0}],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    names = list(average)
    step, cpu_before = 0, 0.0
    state = work / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        trainer.heads.load_state_dict(saved["heads"], strict=False)
        if saved["heads"].keys() == trainer.heads.state_dict().keys():
            optimizer.load_state_dict(saved["optimizer"])
        average, step, cpu_before = saved["average"], saved["step"], saved["cpu"]
        print(f"going on from step {step}", flush=True)
    elif rank == 0:
        save(model, processor, work / "snapshot")
    model.train()
    began, cpu_began = time.time(), time.process_time()
    seen: dict[str, float] = {}
    first = step
    for batch in batches(recipe, step, rank):
        if step >= recipe.steps:
            break
        rate = rate_at(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        auxiliary = 1.0 if step < recipe.decay_from * recipe.steps else 0.5
        with torch.autocast("cpu", torch.bfloat16):
            if step < recipe.looks:
                loss, parts = trainer.look(tensors(batch))
            else:
                loss, parts = trainer.loss(tensors(batch), auxiliary)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in everything:
            if p.grad is None:  # a head that had nothing to look at in this batch
                p.grad = torch.zeros_like(p)
        together = torch.cat([p.grad.flatten() for p in everything])
        dist.all_reduce(together)
        together /= RANKS
        at = 0
        for p in everything:
            p.grad.copy_(together[at : at + p.numel()].view_as(p))
            at += p.numel()
        torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        step += 1
        if rank:
            continue
        mix = min(1 - recipe.ema, 10 / (step + 10)) if step > 200 else 1.0
        with torch.no_grad():
            now = model.state_dict()
            torch._foreach_lerp_([average[k] for k in names], [now[k] for k in names], mix)
        for k, v in parts.items():
            seen[k] = 0.98 * seen.get(k, v) + 0.02 * v
        if step % 100 == 0:
            pace = (time.time() - began) / (step - first)
            cpu = cpu_before + time.process_time() - cpu_began
            shown = " ".join(f"{k} {v:.3f}" for k, v in seen.items())
            print(
                f"{time.strftime('%H:%M:%S')} step {step} {shown} rate {rate:.1e} "
                f"{pace:.3f} s/step cpu {cpu:.0f}", flush=True,
            )  # fmt: skip
        if step % every == 0 or step == recipe.steps:
            cpu = cpu_before + time.process_time() - cpu_began
            save(model, processor, work / "snapshot", average)
            fresh = state.with_suffix(".new")
            torch.save(
                {
                    "model": model.state_dict(), "heads": trainer.heads.state_dict(),
                    "optimizer": optimizer.state_dict(), "average": average,
                    "step": step, "cpu": cpu,
                },
                fresh,
            )  # fmt: skip
            fresh.replace(state)
            (work / "run.json").write_text(
                json.dumps({"step": step, "cpu_seconds": round(cpu), **vars(recipe)}, indent=1)
            )
            if step <= recipe.looks:
                continue
            numbers = evaluate(work / "snapshot", quick)
            print(time.strftime("%H:%M:%S"), "held out", json.dumps(numbers), flush=True)


# --------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------


def reply(model: Any, processor: Any, images: list[Any], questions: list[str]) -> list[str]:
    """Greedy replies by the real processor and the real `generate`."""
    import torch

    out: list[str] = []
    for i in range(0, len(images), 50):
        chats = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": p}, {"type": "text", "text": q}],
                }
            ]
            for p, q in zip(images[i : i + 50], questions[i : i + 50], strict=True)
        ]
        inputs = processor.apply_chat_template(
            chats, tokenize=True, add_generation_prompt=True, return_dict=True,
            return_tensors="pt", processor_kwargs={"padding": True},
        )  # fmt: skip
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=90)
        fresh = ids[:, inputs["input_ids"].shape[1] :]
        out += processor.batch_decode(fresh, skip_special_tokens=True)
    return out


def held_out(count: int, seed: int = 990_001) -> list[tuple[Scene, Question]]:
    """Scenes no training run draws (another seed), each with one "where" question."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[Scene, Question]] = []
    while len(rows) < count:
        most = 1 + len(rows) % 3
        scene = drawing.draw_scene(rng, SceneSpec(224, 168, most, most, repeats=0.0))
        if len(scene.objects) == most:
            rows.append((scene, scenes.ask(rng, scene, "where")))
    return rows


def _overlap(said: tuple[Box, ...], scene: Scene, question: Question) -> float:
    """IoU of the first box said with the one that was asked for."""
    pointing = next(p for p in question.reasoning if isinstance(p, Pointing))
    return iou(said[0], _box(pointing.boxes[0], *scene.image.size)) if said else 0.0


def evaluate(folder: Path, count: int, seed: int = 990_001) -> dict[str, float]:
    """Pointing at held-out scenes of one to three objects, and at grey images."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rows = held_out(count, seed)
    questions = [q.text for _, q in rows]
    numbers: dict[str, float] = {"scenes": count}
    blank = grey(SceneSpec(224, 168))
    for name, images in (("", [s.image for s, _ in rows]), ("blank_", [blank] * count)):
        texts = reply(model, processor, images, questions)
        said = [
            parse(split_answer(t)[0], THOUSANDTHS.on(*s.image.size)).boxes
            for t, (s, _) in zip(texts, rows, strict=True)
        ]
        overlap = np.array([_overlap(b, s, q) for b, (s, q) in zip(said, rows, strict=True)])
        numbers[f"{name}mean_iou"] = round(float(overlap.mean()), 4)
        numbers[f"{name}acc_50"] = round(float((overlap >= 0.5).mean()), 4)
        if not name:
            for k in (1, 2, 3):
                mine = overlap[np.arange(count) % 3 == k - 1]
                numbers[f"acc_50_of_{k}"] = round(float((mine >= 0.5).mean()), 4)
            numbers["says_a_box"] = round(float(np.mean([bool(b) for b in said])), 4)
            right = [split_answer(t)[1] == q.answer for t, (_, q) in zip(texts, rows, strict=True)]
            numbers["answer"] = round(float(np.mean(right)), 4)
    return numbers


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    given.add_argument("--out", type=Path, required=True)
    given.add_argument("--steps", type=int, default=Recipe.steps)
    given.add_argument("--looks", type=int, default=Recipe.looks)
    given.add_argument("--check-seed", type=int, default=990_002, help="training looks at 990001 on its way")
    given.add_argument("--decay-from", type=float, default=Recipe.decay_from)
    given.add_argument("--seed", type=int, default=Recipe.seed)
    given.add_argument("--every", type=int, default=1000, help="steps between snapshots")
    given.add_argument("--check", type=int, default=0, help="only evaluate --out on so many scenes")
    a = given.parse_args()
    made = a.out / "snapshot"
    if a.check:
        print(json.dumps(evaluate(made if made.exists() else a.out, a.check, a.check_seed), indent=1))
        return
    recipe = Recipe(seed=a.seed, looks=a.looks, steps=a.steps, decay_from=a.decay_from)
    with tempfile.TemporaryDirectory() as folder:
        common = (f"file://{folder}/meeting", recipe, a.out, a.every, 90)
        other = multiprocessing.get_context("spawn").Process(target=train, args=(1, *common), daemon=False)
        other.start()
        train(0, *common)
        other.join()
    print(f"the base is in {made}; use it: make local-train BASE={made} RUN_ID=own-base")


if __name__ == "__main__":
    main()
