"""Finds things in an image by their names: Grounding DINO, OWLv2, or another zero-shot detector of transformers.

    detector = load_detector(store, "s3://models/owlv2")
    detector.find(sample.image, ["red cup"])        → {"red cup": [Box, …]}, in pixels of the original

Names are asked for one by one. Asked together, some models answer with pieces of them ("red" of "red cup"), and nobody
knows whose the box is.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.utils import logging as transformers_logging

from vcot.errors import InputError
from vcot.grounding import Box, BoxError
from vcot.models.device import device
from vcot.records import Image
from vcot.records.sample import read_image
from vcot.storage import Store, name
from vcot.storage.folders import fetch_with_digest

THRESHOLD = 0.25
"""Score from which a box counts."""


class Detector:
    """Safe to share between threads; they take turns.

    Args:
        model, processor: of transformers, on this machine's device.
        name: which model it is; a part of what its results are kept under.
    """

    def __init__(self, store: Store, model: Any, processor: Any, *, name: str, threshold: float = THRESHOLD) -> None:
        self.name = name
        self._store, self._model, self._processor, self._threshold = store, model, processor, threshold
        self._turn = threading.Lock()

    def find(self, image: Image, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
        """The boxes of each label, the surest first. Raises ImageError."""
        pixels = read_image(self._store, image).pixels
        with self._turn:
            return {label: self._boxes(pixels, label, image) for label in labels}

    @torch.inference_mode()
    def _boxes(self, pixels: Pillow.Image, label: str, image: Image) -> list[Box]:
        inputs = self._processor(images=pixels, text=[[label]], return_tensors="pt").to(self._model.device)
        (found,) = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), threshold=self._threshold, target_sizes=[(pixels.height, pixels.width)]
        )
        surest = sorted(zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True), reverse=True)
        boxes = (_inside(edges, pixels.size, image) for _, edges in surest)
        return [box for box in boxes if box is not None]


def load_detector(store: Store, uri: str) -> Detector:
    """The detector in a folder of storage. Raises InputError: it holds none."""
    with tempfile.TemporaryDirectory(prefix="detector-") as scratch:
        folder, digest = fetch_with_digest(store, uri, Path(scratch))
        transformers_logging.disable_progress_bar()
        try:
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{uri} holds no zero-shot detector ({said[:200]}); Grounding DINO and OWLv2 are some"
            ) from None
        return Detector(store, model.to(device()).eval(), processor, name=f"{name(uri)}@{digest[:12]}")


def _inside(edges: Sequence[float], size: tuple[int, int], image: Image) -> Box | None:
    """The box in pixels of the original, cut at its borders; None where nothing of it is inside."""
    (width, height), (x1, y1, x2, y2) = size, edges
    fractions = (max(0.0, x1 / width), max(0.0, y1 / height), min(1.0, x2 / width), min(1.0, y2 / height))
    try:
        return Box.from_fractions(*fractions, width=image.width, height=image.height)
    except BoxError:
        return None
