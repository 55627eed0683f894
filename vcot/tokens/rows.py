"""The stage tokenize: Samples of one shard become Examples of one shard."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcot.records.example import Example, Examples
from vcot.records.metadata import ShownRow, TokenizeShardMetadata
from vcot.records.sample import IMAGE_REASONS, Image, Reason, Rejection, Sample, kept_bytes
from vcot.records.shards import RowCounts, ShardMarker, ShardWriter, StageMarker, fetch_file, read_shard
from vcot.stage import stop
from vcot.storage import Store, images
from vcot.storage.images import DecodedImage, ImageError
from vcot.tokens.audit import View, check_mask, view
from vcot.tokens.encoder import STAGE, Encoder
from vcot.tokens.report import Counts, numbers, report_page

IMAGES_IN_MEMORY = 8
"""Questions about one image stand together; it is read and decoded once."""

EACH_KIND = 4
"""Examples of each kind on the audit page."""


class Tokenizing:
    """Makes the shards of this stage from those of another, and the page about them."""

    def __init__(self, store: Store, source_uri: str, source: StageMarker, own_uri: str, encoder: Encoder) -> None:
        self.store, self.source_uri, self.source, self.own_uri = store, source_uri, source, own_uri
        self.encoder = encoder
        self._images: OrderedDict[str, tuple[DecodedImage, bytes]] = OrderedDict()

    def shard(self, writer: ShardWriter) -> TokenizeShardMetadata:
        """One shard; a row gives one example per reasoning, rows of the test split give none."""
        counts = Counts()
        for sample in read_shard(self.store, self.source_uri, self.source.shards[writer.index]):
            stop.raise_if_requested()
            if sample.origin.split == "test":
                counts.test_rows += 1
                continue
            examples, refused = self.examples(sample)
            if not examples:
                writer.reject(refused[0])
                continue
            for example in examples:
                check_mask(example, self.encoder.processor)
                counts.add(example, sample, sum(t == self.encoder.processor.image_token_id for t in example.ids))
            for rejection in refused:
                counts.lose(rejection)
            writer.keep(*examples)
        return counts.metadata()

    def examples(self, sample: Sample) -> tuple[list[Example], list[Rejection]]:
        """All that one row gives; refused is a whole row, or some of its reasonings."""
        if not sample.reasoning:
            detail = "no reasoning to learn from; distill writes one for rows that have none"
            return [], [Rejection(id=sample.id, stage=STAGE, reason=Reason.NO_REASONING, detail=detail)]
        image: DecodedImage | None = None
        data: bytes | None = None
        if self.encoder.contract.mode == "multimodal" and sample.image is not None:
            try:
                image, data = self._image(sample.image)
            except ImageError as error:
                reason = IMAGE_REASONS[error.reason]
                return [], [Rejection(id=sample.id, stage=STAGE, reason=reason, detail=str(error))]
        made = [self.encoder.example(sample, i, image, data) for i in range(len(sample.reasoning))]
        kept = [one for one in made if isinstance(one, Example)]
        return kept, [one for one in made if isinstance(one, Rejection)]

    def _image(self, image: Image) -> tuple[DecodedImage, bytes]:
        """The image and its bytes. Raises ImageError."""
        uri = image.kept.uri
        if uri not in self._images:
            data = kept_bytes(self.store, image)
            self._images[uri] = images.decode(data, uri), data
            while len(self._images) > IMAGES_IN_MEMORY:
                self._images.popitem(last=False)
        return self._images[uri]

    def report(
        self, shards: tuple[ShardMarker[TokenizeShardMetadata], ...], row_counts: RowCounts
    ) -> tuple[dict[str, Any], str]:
        """Sums of all shards, and the audit page with some examples read back from storage."""
        counts = Counts.sum(shard.metadata for shard in shards)
        found = numbers(counts, row_counts, self.encoder.contract)
        return found, report_page(found, self._views(shards))

    def _views(self, shards: Sequence[ShardMarker[TokenizeShardMetadata]]) -> list[View]:
        """A few examples: shrunk ones, some by text alone, then of both splits, from as many shards as it takes."""
        views: dict[str, list[View]] = {"shrunk": [], "by-text": [], "train": [], "validation": []}
        for shard in shards:
            wanted = [s for s in shard.metadata.shown if len(views[s.kind]) < EACH_KIND]
            if wanted:
                for kind, one in self._read(shard, wanted):
                    if len(views[kind]) < EACH_KIND:
                        views[kind].append(one)
            if all(len(some) >= EACH_KIND for some in views.values()):
                break
        return [one for some in views.values() for one in some]

    def _read(self, shard: ShardMarker, wanted: Sequence[ShownRow]) -> list[tuple[str, View]]:
        with tempfile.TemporaryDirectory(prefix="audit-") as scratch:
            examples = Examples([fetch_file(self.store, self.own_uri, f, Path(scratch)) for f in shard.files])
            found: list[tuple[str, View]] = []
            for shown in wanted:
                example = examples[shown.row]
                check_mask(example, self.encoder.processor)
                one = view(example, shown.size, self.encoder.contract, self.encoder.processor, kept=shown.kept)
                found.append((shown.kind, one))
            return found
