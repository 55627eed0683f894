"""The stage tokenize: Samples of one shard become Examples of one shard, and the page shows what of them is learned.

Is the right part of every example learned? `check_mask` holds each against the rules by its ids, and `View` is what the
page shows of some, read back from what is stored.
"""

from __future__ import annotations

import gc
import math
import tempfile
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from PIL import Image as Pillow

from vcot.errors import InputError
from vcot.grounding.tags import Parsed, parse
from vcot.grounding.ways import LearnedWay
from vcot.models.families import family_of_processor
from vcot.records import Contract
from vcot.records.example import ALONE, IGNORED, Example, Examples
from vcot.records.metadata import Role, ShownRow, TokenizeShardMetadata
from vcot.records.sample import IMAGE_REASONS, NO_IMAGE_SIZE, Image, Reason, Rejection, Sample, kept_bytes
from vcot.records.shards import File, RowCounts, ShardMarker, ShardWriter, fetch_file, read_records
from vcot.reports.examples import TRUE, data_uri, overlay
from vcot.reports.rendering import chart, number, render
from vcot.reports.statistics import percentile, summed
from vcot.stage import stop
from vcot.storage import Store, images
from vcot.storage.images import DecodedImage, ImageError
from vcot.tokens.encoder import Encoder, load_processor, reasoning_by, refuse

AT_ONCE = 64
"""Rows whose texts are tokenised in one call."""

IMAGES_IN_MEMORY = 8
"""Questions about one image stand together; it is read and decoded once."""

KINDS = ("shrunk", "by-text", "train", "validation")
EACH_KIND = 4
"""Examples of each kind and way on the audit page, and how many of each a shard offers for it; half as many, where
there are several ways."""


