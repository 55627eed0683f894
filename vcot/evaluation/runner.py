"""Asks the subject, and of one that was tuned its base, once, and keeps what they said.

Questions are asked in units: so many prompts, one model (the base in the tuned one's form, the base in its own, the
subject), one way to ask, one condition. A unit is a shard of the stage; a killed evaluation goes on with the first unit
that has no marker, and finds the batches of it that were asked in the cache. What the base says does not depend on the
run: the cache lies beside the runs, its key is all that shapes a batch's replies, and nothing is asked twice.

Conditions show images that should not help: a model that answers as well with them does not look. A *blank* image is
uniform grey of the same size. A *shuffled* one belongs to another sample; it shows how much of a result is prior
knowledge of where such things usually lie. Of several images all are replaced. Questions by text alone are asked as
they are, under *real* alone. Where turns stand before a question, they are given, replies of the assistant included.

Baselines are guesses that anyone can make without looking, written as replies and judged by the same scorer; a model
has learned what it does better than these.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
import re
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator
from pydantic_core import to_json

from vcot import logging
from vcot.answers import NO_SYNONYMS, Synonyms
from vcot.errors import InputError
from vcot.evaluation.config import PROBES, Condition, Model, Probe, Way
from vcot.evaluation.metrics import score
from vcot.evaluation.models import Models
from vcot.evaluation.probe import Change, Own, probed
from vcot.evaluation.rationales import UNSCORED, Rationales, rationales
from vcot.evaluation.ways import LOOK_AGAIN, Prompt, as_reply, both_turns, look_again
from vcot.grounding import Box, Frame, Mention, Trace
from vcot.grounding.tags import parse, render_reply
from vcot.grounding.ways import DIRECT
from vcot.models.decoding import Decoding
from vcot.records import Completion, Rejection, Sample, Score
from vcot.records.base import Record
from vcot.records.metadata import EvaluateShardMetadata
from vcot.records.reply import rounded
from vcot.records.sample import IMAGE_REASONS, read_image
from vcot.records.shards import ShardMarker, ShardWriter, read_records
from vcot.stage import stop
from vcot.storage import NotFound, Store, images, join
from vcot.storage.images import ImageError

MOST_RATIO = 200
"""Image processors of the Qwen-VL family take no image that is longer than this times its other side."""


class Reply(Record):
    """One line of a shard: who said what, asked in which way under which condition, and how good it was."""

    version: Literal[2] = 2
    model: Model
    way: Way
    condition: Condition
    draw: int = Field(
        0, ge=0, exclude_if=lambda draw: not draw, description="1, 2, … of several; left out where greedy"
    )
    answer_logprobs: Annotated[tuple[FiniteFloat, ...] | None, AfterValidator(rounded)] = Field(
        None, exclude_if=lambda logprobs: logprobs is None,
        description="of a draw: the natural logarithm of the probability of the answer of each cluster of the draws "
        "(in the order of vcot.evaluation.voting) after this draw's rationale, 5 decimals; left out where not known",
    )  # fmt: skip
    answer_tokens: tuple[int, ...] | None = Field(
        None, exclude_if=lambda counts: counts is None,
        description="of a draw: how many tokens each of these answers has, the end of the reply among them; left out "
        "by earlier versions",
    )  # fmt: skip
    rationale_tokens: int | None = Field(
        None,
        ge=0,
        exclude_if=lambda count: count is None,
        description="of a draw: how many tokens its reply has up to its answer; left out by earlier versions",
    )
    probe: Probe | None = Field(
        None, exclude_if=lambda probe: probe is None,
        description="what was changed of the reasoning or the image before the model went on to its answer",
    )  # fmt: skip
    completion: Completion
    score: Score

    @property
    def key(self) -> str:
        """Of the report's row that it counts in: subject-real, …"""
        return f"{self.model}-{self.condition}"

    @model_validator(mode="before")
    @classmethod
    def _version_1(cls, said: Any) -> Any:
        """Of models that were asked in one way, and the subject was called tuned."""
        if not isinstance(said, dict) or said.get("version") != 1:
            return said
        return said | {"version": 2, "way": "ground"} | ({"model": "subject"} if said.get("model") == "tuned" else {})


