"""Makes this folder from the BCCD photographs: half the size, 150 to train on, 50 to evaluate on.

    python examples/blood-cells/make.py <folder with images/, instances.json and LICENSE>

Many of the photographs overlap: the microscope was moved by less than a field, and the same cell stands in
two images. So images that show a common piece of the slide are put into one group, and a group never
stands on both sides of the split. The choice is seeded; the same input gives the same folder.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import fft

HERE = Path(__file__).parent
SEED = 20
TRAIN, TEST = 150, 50
ASKED = "white blood cell"
LEAST_OVERLAP = 0.05  # of an image's area
ALIKE = 0.8  # correlation of the overlapping parts: at most 0.76 by chance, at least 0.85 where one sees the same cells
Floats = npt.NDArray[np.float32]


def main(source: Path) -> None:
    data = json.loads((source / "instances.json").read_text())
    paths = [source / "images" / image["file_name"] for image in data["images"]]
    groups = groups_of_overlapping(paths)
    split = choose(data, groups)
    (HERE / "images").mkdir(exist_ok=True)
    shutil.copyfile(source / "LICENSE", HERE / "LICENSE")
    images, annotations = [], []
    for image in data["images"]:
        if image["file_name"] not in split:
            continue
        halve(source / "images" / image["file_name"], HERE / "images" / image["file_name"])
        width, height = image["width"] // 2, image["height"] // 2
        images.append(image | {"width": width, "height": height, "license": 1, "split": split[image["file_name"]]})
        annotations += [halved(a, width, height) for a in data["annotations"] if a["image_id"] == image["id"]]
    write(data["categories"], images, annotations)


def choose(data: dict[str, Any], groups: list[set[str]]) -> dict[str, str]:
    """File name → split. The test side takes whole groups of images with exactly one white blood cell."""
    asked = {c["id"] for c in data["categories"] if c["name"] == ASKED}
    count = Counter(a["image_id"] for a in data["annotations"] if a["category_id"] in asked)
    single = {i["file_name"] for i in data["images"] if count[i["id"]] == 1}
    draw = random.Random(SEED)
    draw.shuffle(groups)
    test: set[str] = set()
    for group in groups:
        if group <= single and len(test) + len(group) <= TEST:
            test |= group
    rest = sorted({i["file_name"] for i in data["images"]} - test)
    return dict.fromkeys(draw.sample(rest, TRAIN), "train") | dict.fromkeys(test, "test")


def groups_of_overlapping(paths: list[Path]) -> list[set[str]]:
    """Images linked, over any number of steps, by a common piece of the slide; sorted by name."""
    group = {path.name: {path.name} for path in paths}
    for a, b, likeness in overlapping(paths):
        print(f"{a} and {b} overlap (correlation {likeness:.2f})")
        for name in (joined := group[a] | group[b]):
            group[name] = joined
    return sorted({min(g): g for g in group.values()}.values(), key=min)


def overlapping(paths: list[Path], width: int = 128, height: int = 96) -> list[tuple[str, str, float]]:
    """Pairs of which one is a shifted view of the other: the best shift by cross-correlation, judged on the overlap."""
    details = np.stack([detail(path, width, height) for path in paths])
    padded = np.zeros((len(paths), 2 * height, 2 * width), np.float32)
    padded[:, :height, :width] = details
    spectra = fft.rfft2(padded)
    window = np.zeros((2 * height, 2 * width), np.float32)
    window[:height, :width] = 1
    spectrum = fft.rfft2(window)
    area = fft.irfft2(spectrum * spectrum.conj(), s=window.shape)
    weight = np.where(area >= LEAST_OVERLAP * width * height, 1 / np.sqrt(np.maximum(area, 1)), 0)
    found = []
    for a, b in combinations(range(len(paths)), 2):
        match = fft.irfft2(spectra[a] * spectra[b].conj(), s=window.shape) * weight
        y, x = divmod(int(match.argmax()), 2 * width)
        likeness = on_overlap(details[a], details[b], x - 2 * width * (x > width), y - 2 * height * (y > height))
        if likeness > ALIKE:
            found.append((paths[a].name, paths[b].name, likeness))
    return found


def on_overlap(a: Floats, b: Floats, x: int, y: int) -> float:
    """Correlation of a[y:, x:] with b[:-y, :-x]: the part that both show if b is a moved by (x, y)."""
    if x < 0:
        a, b, x = a[:, ::-1], b[:, ::-1], -x
    if y < 0:
        a, b, y = a[::-1], b[::-1], -y
    height, width = a.shape
    return float(np.corrcoef(a[y:, x:].ravel(), b[: height - y, : width - x].ravel())[0, 1])


def detail(path: Path, width: int, height: int) -> Floats:
    """Edges only, unit variance: illumination falls off alike in all images and would match everywhere."""
    grey = Image.open(path).convert("L").resize((width, height), Image.Resampling.BOX)
    blurred = grey.filter(ImageFilter.GaussianBlur(4))
    difference = np.clip(np.asarray(grey, np.float32) - np.asarray(blurred, np.float32), -25, 25)
    return (difference / difference.std()).astype(np.float32)


def halve(source: Path, target: Path) -> None:
    image = Image.open(source).convert("RGB")
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    half.save(target, quality=88, subsampling=0, optimize=True)


def halved(annotation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """In pixels of the halved image, cut at its border."""
    x, y, w, h = (v / 2 for v in annotation["bbox"])
    right, bottom = min(x + w, width), min(y + h, height)
    x, y = max(x, 0.0), max(y, 0.0)
    box = [x, y, right - x, bottom - y]
    return annotation | {"bbox": box, "area": box[2] * box[3]}


def write(categories: list[Any], images: list[Any], annotations: list[Any]) -> None:
    """One entry a line, so that a person can read it and git can compare it."""
    parts = {
        "info": [{"description": "BCCD blood cell photographs at half size", "licence": "MIT"}],
        "licenses": [{"id": 1, "name": "MIT"}], "categories": categories, "images": images, "annotations": annotations,
    }  # fmt: skip
    texts = []
    for name, rows in parts.items():
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        texts.append(f'"{name}": {lines}' if name == "info" else f'"{name}": [\n  {lines}\n ]')
    (HERE / "instances.json").write_text("{\n " + ",\n ".join(texts) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
