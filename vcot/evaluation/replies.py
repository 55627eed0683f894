"""What the models said, asked once and kept.

Questions are asked in units: so many prompts, one model (the base in the tuned one's form, the base in its own, the
tuned one), one condition (real, blank, shuffled). A unit is a shard of the stage; a killed evaluation goes on with the
first unit that has no mark. What the base says does not depend on the run: it is kept beside the runs as well, under a
key of all that shapes it, and not asked again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image
from pydantic import ValidationError

from vcot import log
from vcot.errors import InputError
from vcot.evaluation.controls import picture, shown
from vcot.evaluation.scoring import score
from vcot.grounding import Frame
from vcot.labels import NO_SYNONYMS, Synonyms
from vcot.records import Completion, Rejection, Sample, Score
from vcot.records.base import Record
from vcot.records.sample import IMAGE_REASONS
from vcot.records.shards import File, ShardMark, ShardWriter, fetch_file
from vcot.storage import NotFound, Store, join
from vcot.storage.images import ImageError

Model = Literal["base", "native", "tuned"]
"""`native`: the base again, asked in its own form (vcot.evaluation.own_form)."""


MOST_RATIO = 200
"""Image processors of the Qwen-VL family take no picture that is longer than this times its other side."""


class Reply(Record):
    """One line of a shard: who said what under which condition, and how good it was."""

    version: Literal[1] = 1
    model: Model
    condition: Literal["real", "blank", "shuffled"]
    completion: Completion
    score: Score


@dataclass(frozen=True)
class Unit:
    """Samples first..last-1 of the evaluation, asked of one model under one condition."""

    model: Model
    condition: Literal["real", "blank", "shuffled"]
    first: int
    last: int


#: Asks a model: samples and the pictures that it is shown, if any → one Completion each, in order.
Ask = Callable[[Model, Sequence[Sample], Sequence[Image.Image | None]], list[Completion]]


def units(samples: int, conditions: Sequence[str], size: int, *, native: bool = False) -> list[Unit]:
    """The base first, so that its adapter is attached once, later; in its own form about the real pictures alone."""
    asked = {"base": conditions, "native": ("real",) if native else (), "tuned": conditions}
    return [
        Unit(model, condition, first, min(first + size, samples))  # type: ignore[arg-type]
        for model, each in asked.items()
        for condition in each
        for first in range(0, samples, size)
    ]


@dataclass
class Interview:
    """Everything a unit needs.

    partners: for each sample, the index of the one whose picture it is shown when shuffled.
    asked_of_base: what of the settings and the base shapes its replies (for the key of the cache).
    asked_natively: what shapes them beside that where it is asked in its own form; `native_frame` reads them then.
    synonyms: labels that are one name when replies are judged.
    """

    store: Store
    samples: Sequence[Sample]
    partners: Sequence[int]
    ask: Ask
    frame: Callable[[Sample], Frame]
    units: Sequence[Unit]
    cache_uri: str
    asked_of_base: Mapping[str, Any]
    synonyms: Synonyms = NO_SYNONYMS
    asked_natively: Mapping[str, Any] = field(default_factory=dict)
    native_frame: Callable[[Sample], Frame] | None = None

    def hold(self, writer: ShardWriter) -> None:
        """Asks one unit's questions; keeps a Reply per sample, or a Rejection where its picture cannot be shown.

        Questions by text alone are asked as they are; another picture cannot be put in the place of none.
        """
        unit = self.units[writer.index]
        samples: list[Sample] = []
        pictures: list[Image.Image | None] = []
        writer.facts["by_text"] = 0
        for index in range(unit.first, unit.last):
            if self.samples[index].image is None:
                writer.facts["by_text"] += 1
                if unit.condition != "real":
                    continue
            try:
                pictures.append(self._picture(index, unit.condition))
            except ImageError as error:
                writer.reject(_rejection(self.samples[index], error))
                continue
            samples.append(self.samples[index])
        frame = self.native_frame if unit.model == "native" and self.native_frame else self.frame
        begun = time.monotonic()
        said = self._completions(unit, samples, pictures)
        writer.facts["seconds"] = round(time.monotonic() - begun, 2)
        for sample, completion in zip(samples, said, strict=True):
            judged = score(completion.text, sample, frame(sample), self.synonyms)
            writer.keep(Reply(model=unit.model, condition=unit.condition, completion=completion, score=judged))

    def _picture(self, index: int, condition: str) -> Image.Image | None:
        if self.samples[index].image is None:
            return None
        own = picture(self.store, self.samples[index])
        if max(own.size) > MOST_RATIO * min(own.size):
            size = f"{own.width} x {own.height} pixels; one side is more than {MOST_RATIO} times the other"
            raise ImageError(self.samples[index].shown.uri, "unsupported-format", size)
        other = picture(self.store, self.samples[self.partners[index]]) if condition == "shuffled" else None
        return shown(condition, own, other)

    def _completions(
        self, unit: Unit, samples: Sequence[Sample], pictures: Sequence[Image.Image | None]
    ) -> list[Completion]:
        """What the unit's model says, in order; asked, or from the cache. Equal questions with equal pictures (all
        blank ones, say) are asked once."""
        told = [_told(sample, picture) for sample, picture in zip(samples, pictures, strict=True)]
        first = {words: index for index, words in reversed(list(enumerate(told)))}
        chosen = sorted(first.values())
        if not chosen:
            return []
        said = self._ask(
            unit.model, [samples[i] for i in chosen], [pictures[i] for i in chosen], [told[i] for i in chosen]
        )
        by_words = {told[index]: completion for index, completion in zip(chosen, said, strict=True)}
        return [by_words[words] for words in told]

    def _ask(
        self, model: Model, samples: Sequence[Sample], pictures: Sequence[Image.Image | None], told: Sequence[str]
    ) -> list[Completion]:
        if model == "tuned":
            return self.ask(model, samples, pictures)
        uri = join(self.cache_uri, f"{self._key(model, told)}.jsonl.gz")
        kept = read_kept(self.store, uri)
        if kept is not None and len(kept) == len(samples):
            return kept
        said = self.ask(model, samples, pictures)
        self.store.write(uri, _zipped(said))
        return said

    def _key(self, model: Model, told: Sequence[str]) -> str:
        """sha256 over what the base is told and shown, and how it is asked; no URI and no code version is in it."""
        asked = {**self.asked_of_base, **(self.asked_natively if model == "native" else {})}
        words = json.dumps([asked, list(told)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(words.encode()).hexdigest()


def _told(sample: Sample, picture: Image.Image | None) -> str:
    """All of a question that reaches a model, as one line."""
    pixels = picture and hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    return json.dumps([sample.question, sample.context, sample.choices, pixels], ensure_ascii=False)


def read_replies(store: Store, stage_uri: str, marks: Sequence[ShardMark]) -> Iterator[Reply]:
    """All replies of a finished evaluation, unit after unit."""
    with TemporaryDirectory(prefix="replies-") as scratch:
        for mark in marks:
            for file in mark.files:
                yield from _read(store, stage_uri, file, Path(scratch))


def _read(store: Store, stage_uri: str, file: File, scratch: Path) -> Iterator[Reply]:
    try:
        with gzip.open(fetch_file(store, stage_uri, file, scratch), "rb") as lines:
            for line in lines:
                yield Reply.model_validate_json(line)
    except (ValidationError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        if isinstance(error, ValidationError) and any(fault["loc"][-1] == "version" for fault in error.errors()):
            raise InputError(
                f"{stage_uri} was made by a version of vcot that judged replies by other rules; evaluate that model "
                "again, and pin the new evaluation where this one was a baseline (--baseline-uri)"
            ) from None
        raise InputError(f"{join(stage_uri, file.name)}: not a shard of replies: {error}") from None


def read_kept(store: Store, uri: str) -> list[Completion] | None:
    """Completions of the cache; None where there are none, or what is there cannot be read (then it is made again)."""
    try:
        lines = gzip.decompress(store.read(uri)).splitlines()
        return [Completion.model_validate_json(line) for line in lines]
    except NotFound:
        return None
    except (ValidationError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        log.get().warning("a file of the cache cannot be read; asking again", uri=uri, error=str(error)[:200])
        return None


def _zipped(completions: Sequence[Completion]) -> bytes:
    return gzip.compress(b"".join(completion.line() for completion in completions), mtime=0)


def _rejection(sample: Sample, error: ImageError) -> Rejection:
    return Rejection(id=sample.id, stage="evaluate", reason=IMAGE_REASONS[error.reason], detail=str(error))
