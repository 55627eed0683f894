"""Drawn scenes: coloured shapes with exactly known boxes. Everything is a pure function of the random generator.

The rehearsal model (examples/rehearsal) learns to point on these scenes. They are deliberately untidy (noise, blur,
tinted light, crowds of unlabelled bodies, soft and textured shapes): a model whose vision part is frozen later can only
use what its vision part has met here, and flat shapes barely carry over to photographs.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vcot.datasets.scenes.objects import COLOURS, SHAPES, BoxXYXY, Scene, SceneObject, SceneSpec

Floats = NDArray[np.float32]


def _hsv(h: float, s: float, v: float) -> Floats:
    """RGB in 0..1, shape (3,). `h` in degrees."""
    return np.asarray(colorsys.hsv_to_rgb((h % 360.0) / 360.0, s, v), dtype=np.float32)


def shade_of(rng: np.random.Generator, name: str, rough: float) -> Floats:
    """One shade that people would call by this name. RGB in 0..1, shape (3,)."""
    wide = 0.4 + 0.6 * rough
    u = float(rng.uniform(-1, 1)) * wide
    s = float(rng.uniform(1 - 0.45 * wide, 1.0))
    v = float(rng.uniform(1 - 0.4 * wide, 1.0))
    match name:
        case "white":
            return _hsv(float(rng.uniform(0, 360)), 0.06 * wide * abs(u), float(rng.uniform(0.93, 1)))
        case "black":
            return _hsv(float(rng.uniform(0, 360)), 0.5 * wide * abs(u), float(rng.uniform(0.0, 0.13)))
    hues = {
        "red": (u * 9, max(s, 0.72), v), "yellow": (54 + u * 7, max(s, 0.62), max(v, 0.8)),
        "green": (122 + u * 30, s, v * 0.9), "blue": (222 + u * 18, s, v),
        "violet": (280 + u * 16, s * 0.92, v * 0.95),
    }  # fmt: skip
    return _hsv(*hues[name])


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int, channels: int = 1) -> Floats:
    """Smooth noise of about unit size, [height, width, channels]."""
    rows, cols = max(2, cells), max(2, round(cells * width / max(height, 1)))
    grid = rng.standard_normal((rows, cols, channels)).astype(np.float32)
    planes = [
        np.asarray(Image.fromarray(grid[:, :, c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


def _background(rng: np.random.Generator, height: int, width: int, rough: float) -> tuple[Floats, Floats]:
    """The ground [height, width, 3] and its mean colour [3], RGB in 0..1."""
    light = rng.random() < 0.65
    v = float(rng.uniform(0.68, 0.97) if light else rng.uniform(0.1, 0.62))
    base = _hsv(float(rng.uniform(0, 360)), float(rng.uniform(0.0, 0.28)), v)
    ground = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if rng.random() < 0.5 * rough:
        other = np.clip(base + rng.uniform(-0.16, 0.16, 3).astype(np.float32), 0, 1)
        angle = float(rng.uniform(0, 2 * math.pi))
        ys, xs = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
        t = (xs - 0.5) * math.cos(angle) + (ys - 0.5) * math.sin(angle) + 0.5
        ground = ground + t[..., None] * (other - base)
    if rng.random() < 0.5 * rough:
        cells = int(rng.integers(3, 24))
        channels = 3 if rng.random() < 0.3 else 1
        strength = float(rng.uniform(0.01, 0.07))
        ground = ground + strength * _clouds(rng, height, width, cells, channels)
    return ground, ground.mean(axis=(0, 1))


def _radius(rng: np.random.Generator, shape: str, rough: float, theta: Floats) -> Floats:
    """Distance of the outline from the centre in every direction `theta`; the farthest is ~1."""
    if shape in ("disc", "ring"):
        if rough > 0 and rng.random() < 0.5 * rough:
            wobble = float(rng.uniform(0, 0.04))
            return np.asarray(1 + wobble * np.cos(3 * theta + rng.uniform(0, 6.3)), dtype=np.float32)
        return np.ones_like(theta)
    if shape == "blob":
        r = np.ones_like(theta)
        for k in (2, 3, 4, 5, 7):
            size = float(rng.uniform(0.3, 1.0)) * 0.3 / k
            r = r + size * np.cos(k * theta + float(rng.uniform(0, 2 * math.pi)))
        return np.asarray(r / r.max(), dtype=np.float32)
    if shape in ("square", "triangle"):
        n = 4 if shape == "square" else 3
        turn = math.pi / 4 + float(rng.uniform(-0.25, 0.25)) if n == 4 else float(rng.uniform(0, 2 * math.pi))
        half = math.pi / n
        t = np.mod(theta - turn, 2 * half) - half
        return np.asarray(math.cos(half) / np.cos(t), dtype=np.float32)
    if shape == "star":
        turn = float(rng.uniform(0, 2 * math.pi))
        inner = float(rng.uniform(0.36, 0.5))
        beta = math.pi / 5
        t = np.abs(np.mod(theta - turn, 2 * beta) - beta)
        # The straight edge between a tip (radius 1 at t = 0) and a notch (radius inner at beta).
        edge = inner * math.sin(beta) / (inner * np.sin(beta - t) + np.sin(t))
        return np.asarray(edge, dtype=np.float32)
    raise ValueError(f"no shape called {shape!r}")


def _angle(u: Floats, v: Floats) -> Floats:
    """Direction of every point as seen from (0, 0), -pi to pi."""
    # numpy's arctan2 of float32 differs in the last bit with AVX-512; what differs in float64 is lost in the rounding.
    return np.arctan2(v, u, dtype=np.float64).astype(np.float32)


_TURNS = np.linspace(0, 2 * math.pi, 361, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Outline:
    """A shape's outline about its centre: radii at `_TURNS`, stretch of the two axes."""

    radii: Floats
    stretch_x: float
    stretch_y: float

    def extent(self) -> BoxXYXY:
        """Tight extent about the centre, pixels."""
        x = self.radii * np.cos(_TURNS) * self.stretch_x
        y = self.radii * np.sin(_TURNS) * self.stretch_y
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _outline(rng: np.random.Generator, shape: str, side: float, rough: float) -> _Outline:
    """An outline whose longer extent is `side` pixels."""
    radii = _radius(rng, shape, rough, _TURNS)
    aspect = float(rng.uniform(0.84, 1.19)) if rough > 0 else 1.0
    raw = _Outline(radii, 1.0, aspect)
    x1, y1, x2, y2 = raw.extent()
    scale = side / max(x2 - x1, y2 - y1)
    return _Outline(radii, scale, aspect * scale)