class Unit(NamedTuple):
    """Samples first..last-1 of the evaluation, asked of one model in one way under one condition: greedily, or
    `draws` times at random, or to go on from its own reply with something changed."""

    model: Model
    way: Way
    condition: Condition
    first: int
    last: int
    draws: int = 0
    probe: Probe | None = None


def units(
    samples: int, models: Sequence[Model], ways: Sequence[Way], conditions: Sequence[Condition], size: int,
    draws: int = 0, probe: bool = False,
) -> list[Unit]:  # fmt: skip
    """Model by model, the base first, so that its adapter is attached once, later; in its own form a base is asked in
    the first way about the real images alone, and at random only the subject is, and probed in the first way."""
    asked: list[tuple[Model, Way, Condition, int, Probe | None]] = []
    for model in models:
        own = model == "native"
        asked += [
            (model, way, condition, 0, None)
            for way in (ways[:1] if own else ways)
            for condition in (("real",) if own else conditions)
        ]  # fmt: skip
        if draws and model == "subject":
            asked += [(model, way, "real", draws, None) for way in ways]
        if probe and model == "subject":
            asked += [(model, ways[0], "real", 0, each) for each in PROBES]
    return [
        Unit(model, way, condition, first, min(first + size, samples), times, each)
        for model, way, condition, times, each in asked
        for first in range(0, samples, size)
    ]


# --- what is shown -----------------------------------------------------------------------------------------


def partners(samples: Sequence[Sample], seed: int) -> list[int]:
    """For each sample, the index of one with another image; its own, where it has none.

    Images are permuted in one cycle (Sattolo 1986), so none keeps its place, and samples that share an image share the
    other one too. Images are told apart by their digest, because datasets hold the same one under two names. Raises
    InputError: all samples that have an image are about the same.
    """
    first: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample.image is not None:
            first.setdefault(sample.image.sha256, index)
    if len(first) == 1:
        raise InputError("to shuffle images, samples of at least two are needed; leave out the condition shuffled")
    digests = sorted(first)
    other = digests.copy()
    generator = random.Random(seed)
    for place in range(len(other) - 1, 0, -1):
        swap = generator.randrange(place)
        other[place], other[swap] = other[swap], other[place]
    shown = dict(zip(digests, other, strict=True))
    return [
        index if sample.image is None else first[shown[sample.image.sha256]] for index, sample in enumerate(samples)
    ]


def image_of(store: Store, sample: Sample) -> Image.Image:
    """The sample's first image as it is kept: upright RGB. Raises images.ImageError: missing, changed or broken."""
    return read_image(store, sample.shown).pixels


def images_of(store: Store, sample: Sample) -> list[Image.Image]:
    """All of them, in their order. Raises as `image_of` does."""
    return [read_image(store, image).pixels for image in sample.images]


def shown(condition: Condition, own: Image.Image, other: Image.Image | None = None) -> Image.Image:
    """What the model is given under a condition, always at the size of the sample's own image.

    The size is a hint as well (a tall box in a tall image), and the frame of a text may depend on it.
    """
    if condition == "real":
        return own
    if condition == "blank":
        return images.blank(*own.size)
    assert other is not None
    return other if other.size == own.size else other.resize(own.size, Image.Resampling.BICUBIC)


# --- asking ------------------------------------------------------------------------------------------------