class Tokenizing:
    """Makes the shards of this stage from those of another, and the page about them."""

    def __init__(
        self,
        store: Store,
        source_uri: str,
        shards: Sequence[Sequence[File]],
        own_uri: str,
        base: Path,
        encoder: Encoder,
        *,
        ask: bool = False,
    ) -> None:
        """
        Args:
            shards: the files of each. base: the local folder of the encoder's processor, for other processes.
            ask: a row without reasoning gives its question alone; else it is refused.
        """
        self.store, self.source_uri, self.shards, self.own_uri = store, source_uri, shards, own_uri
        self.base, self.encoder, self.ask = base, encoder, ask
        self._images: OrderedDict[str, tuple[DecodedImage, bytes]] = OrderedDict()
        ways = encoder.contract.ways
        self._places = list(product(KINDS, ways))
        self._each = EACH_KIND if len(ways) == 1 else EACH_KIND // 2

    def __reduce__(self) -> Any:
        contract = self.encoder.contract.model_dump_json()
        places = self.store, self.source_uri, self.shards, self.own_uri, self.base
        return _in_another_process, (*places, contract, self.ask)

    def samples(self, shard: int) -> Iterator[Sample]:
        """Of one shard, in order; their texts are tokenised before they come."""
        of_files = (read_records(self.store, self.source_uri, file, Sample) for file in self.shards[shard])
        samples = chain.from_iterable(of_files)
        while some := list(islice(samples, AT_ONCE)):
            self.encoder.tokenize_ahead(one for one in some if one.origin.split != "test")
            yield from some

    def shard(self, writer: ShardWriter) -> TokenizeShardMetadata:
        """One shard; a row gives one example per way and reasoning, rows of the test split give none."""
        splits, ways, lost = Counter[str](), Counter[str](), Counter[str]()
        lengths, visual = Counter[int](), Counter[int]()
        learned = shrunk = by_text = alone = test_rows = 0
        shown: dict[tuple[str, str], list[ShownRow]] = {place: [] for place in self._places}
        image_token = self.encoder.processor.image_token_id
        gc.freeze()  # else the garbage collector goes through all of torch and the tokenizer, again and again
        for sample in self.samples(writer.index):
            stop.raise_if_requested()
            if sample.origin.split == "test":
                test_rows += 1
                continue
            examples, refused = self.examples(sample)
            if not examples:
                writer.reject(refused[0])
                continue
            image = sample.image
            size, kept = (one and (one.width, one.height) for one in (image, image and image.kept))
            for example in examples:
                check_mask(example, self.encoder.processor, self.encoder.contract.roles)
                kind: Any = "shrunk" if example.shrunk else "by-text" if image is None else example.split
                rank, offered = crc32(example.id.encode()), shown[kind, example.way]
                if len(offered) < self._each or rank < offered[-1].rank:
                    row = sum(splits.values())
                    one = ShownRow(row=row, rank=rank, kind=kind, way=example.way, size=size, kept=kept)
                    insort(offered, one, key=lambda one: one.rank)
                    del offered[self._each :]
                splits[example.split] += 1
                ways[example.way] += 1
                lengths[len(example.ids)] += 1
                learned += example.learned
                shrunk += example.shrunk
                alone += example.alone
                if image is None:
                    by_text += 1
                else:
                    visual[example.ids.count(image_token)] += 1
            if refused:
                lost.update(rejection.reason.value for rejection in refused)
            writer.keep(*examples)
        return TokenizeShardMetadata(
            splits=_sorted(splits), ways=_sorted(ways), lengths=_sorted(lengths), visual=_sorted(visual),
            lost_alternatives=_sorted(lost), by_text=by_text, alone=alone, learned=learned, shrunk=shrunk,
            test_rows=test_rows,
            shown=tuple(one for some in shown.values() for one in some),
        )  # fmt: skip

    def examples(self, sample: Sample) -> tuple[list[Example], list[Rejection]]:
        """All that one row gives; refused is a whole row, or some of its reasonings."""
        ways, refused = self.encoder.contract.ways, list[Rejection]()
        if not sample.reasoning and ways != ("direct",) and not self.ask:
            detail = "no reasoning to learn from; distill writes one for rows that have none"
            refused.append(refuse(sample, Reason.NO_REASONING, detail))
            if "direct" not in ways:
                return [], refused
        found: list[tuple[DecodedImage, bytes]] = []
        if self.encoder.contract.mode == "multimodal":
            try:
                found = [self._image(image) for image in sample.images]
            except ImageError as error:
                return [], [refuse(sample, IMAGE_REASONS[error.reason], str(error))]
        shown, data = [image for image, _ in found], [data for _, data in found]
        made = [
            self.encoder.example(sample, i, shown, data, way) for way in ways for i in self._alternatives(sample, way)
        ]
        refused += [one for one in made if isinstance(one, Rejection)]
        return [one for one in made if isinstance(one, Example)], refused

    def _alternatives(self, sample: Sample, way: LearnedWay) -> Sequence[int]:
        if way != "direct" and not sample.reasoning:
            return (ALONE,) if self.ask else ()
        return range(len(reasoning_by(sample, way)))

    def _image(self, image: Image) -> tuple[DecodedImage, bytes]:
        """The image and its bytes. Raises ImageError."""
        uri = image.kept.uri
        if uri not in self._images:
            data = kept_bytes(self.store, image)
            self._images[uri] = images.decode(data, uri, sha256=image.kept.sha256), data
            while len(self._images) > IMAGES_IN_MEMORY:
                self._images.popitem(last=False)
        return self._images[uri]

    def report(
        self, shards: tuple[ShardMarker[TokenizeShardMetadata], ...], row_counts: RowCounts
    ) -> tuple[dict[str, Any], str]:
        """Sums of all shards, and the audit page with some examples read back from storage."""
        counts = TokenizeShardMetadata(**summed(shard.metadata.model_dump(exclude={"shown"}) for shard in shards))
        found = numbers(counts, row_counts, self.encoder.contract)
        return found, report_page(found, self._views(shards))

    def _views(self, shards: Sequence[ShardMarker[TokenizeShardMetadata]]) -> list[View]:
        """A few examples: shrunk ones, some by text alone, then of both splits, from as many shards as it takes."""
        views: dict[tuple[str, str], list[View]] = {place: [] for place in self._places}
        for shard in shards:
            wanted = [one for one in shard.metadata.shown if len(views[one.kind, one.way]) < self._each]
            if not wanted:
                continue
            with tempfile.TemporaryDirectory(prefix="audit-") as scratch:
                examples = Examples([fetch_file(self.store, self.own_uri, f, Path(scratch)) for f in shard.files])
                for one in (one for one in wanted if len(views[one.kind, one.way]) < self._each):
                    check_mask(example := examples[one.row], self.encoder.processor, self.encoder.contract.roles)
                    shown = view(example, one.size, self.encoder.contract, self.encoder.processor, kept=one.kept)
                    views[one.kind, one.way].append(shown)
        return [one for some in views.values() for one in some]