def _paint(
    canvas: Floats, cx: float, cy: float, outline: _Outline, colour: Floats, rng: np.random.Generator, shape: str,
    rough: float,
) -> None:  # fmt: skip
    """Paint one labelled object over the canvas [height, width, 3], in place."""
    height, width, _ = canvas.shape
    x1, y1, x2, y2 = outline.extent()
    left, top = max(0, math.floor(cx + x1) - 2), max(0, math.floor(cy + y1) - 2)
    right, low = min(width, math.ceil(cx + x2) + 3), min(height, math.ceil(cy + y2) + 3)
    if right <= left or low <= top:
        return
    ys, xs = np.mgrid[top:low, left:right].astype(np.float32)
    u = (xs + 0.5 - cx) / outline.stretch_x
    v = (ys + 0.5 - cy) / outline.stretch_y
    r = np.sqrt(u * u + v * v)
    theta = np.mod(_angle(u, v), 2 * math.pi)
    edge = np.interp(theta, _TURNS, outline.radii).astype(np.float32)
    pixel = min(outline.stretch_x, outline.stretch_y)
    softness = 1.0 if rough <= 0 or rng.random() < 0.5 else float(rng.uniform(1.0, 1.0 + 0.05 * pixel + 1.2))
    depth = (edge - r) * pixel  # pixels inside the outline, about
    alpha = np.clip(depth / softness + 0.5, 0, 1)
    inside = np.clip(r / np.maximum(edge, 1e-3), 0, 1)
    if shape == "ring":
        hole = float(rng.uniform(0.45, 0.65))
        alpha = alpha * np.clip((r - hole * edge) * pixel / softness + 0.5, 0, 1)

    body = np.broadcast_to(colour, (*r.shape, 3)).astype(np.float32)
    if rough > 0:
        style = rng.random()
        if style < 0.22 * rough and shape != "ring":
            # A pale body with dark lobes of the colour inside.
            pale = float(rng.uniform(0.25, 0.65))
            tint = np.clip(colour + pale * (rng.uniform(0.75, 1.0, 3) - colour), 0, 1)
            lobes = np.zeros_like(r)
            spread = float(rng.uniform(0.15, 0.5))
            for _ in range(int(rng.integers(1, 5))):
                a, d = float(rng.uniform(0, 6.3)), spread * float(rng.uniform(0.4, 1))
                size = float(rng.uniform(0.28, 0.55)) * float(outline.radii.min() * 0.5 + 0.5)
                stretch = float(rng.uniform(0.7, 1.4))
                du, dv = u - d * math.cos(a), (v - d * math.sin(a)) * stretch
                near = (size - np.sqrt(du * du + dv * dv)) * pixel
                lobes = np.maximum(lobes, np.clip(near / softness + 0.5, 0, 1))
            shade = colour * float(rng.uniform(0.7, 1.0))
            body = tint + lobes[..., None] * (shade - tint)
            body = body.astype(np.float32)
        elif style < 0.5 * rough:
            strength = float(rng.uniform(-0.3, 0.3))
            body = body * (1 + strength * (inside**2)[..., None] - max(0.0, strength) / 2)
        if rng.random() < 0.5 * rough:
            cells = int(rng.integers(2, 9))
            strength = float(rng.uniform(0.04, 0.2))
            body = body + strength * _clouds(rng, r.shape[0], r.shape[1], cells)
        if rng.random() < 0.25 * rough:
            rim = np.clip(1 - np.abs(depth - 1.2) / 1.6, 0, 1)[..., None]
            body = body * (1 - float(rng.uniform(0.15, 0.45)) * rim)
        if rng.random() < 0.35 * rough:
            alpha = alpha * float(rng.uniform(0.72, 1.0))
    patch = canvas[top:low, left:right]
    patch += alpha[..., None] * (body - patch)