@dataclass
class EvaluationRunner:
    """Everything a unit needs.

    partners: for each sample, the index of the one whose image it is shown when shuffled.
    decoding: how replies are drawn, where that is at random; else only the longest reply counts.
    synonyms: labels that are one name when replies are judged.
    seed: of what a probe changes.
    score_answers: of several replies, score every answer after every rationale (voting.SCORED).
    """

    store: Store
    samples: Sequence[Sample]
    partners: Sequence[int]
    models: Models
    units: Sequence[Unit]
    cache_uri: str
    decoding: Decoding
    synonyms: Synonyms = NO_SYNONYMS
    seed: int = 0
    score_answers: bool = True

    def run(self, writer: ShardWriter) -> EvaluateShardMetadata:
        """Asks one unit's questions; keeps a Reply per sample, or a Rejection where its image cannot be shown."""
        unit = self.units[writer.index]
        indices = range(unit.first, unit.last)
        by_text = sum(self.samples[index].image is None for index in indices)
        with_text = unit.condition == "real" and unit.probe is None
        asked = [index for index in indices if with_text or self.samples[index].image]
        questions = {index: self._question(index, unit.condition) for index in asked}
        begun = time.monotonic()
        said, answered_as, new = self._each_once(unit, questions)
        scored = self._answer_logprobs(unit, said, questions)
        seconds = round(time.monotonic() - begun, 2)
        for index in asked:
            sample, asked_of = self.samples[index], answered_as[index]
            if asked_of not in said:  # of a probe: there was nothing to change
                continue
            replies, table = said[asked_of], scored.get(asked_of)
            if isinstance(replies, ImageError):
                reason = IMAGE_REASONS[replies.reason]
                writer.reject(Rejection(id=sample.id, stage="evaluate", reason=reason, detail=str(replies)))
                continue
            for draw, completion in enumerate(replies, start=1 if unit.draws else 0):
                judged = score(
                    as_reply(completion.text, unit.way), sample, self.models.frame(unit.model, sample), self.synonyms
                )
                writer.keep(
                    Reply(
                        model=unit.model,
                        way=unit.way,
                        condition=unit.condition,
                        draw=draw,
                        probe=unit.probe,
                        **({} if table is None or (row := table[draw - 1]) is None else row._asdict()),
                        completion=completion,
                        score=judged,
                    )
                )
        return EvaluateShardMetadata(by_text=by_text, seconds=seconds, asked=new)

    def _each_once(
        self, unit: Unit, questions: Mapping[int, str]
    ) -> tuple[dict[int, list[Completion] | ImageError], dict[int, int], int]:
        """Asks equal questions about equal images (all blank ones, say) once: what was said, to which of them for each,
        and how many were asked. One whose own image cannot be read does not speak for the others."""
        said: dict[int, list[Completion] | ImageError] = {}
        answered_as: dict[int, int] = {}
        new, left = 0, dict(questions)
        while left:
            first = {question: index for index, question in reversed(left.items())}
            found, more = self._replies(unit, sorted(first.values()), questions)
            said, new = said | found, new + more
            broken = {questions[index] for index, replies in found.items() if isinstance(replies, ImageError)}
            answered_as |= {i: first[q] for i, q in left.items() if q not in broken or i == first[q]}
            left = {index: question for index, question in left.items() if index not in answered_as}
        return said, answered_as, new

    def _question(self, index: int, condition: Condition) -> str:
        """All of a question that reaches a model, as one line; images by their digests."""
        sample = self.samples[index]
        told = [sample.question, sample.context, sample.choices, [t.model_dump(mode="json") for t in sample.turns]]
        if condition == "blank":
            seen: list[Any] = [
                (image.kept.width, image.kept.height, image.width, image.height) for image in sample.images
            ]
        else:
            seen = [(image.kept.sha256, image.width, image.height) for image in sample.images]
        other = self.samples[self.partners[index]].images if condition == "shuffled" else ()
        return json.dumps([*told, seen, [image.kept.sha256 for image in other]], ensure_ascii=False)

    def _replies(
        self, unit: Unit, indices: Sequence[int], questions: Mapping[int, str]
    ) -> tuple[dict[int, list[Completion] | ImageError], int]:
        """What the model says to each of these samples, or why it cannot be shown its image; and how many it was asked
        for that. Of a probe: of those where there is something to change. What was said to the same batch before is
        taken from the cache; images of the next batch are read while one is asked."""
        how: dict[str, Any] = {"decoding": asdict(self._decoding(unit))}
        changes: dict[int, Change] | None = None
        if unit.probe is not None:
            changes = self._changes(unit, unit.probe, indices, questions)
            indices = [*changes]
        found: dict[int, list[Completion] | ImageError] = {}
        waiting: list[tuple[list[int], str]] = []
        for batch in self._batches(indices, unit.draws or 1):
            if changes is not None:
                told = [(self.samples[index].id, changes[index].prefix) for index in batch]
                how["probe"] = [unit.probe, self.seed, told]
            uri = self._cache_key(unit, batch, questions, how)
            kept = None if self.models.keeps_replies else _cached(self.store, uri, _REPLIES)
            if kept is not None and len(kept) == len(batch) and all(len(each) == (unit.draws or 1) for each in kept):
                found.update(zip(batch, kept, strict=True))
            else:
                waiting.append((batch, uri))
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._prepared, unit, batch, changes) for batch, _ in waiting[:1]]
            for number, (batch, uri) in enumerate(waiting):
                stop.raise_if_requested()
                prompts, prepared, missing = coming.pop().result()
                if number + 1 < len(waiting):
                    coming.append(ahead.submit(self._prepared, unit, waiting[number + 1][0], changes))
                said = self._ask(unit, [i for i in batch if i not in missing], prompts, prepared)
                found |= {**said, **missing}
                if not missing and not self.models.keeps_replies:
                    self._keep(uri, (said[index] for index in batch))
        return found, sum(len(batch) for batch, _ in waiting)

    def _changes(
        self, unit: Unit, probe: Probe, indices: Sequence[int], questions: Mapping[int, str]
    ) -> dict[int, Change]:
        """What is changed of the model's own reply to each of these samples; only those where something is."""
        # In the batches in which they were asked, questions by text alone included: another batch is other arithmetic.
        every = {index: self._question(index, unit.condition) for index in range(unit.first, unit.last)}
        first = {question: index for index, question in reversed(every.items())}
        own, _ = self._replies(unit._replace(probe=None), sorted(first.values()), every)
        texts = {i: replies[0].text for i in indices if not isinstance(replies := own[i], ImageError)}
        frames = {index: self.models.frame(unit.model, self.samples[index]) for index in texts}
        labels = {label for index, text in texts.items() for label in parse(text, frames[index]).trace.labels}
        found: dict[int, Change] = {}
        for index, text in texts.items():
            sample = self.samples[index]
            others = tuple(texts[i] for i in texts if self.samples[i].shown.sha256 != sample.shown.sha256)
            given = Own(sample, text, frames[index], self.models.form(unit.model), others, tuple(sorted(labels)))
            if (change := probed(probe, given, self.seed)) is not None:
                found[index] = change
        return found

    def _batches(self, indices: Sequence[int], draws: int = 1) -> list[list[int]]:
        together = self.models.batches([self.samples[index] for index in indices], draws)
        return [[indices[place] for place in batch] for batch in together]

    def _cache_key(
        self, unit: Unit, batch: Sequence[int], questions: Mapping[int, str], more: Mapping[str, Any]
    ) -> str:  # fmt: skip
        how = {**self.models.fingerprint(unit.model), "way": unit.way, **more}
        if unit.way == "look-again":  # what a reply is read by shapes the second turn
            form = self.models.form(unit.model)
            how["second_turn"] = [form.frame, form.dialect, LOOK_AGAIN, DIRECT]
        below = [self.models.form(unit.model).below(self.samples[index], unit.way) for index in batch]
        parts = json.dumps([how, [questions[i] for i in batch], below], sort_keys=True, ensure_ascii=False)
        return join(self.cache_uri, f"{hashlib.sha256(parts.encode()).hexdigest()}.jsonl.gz")

    def _keep(self, uri: str, lines: Iterable[Any]) -> None:
        self.store.write(uri, gzip.compress(b"".join(to_json(line) + b"\n" for line in lines), mtime=0))

    def _answer_logprobs(
        self, unit: Unit, said: Mapping[int, list[Completion] | ImageError], questions: Mapping[int, str]
    ) -> dict[int, list[Scored | None]]:
        """For each question, of each draw: how likely the model finds every answer that was drawn, after this draw's
        rationale. Kept in the cache as replies are."""
        if not (unit.draws and self.score_answers and self.models.can_score) or unit.way in UNSCORED:
            return {}
        texts = {
            index: [as_reply(one.text, unit.way) for one in replies]
            for index, replies in said.items()
            if not isinstance(replies, ImageError)
        }
        asked = {index: rationales(each, self.samples[index].choices) for index, each in sorted(texts.items())}
        found: dict[int, Table] = {}
        for batch in self._batches([index for index, each in asked.items() if each.answers]):
            uri = self._cache_key(unit, batch, questions, {"score": [asked[index] for index in batch]})
            if (kept := _cached(self.store, uri, _TABLES)) is None or len(kept) != len(batch):
                stop.raise_if_requested()
                try:
                    kept = self._score(unit, {index: asked[index] for index in batch})
                except ImageError as error:  # it was there when replies were drawn; the marginal alone goes without
                    logging.get().warning("an image has gone since it was asked about", error=str(error))
                    continue
                self._keep(uri, kept)
            found.update(zip(batch, kept, strict=True))
        return {index: self._counted(asked[index], table) for index, table in found.items()}

    def _counted(self, asked: Rationales, table: Table) -> list[Scored | None]:
        answers = tuple(self.models.token_count(answer) + 1 for answer in asked.answers)  # and the end of the reply
        rationales = {prefix: self.models.token_count(prefix) for prefix in asked.distinct}
        return [
            None if row is None or prefix is None else Scored(row, answers, rationales[prefix])
            for row, prefix in zip(table, asked.prefixes, strict=True)
        ]

    def _score(self, unit: Unit, asked: Mapping[int, Rationales]) -> list[Table]:
        """Raises ImageError: an image cannot be read any more."""
        prompts: list[Prompt] = []
        for index, each in asked.items():
            shown = self._images(index, unit.condition)
            prompt = self.models.prompt(unit.model, unit.way, self.samples[index], shown)
            prompts += [replace(prompt, prefix=prefix) for prefix in each.distinct]
        answers = [each.answers for each in asked.values() for _ in each.distinct]
        rows = iter(self.models.score(unit.model, prompts, answers))
        tables: list[Table] = []
        for each in asked.values():
            scored = {prefix: tuple(round(math.fsum(one), 5) for one in next(rows)) for prefix in each.distinct}
            tables.append([None if prefix is None else scored[prefix] for prefix in each.prefixes])
        return tables

    def _prepared(
        self, unit: Unit, batch: Sequence[int], changes: Mapping[int, Change] | None
    ) -> tuple[list[Prompt], Any, dict[int, ImageError]]:
        prompts: list[Prompt] = []
        missing: dict[int, ImageError] = {}
        for index in batch:
            try:
                shown = self._images(index, unit.condition)
            except ImageError as error:
                missing[index] = error
                continue
            prompt = self.models.prompt(unit.model, unit.way, self.samples[index], shown)
            prompts.append(prompt if changes is None else changes[index].of(prompt))
        return prompts, self.models.prepare(prompts) if prompts else None, missing

    def _ask(
        self, unit: Unit, batch: Sequence[int], prompts: Sequence[Prompt], prepared: Any
    ) -> dict[int, list[Completion]]:
        if not batch:
            return {}
        decoding = self._decoding(unit)
        said = dict(zip(batch, self.models.ask(unit.model, prepared, decoding), strict=True))
        if unit.probe is not None:  # its reply begins as it was begun for it
            return {
                index: [one.model_copy(update={"text": prompt.prefix + one.text}) for one in said[index]]
                for index, prompt in zip(batch, prompts, strict=True)
            }
        if unit.way != "look-again":
            return said
        form = self.models.form(unit.model)
        again: dict[tuple[int, int], Prompt] = {}
        for index, prompt in zip(batch, prompts, strict=True):
            for draw, reply in enumerate(said[index]):
                frame = self.models.frame(unit.model, prompt.sample)
                if (second := look_again(prompt, reply.text, form, frame)) is not None:
                    again[index, draw] = second
        for draw in range(decoding.samples):  # each with noise of its own: equal first turns have equal second prompts
            second_turns = {index: prompt for (index, number), prompt in again.items() if number == draw}
            once = replace(decoding, samples=1, seed=decoding.seed + draw)
            places = [*second_turns]
            for together in self.models.batches([prompt.sample for prompt in second_turns.values()]):
                asked = [places[place] for place in together]
                replies = self.models.ask(unit.model, self.models.prepare([second_turns[i] for i in asked]), once)
                for index, (second_reply,) in zip(asked, replies, strict=True):
                    said[index][draw] = both_turns(said[index][draw], second_reply)
        return said

    def _decoding(self, unit: Unit) -> Decoding:
        return self.decoding if unit.draws else Decoding(self.decoding.max_new_tokens)

    def _images(self, index: int, condition: Condition) -> list[Image.Image]:
        own = images_of(self.store, self.samples[index])
        for image, pixels in zip(self.samples[index].images, own, strict=True):
            if max(pixels.size) > MOST_RATIO * min(pixels.size):
                size = f"{pixels.width} x {pixels.height} pixels; one side is more than {MOST_RATIO} times the other"
                raise ImageError(image.uri, "unsupported-format", size)
        if condition != "shuffled":
            return [shown(condition, pixels) for pixels in own]
        others = images_of(self.store, self.samples[self.partners[index]])  # again from the first, where they are fewer
        return [shown(condition, pixels, others[place % len(others)]) for place, pixels in enumerate(own)]