@lru_cache(maxsize=1)
def _encoder(base: Path, contract: str) -> Encoder:
    of = Contract.model_validate_json(contract)
    return Encoder(load_processor(base, min_pixels=of.min_pixels, max_pixels=of.max_pixels), of)


def _in_another_process(
    store: Store, source_uri: str, shards: Sequence[Sequence[File]], own_uri: str, base: Path, contract: str, ask: bool
) -> Tokenizing:
    """Loads the encoder once for all shards of a process: it is large, and does not travel."""
    return Tokenizing(store, source_uri, shards, own_uri, base, _encoder(base, contract), ask=ask)


# --- the audit ---------------------------------------------------------------------------------------------


def check_mask(example: Example, processor: Any, roles: Sequence[Role] = ()) -> None:
    """Holds the mask of an example against the rules, from the ids alone and not from how they were made.

    Args:
        roles: as in the contract. The reply of an example with a rationale of its own is two runs of what is learned.

    Raises InputError: nothing is learned; a learned label is another token than its id; a part of the prompt, an
    image or a header is learned; or the end of a reply is not. Of a question alone: something is learned, or it does
    not end where a reply begins. Of a rationale: it is not behind its header, it does not end with the token that ends
    a turn, or something else than a line break and the assistant's header is between it and the answer.
    """
    replies, marks = learned_replies(example.labels), _marks(processor)
    own_turn = "rationale" in roles and example.way != "direct"
    if example.alone:
        whose, header = ("rationale", marks.rationale) if own_turn else ("assistant", marks.header)
        if replies or example.ids[-len(header) :] != header:
            raise _broken(example, f"a question alone must end behind the {whose}'s header, and none of it be learned")
    elif not replies:
        raise _broken(example, "nothing of it is learned")
    elif replies[-1][1] != len(example.ids):
        raise _broken(example, "what is learned is not one piece up to the end")
    if any(example.labels[first:end] != example.ids[first:end] for first, end in replies):
        raise _broken(example, "a label is another token than the one that stands there")
    if own_turn and replies:
        _check_rationale(example, replies, processor)
        del replies[-2]
    for first, end in replies:
        reply = example.ids[first:end]
        if marks.special.intersection(reply) != {marks.end} or reply.count(marks.end) != 1:
            control = [token for token in reply if token in marks.special]
            names = ", ".join(processor.tokenizer.convert_ids_to_tokens(control)) or "none"
            raise _broken(example, f"the control tokens that are learned are {names}; one <|im_end|> is right")
        if example.ids[first - len(marks.header) : first] != marks.header:
            before = processor.tokenizer.decode(list(example.ids[max(0, first - 12) : first]))
            raise _broken(example, f"what is learned begins behind {before!r}, not behind the assistant's header")
        last = example.ids[slice(*replies[-1])]
        if reply[reply.index(marks.end) :] != last[last.index(marks.end) :]:
            raise _broken(example, "earlier replies that are learned do not end as the last one does")
    pads = example.ids.count(marks.image)
    wanted = sum(map(math.prod, example.image_grids)) // marks.merge_size**2
    if pads != wanted:
        raise _broken(example, f"it has {pads} places for visual tokens, its images give {wanted}")


def _check_rationale(example: Example, replies: Sequence[tuple[int, int]], processor: Any) -> None:
    """That the last but one of them is a rationale, and the last its answer."""
    marks = _marks(processor)
    first, end = replies[-2] if len(replies) > 1 else (0, 0)
    if example.ids[max(0, first - len(marks.rationale)) : first] != marks.rationale:
        before = processor.tokenizer.decode(list(example.ids[max(0, first - 12) : first]))
        raise _broken(example, f"the rationale begins behind {before!r}, not behind the rationale's header")
    rationale, between = example.ids[first:end], example.ids[end : replies[-1][0]]
    if rationale[-1] != marks.end or len(marks.special.intersection(rationale)) != 1 or rationale.count(marks.end) != 1:
        said = processor.tokenizer.decode(list(rationale[-12:]))
        raise _broken(
            example, f"the rationale ends with {said!r}; one <|im_end|>, and no other control token, is right"
        )
    if between != marks.between:
        said = processor.tokenizer.decode(list(between))
        raise _broken(example, f"between rationale and answer stands {said!r}, not a line break and the header")