def _crowd(canvas: Floats, rng: np.random.Generator, ground: Floats) -> Floats:
    """Paint unlabelled bodies of one muted hue over the canvas, in place; their colour [3]."""
    height, width, _ = canvas.shape
    side = min(height, width)
    hue, sat = float(rng.uniform(0, 360)), float(rng.uniform(0.08, 0.42))
    if rng.random() < 0.35:
        hue = float(rng.uniform(-25, 40))
    level = float(ground.max()) * float(rng.uniform(0.62, 0.95))
    if ground.max() < 0.45:
        level = float(rng.uniform(0.4, 0.75))
    colour = _hsv(hue, sat, level)
    typical = side * float(rng.uniform(0.09, 0.27))
    sprites: list[tuple[Floats, Floats]] = []
    pale = float(rng.uniform(0, 0.9)) if rng.random() < 0.7 else 0.0
    for _ in range(int(rng.integers(2, 6))):
        size = typical * float(rng.uniform(0.8, 1.2))
        half = math.ceil(size / 2) + 2
        ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
        turn, squeeze = float(rng.uniform(0, 3.2)), float(rng.uniform(0.7, 1.0))
        u = xs * math.cos(turn) + ys * math.sin(turn)
        v = (ys * math.cos(turn) - xs * math.sin(turn)) / squeeze
        r = np.sqrt(u * u + v * v) / (size / 2)
        if rng.random() < 0.4:
            k, phase = int(rng.integers(2, 5)), float(rng.uniform(0, 6.3))
            r = r / (1 + float(rng.uniform(0.03, 0.15)) * np.cos(k * _angle(u, v) + phase))
        alpha = np.clip((1 - r) * size / 2 / float(rng.uniform(1, 2.5)) + 0.5, 0, 1)
        alpha = alpha * (1 - pale * np.clip(1 - (r / float(rng.uniform(0.4, 0.7))) ** 2, 0, 1))
        alpha = alpha * float(rng.uniform(0.55, 0.95))
        shade = np.clip(colour + rng.uniform(-0.05, 0.05, 3), 0, 1).astype(np.float32)
        sprites.append((alpha.astype(np.float32)[..., None], shade))
    fill = float(rng.uniform(0.1, 0.85))
    count = min(60, max(3, round(fill * height * width / typical**2)))
    for _ in range(count):
        alpha3, shade = sprites[int(rng.integers(len(sprites)))]
        half = alpha3.shape[0] // 2
        cx, cy = int(rng.integers(-half // 2, width + half // 2)), int(rng.integers(-half // 2, height + half // 2))
        x1, y1 = max(0, cx - half), max(0, cy - half)
        x2, y2 = min(width, cx + half + 1), min(height, cy + half + 1)
        if x2 <= x1 or y2 <= y1:
            continue
        cut = alpha3[y1 - cy + half : y2 - cy + half, x1 - cx + half : x2 - cx + half]
        patch = canvas[y1:y2, x1:x2]
        patch += cut * (shade - patch)
    return colour


def _specks(canvas: Floats, rng: np.random.Generator) -> None:
    """A few small dots that nobody asks about, in place."""
    height, width, _ = canvas.shape
    side = min(height, width)
    for _ in range(int(rng.integers(1, 7))):
        size = max(1.0, side * float(rng.uniform(0.012, 0.045)))
        half = math.ceil(size) + 1
        cx, cy = int(rng.integers(half, width - half)), int(rng.integers(half, height - half))
        ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
        alpha = np.clip(size - np.sqrt(xs * xs + ys * ys), 0, 1) * float(rng.uniform(0.4, 1))
        shade = rng.uniform(0, 1, 3).astype(np.float32)
        patch = canvas[cy - half : cy + half + 1, cx - half : cx + half + 1]
        patch += alpha[..., None] * (shade - patch)


def _finish(canvas: Floats, rng: np.random.Generator, rough: float) -> Image.Image:
    """Light, blur, grain: what a camera adds. Moves nothing."""
    height, width, _ = canvas.shape
    if rng.random() < 0.35 * rough:
        ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        dx, dy = float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4))
        fall = (xs - dx) ** 2 + (ys - dy) ** 2
        canvas = canvas * (1 - float(rng.uniform(0.03, 0.16)) * fall)[..., None]
    if rng.random() < 0.5 * rough:
        light = float(rng.uniform(0.86, 1.1))
        tint = rng.uniform(0.94, 1.06, 3).astype(np.float32)
        canvas = canvas * (light * tint)
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.45 * rough:
        most = 0.011 * min(height, width)
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, most))))
    if rng.random() < 0.45 * rough:
        strength = float(rng.uniform(2, 16))
        grain = rng.standard_normal((height, width, 3), dtype=np.float32) * strength
        pixels = np.asarray(image, dtype=np.float32) + grain
        image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    return image