Table = list[tuple[float, ...] | None]
"""[draws][clusters]: log-probabilities; None where a draw has no rationale that ends with an answer."""


class Scored(NamedTuple):
    """Of one draw, by the names of a Reply's fields."""

    answer_logprobs: tuple[float, ...]
    answer_tokens: tuple[int, ...]
    rationale_tokens: int


_REPLIES = TypeAdapter(list[Completion])
_TABLES = TypeAdapter(list[tuple[FiniteFloat, ...] | None])


Line = TypeVar("Line")


def _cached(store: Store, uri: str, line: TypeAdapter[Line]) -> list[Line] | None:
    """Lines of the cache, one for each question; None where there are none, or what is there cannot be read (then it
    is made again)."""
    try:
        return [line.validate_json(each) for each in gzip.decompress(store.read(uri)).splitlines()]
    except NotFound:
        return None
    except (ValueError, TypeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        logging.get().warning("a file of the cache cannot be read; asking again", uri=uri, error=str(error)[:200])
        return None


def read_replies(store: Store, stage_uri: str, markers: Sequence[ShardMarker]) -> Iterator[Reply]:
    """All replies of a finished evaluation, unit after unit."""
    for file in (file for marker in markers for file in marker.files):
        try:
            yield from read_records(store, stage_uri, file, Reply)
        except InputError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError) and any(f["loc"][-1] == "version" for f in cause.errors()):
                raise InputError(
                    f"{stage_uri} was made by a version of vcot that judged replies by other rules; evaluate that "
                    "model again, and pin the new evaluation where this one was a baseline (--fail-if-worse-than)"
                ) from None
            raise