def reply_begins(labels: tuple[int, ...], *, rationale: bool) -> int:
    """Place of the first token of the last reply that is learned. rationale: it has one that is a turn of its own."""
    first, _ = learned_replies(labels)[-2 if rationale else -1]
    return first


def learned_replies(labels: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, end) of each run of tokens that are learned: of a rationale that is a turn of its own, and of its answer,
    one each."""
    prompt = labels.count(IGNORED)
    if IGNORED not in labels[prompt:]:  # one run, as of nearly all
        return [(prompt, len(labels))] if prompt < len(labels) else []
    found, at = [], 0
    for ignored, run in groupby(labels, IGNORED.__eq__):
        end = at + len(list(run))
        if not ignored:
            found.append((at, end))
        at = end
    return found


class _Marks(NamedTuple):
    """What a processor says a mask has to agree with; to ask it takes longer than to tokenise a row."""

    special: frozenset[int]
    end: int
    header: tuple[int, ...]  # of the assistant
    rationale: tuple[int, ...]  # header of a rationale that is a turn of its own
    between: tuple[int, ...]  # its end and the answer
    image: int
    merge_size: int


@lru_cache(maxsize=4)
def _marks(processor: Any) -> _Marks:
    tokenizer = processor.tokenizer
    texts = ["<|im_start|>assistant\n", "<|im_start|>rationale\n", "\n<|im_start|>assistant\n"]
    header, rationale, between = map(
        tuple, tokenizer(texts, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    )
    return _Marks(
        frozenset((*tokenizer.all_special_ids, processor.image_token_id, processor.video_token_id)),
        tokenizer.convert_tokens_to_ids("<|im_end|>"), header, rationale, between, processor.image_token_id,
        family_of_processor(processor).sizes(processor)["merge_size"],
    )  # fmt: skip


def _broken(example: Example, what: str) -> InputError:
    return InputError(f"example {example.id}: {what}; the base's chat template or tokenizer does not do what it should")


@dataclass(frozen=True)
class Piece:
    """One token as text, or several where only together they are text (bytes of a letter, places of an image)."""

    text: str
    tokens: int
    learned: bool
    control: bool


def pieces(example: Example, processor: Any) -> list[Piece]:
    """The example decoded token by token, in order."""
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    found: list[Piece] = []
    at = 0
    while at < len(example.ids):
        token, learned = example.ids[at], example.labels[at] != IGNORED
        end = at + 1
        if token == processor.image_token_id:
            while end < len(example.ids) and example.ids[end] == token:
                end += 1
            text = f"{processor.image_token} × {end - at}"
        else:
            text = tokenizer.decode([token], skip_special_tokens=False)
            while "\ufffd" in text and end < min(at + 4, len(example.ids)):
                end += 1
                text = tokenizer.decode(list(example.ids[at:end]), skip_special_tokens=False)
        found.append(Piece(text, end - at, learned, token in special))
        at = end
    return found


@dataclass(frozen=True)
class View:
    """What an example says, read back from what is stored: as training will get it."""

    example: Example
    pieces: list[Piece]
    learned: str  # the reply as text; of several that are learned, and of rationale and answer, a line for each
    parsed: Parsed  # its boxes, read by the frame of the contract; in pixels of the original
    original: tuple[int, int] | None
    images: list[Pillow.Image]  # as the model sees them; boxes are on the first


def view(
    example: Example, original: tuple[int, int] | None, contract: Contract, processor: Any, *,
    kept: tuple[int, int] | None = None,
) -> View:  # fmt: skip
    """
    original: (width, height) of the upright image in whose pixels the sample's boxes are; None: it is asked by text
    alone. kept: of the copy that is read in its place, if any; looked at where the example shows no image.
    """
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    replies = []
    for first, last in learned_replies(example.labels):
        reply = [token for token in example.ids[first:last] if token != end]
        replies.append(str(processor.tokenizer.decode(reply, skip_special_tokens=False)).rstrip("\n"))
    learned = "\n".join(replies)
    seen = []
    for place, (data, (_, rows, columns)) in enumerate(zip(example.images, example.image_grids, strict=True)):
        pixels = images.decode(data, example.id).pixels
        if place == 0:
            kept = pixels.size  # made smaller, it is what the processor is handed
        size = columns * contract.patch_size, rows * contract.patch_size
        seen.append(pixels.resize(size, Pillow.Resampling.BICUBIC))
    parsed = parse(learned, contract.frame_spec.on(*(original or NO_IMAGE_SIZE), kept=kept))
    return View(example, pieces(example, processor), learned, parsed, original, seen)


# --- the page ----------------------------------------------------------------------------------------------


def _sorted(counts: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(counts.items()))


def numbers(counts: TokenizeShardMetadata, row_counts: RowCounts, contract: Contract) -> dict[str, Any]:
    """What stands in report.json.

    Raises InputError where examples were made and nothing in them is learned.
    """
    examples = sum(counts.splits.values())
    if examples > counts.alone and not counts.learned:
        raise InputError(f"nothing is learned in any of {examples} examples")
    tokens = sum(length * often for length, often in counts.lengths.items())
    return {
        "examples": {split: counts.splits.get(split, 0) for split in ("train", "validation")},
        "ways": counts.ways,
        "tokens": {
            "all": tokens,
            "learned": counts.learned,
            "learned_share": round(counts.learned / tokens, 4) if tokens else 0.0,
            "per_example": _spread(counts.lengths),
            "histogram": histogram(counts.lengths),
        },
        "visual_tokens": {"per_example": _spread(counts.visual), "histogram": histogram(counts.visual)},
        "by_text": counts.by_text,
        "questions_alone": counts.alone,
        "shrunk": counts.shrunk,
        "refused": row_counts.rejected,
        "refused_alternatives": counts.lost_alternatives,
        "rows": row_counts.rows,
        "test_rows_left_out": counts.test_rows,
        "contract": contract.model_dump(mode="json"),
    }


def _spread(counts: dict[int, int]) -> dict[str, int]:
    quantiles = {"p50": percentile(counts, 0.5), "p95": percentile(counts, 0.95)}
    return {"min": min(counts, default=0), **quantiles, "max": max(counts, default=0)}


def histogram(counts: Mapping[int, int], most: int = 10) -> list[tuple[int, int, int]]:
    """(from, up to and with, how many) in at most `most` steps of one width."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // most)
    steps = ((start, min(start + width - 1, high)) for start in range(low, high + 1, width))
    return [(a, b, sum(n for value, n in counts.items() if a <= value <= b)) for a, b in steps]