def _labels(rng: np.random.Generator, spec: SceneSpec, colours: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, shape) of every object. At most one label occurs more than once."""
    count = int(rng.integers(spec.least, spec.most + 1))
    if count == 0:
        return []
    pairs = [(c, s) for c in colours for s in SHAPES]
    order = rng.permutation(len(pairs))
    chosen = [pairs[i] for i in order[:count]]
    if count > 1 and rng.random() < 0.35:
        # Same colour, another shape: the colour alone must not be enough.
        c = chosen[0][0]
        other = [s for s in SHAPES if s != chosen[0][1]]
        twin = (c, other[int(rng.integers(len(other)))])
        if twin not in chosen:
            chosen[1] = twin
    if count > 1 and rng.random() < spec.repeats:
        chosen[1] = chosen[0]
        if count > 2 and rng.random() < 0.4:
            chosen[2] = chosen[0]
    return chosen


def _overlap(a: BoxXYXY, b: BoxXYXY) -> bool:
    """Whether two boxes share more than a sliver."""
    slack = 1.0
    return a[0] < b[2] - slack and b[0] < a[2] - slack and a[1] < b[3] - slack and b[1] < a[3] - slack


def draw_scene(rng: np.random.Generator, spec: SceneSpec) -> Scene:
    """One scene. The same state of `rng` and the same spec give the same bytes on every x86 processor with AVX2.

    (Without AVX2 numpy has another sine and cosine, which moves boxes by the last bit of a float.)
    Boxes are the half-opacity outline of each object cut at the image's edge; labelled objects
    lie over the crowd and never on each other, so the extent is what can be seen.
    """
    height, width, rough = spec.height, spec.width, spec.rough
    side = min(height, width)
    canvas, ground = _background(rng, height, width, rough)
    canvas = np.ascontiguousarray(canvas, dtype=np.float32)
    taken = [ground]
    if rng.random() < 0.5 * rough:
        taken.append(_crowd(canvas, rng, ground))
    if rng.random() < 0.2 * rough:
        _specks(canvas, rng)

    colours: dict[str, Floats] = {}
    for name in COLOURS:
        shade = shade_of(rng, name, rough)
        # Far enough from ground and crowd to be told apart, else this colour is left out.
        if all(float(np.abs(shade - t).max()) > 0.3 for t in taken):
            colours[name] = shade

    objects: list[SceneObject] = []
    placed: list[BoxXYXY] = []
    edge_allowed = rng.random() < 0.25
    for colour, shape in _labels(rng, spec, tuple(colours)):
        for attempt in range(24):
            largest = spec.largest * (1.0 if attempt < 8 else 0.6)
            # Uniform in the logarithm: small objects are as frequent as they are hard.
            log_side = float(rng.uniform(math.log(spec.smallest), math.log(largest)))
            size = max(6.0, side * math.exp(log_side))
            outline = _outline(rng, shape, size, rough)
            x1, y1, x2, y2 = outline.extent()
            out = 0.35 if edge_allowed else 0.0
            cx = float(rng.uniform(-x1 - out * size, width - x2 + out * size))
            cy = float(rng.uniform(-y1 - out * size, height - y2 + out * size))
            box = (max(0.0, cx + x1), max(0.0, cy + y1), min(float(width), cx + x2), min(float(height), cy + y2))
            if (box[2] - box[0]) * (box[3] - box[1]) < 0.45 * (x2 - x1) * (y2 - y1):
                continue
            if any(_overlap(box, other) for other in placed):
                continue
            shade = colours[colour]
            if rough > 0:
                shade = np.clip(shade + rng.uniform(-0.03, 0.03, 3), 0, 1).astype(np.float32)
            _paint(canvas, cx, cy, outline, shade, rng, shape, rough)
            placed.append(box)
            objects.append(SceneObject(colour, shape, box))
            break
    return Scene(_finish(canvas, rng, rough), tuple(objects))