# --- guesses -----------------------------------------------------------------------------------------------

NOTHING_NAMED = "nothing named"
NOT_ANNOTATED = "not annotated"

Fractions = tuple[float, float, float, float]
CENTRE: Fractions = (0.25, 0.25, 0.75, 0.75)
WHOLE: Fractions = (0.0, 0.0, 1.0, 1.0)


@dataclass
class Baselines:
    """What the training split teaches to somebody with closed eyes."""

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    boxes: dict[str, list[Fractions]] = field(default_factory=lambda: defaultdict(list))
    rows: int = 0

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Baselines:
        learned = cls()
        for sample in samples:
            learned.rows += 1
            learned.answers[sample.question][sample.answers[0]] += 1
            for mention in sample.evidence or ():
                for box in mention.boxes:
                    fractions = box.to_fractions(width=sample.shown.width, height=sample.shown.height)
                    learned.boxes[mention.label].append(fractions)
        return learned

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self.boxes))

    def answer(self, question: str) -> str | None:
        """The most frequent answer to this very question in training, or to any, where it was never asked there.

        None without a training split. Of equally frequent ones the first by alphabet.
        """
        counts = self.answers.get(question) or sum(self.answers.values(), Counter())
        return min(counts, key=lambda answer: (-counts[answer], answer)) if counts else None

    def box(self, label: str) -> Fractions | None:
        """The mean of the boxes that have this label in training, or of all, where none has it."""
        boxes = self.boxes.get(label) or [box for boxes in self.boxes.values() for box in boxes]
        if not boxes:
            return None
        x1, y1, x2, y2 = np.mean(boxes, axis=0).tolist()
        return x1, y1, x2, y2