def report_page(found: dict[str, Any], views: Sequence[View]) -> str:
    charts = (
        ("Tokens per example", "prompt, visual tokens and reply", "examples", found["tokens"]),
        ("Visual tokens per example", "of its images, after resizing", "examples", found["visual_tokens"]),
    )
    return render(
        "tokenize.html.j2", found=found, contract=found["contract"], cards=[_card(one) for one in views],
        charts=[_chart(*one) for one in charts],
    )  # fmt: skip


def _chart(name: str, about: str, counted: str, of: Mapping[str, Any]) -> dict[str, Any]:
    steps, spread = of["histogram"], of["per_example"]
    said = (
        f"from {number(spread['min'])} to {number(spread['max'])}, half of them at most {number(spread['p50'])}, "
        f"95 of 100 {number(spread['p95'])}"
    )
    return chart(name, about, counted, ((f"{a}–{b}" if b > a else f"{a}", n) for a, b, n in steps), said)


def _card(one: View) -> dict[str, Any]:
    boxes = one.parsed.boxes
    labels = []
    for mention in one.parsed.trace.mentions:
        # The name at the first of its boxes, numbers in the order of the text at the others.
        count = len(mention.boxes)
        labels += [f"{mention.label} 1" if count > 1 else mention.label, *(str(n) for n in range(2, count + 1))]
    shown = []
    for place, image in enumerate(one.images):  # boxes are on the first
        drawn, named = ({}, {}) if place else ({TRUE: boxes}, {TRUE: labels})
        shown.append(data_uri(overlay(image, drawn, named, original=one.original, longest_side=360)))
    visual = sum(piece.tokens for piece in one.pieces if piece.control and "×" in piece.text)
    return {"view": one, "images": shown, "visual": visual, "boxes": len(boxes)}