def guesses(
    samples: Sequence[Sample], learned: Baselines, frame: Callable[[Sample], Frame]
) -> dict[str, tuple[Score, ...]]:
    """Name of the guess → a Score per sample, in order. Where there is no image, a guess of a box shows none.

    `centre-box` is half as wide and high as the image. Where the evidence has several names, a guess shows a box under
    each. A guess of a box has no answer, and the guess of an answer has no box; only the one half of its figures means
    something. Guesses from training are left out where there is nothing to learn them from.
    """

    def judged(sample: Sample, mentions: Sequence[Mention], answer: str) -> Score:
        return score(render_reply(Trace(tuple(mentions)), answer, frame(sample)), sample, frame(sample))

    def boxes(sample: Sample, box: Callable[[str], Fractions | None]) -> list[Mention]:
        names = NO_SYNONYMS.distinct(m.label for m in sample.evidence or ()) or [subject(sample, learned.labels)]
        return [
            Mention(name, (Box.from_fractions(*fractions, width=image.width, height=image.height),))
            for name in names
            if (image := sample.image) is not None and (fractions := box(name)) is not None
        ]

    by_box: dict[str, Callable[[str], Fractions | None]] = {
        "centre-box": lambda _: CENTRE,
        "whole-image": lambda _: WHOLE,
    }
    if learned.boxes:
        by_box["mean-box"] = learned.box
    found = {name: tuple(judged(s, boxes(s, box), "") for s in samples) for name, box in by_box.items()}
    if learned.answers:
        found["frequent-answer"] = tuple(judged(s, [], learned.answer(s.question) or "") for s in samples)
    return found


def subject(sample: Sample, labels: Sequence[str]) -> str:
    """What a question is about: the labels of its evidence, or, where that is absent, the longest of the known labels
    that the question names (in singular or plural)."""
    if sample.evidence is None:
        return NOT_ANNOTATED
    if sample.evidence:
        return " and ".join(sorted({mention.label or NOTHING_NAMED for mention in sample.evidence}))
    question = sample.question.casefold()
    named = [label for label in labels if re.search(rf"\b{re.escape(label.casefold())}(?:e?s)?\b", question)]
    return max(named, key=len, default=NOTHING_NAMED)
