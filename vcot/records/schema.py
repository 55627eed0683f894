"""The formats on disk as a page: ``python -m vcot.records.schema > docs/formats.md`` (a test holds them equal)."""

from __future__ import annotations

import json
import sys

from vcot.records.base import Record
from vcot.records.conversion import Conversion
from vcot.records.distillation import Distillation
from vcot.records.promotion import Promotion
from vcot.records.reply import Completion
from vcot.records.sample import Rejection, Sample
from vcot.records.score import Score
from vcot.records.shards import ShardMark, StageMark

LAYOUT = """\
# Formats

What the stages write, as JSON Schema made from the code (`make formats`). Every record has a `version`; a reader
refuses one that it does not know.

## A run in storage

```
<run prefix>/<stage>/settings.json             resolved settings, code version, digests of the inputs
                     shards/00000-3f9a….…      one file per shard, its digest in the name
                     rejections/00000-….jsonl  what was refused, and why
                     _done/00000.json          names the shard's files, their sha256, the tally; written last, once
                     report.json               the sums; report.html, the page
                     _done/stage.json          the stage is whole; the next one starts from here
```

| stage | shards hold | beside them |
|---|---|---|
| convert, distill | Samples, `.jsonl.gz`, one line of JSON each, no time stamp in the gzip header | convert: \
`report.html`, what went in and what was refused; distill: `report.html`, what the teacher wrote and how much of it \
was believed; both: `report/`, what the shards put aside for that page |
| tokenize | examples, `.parquet`, as below | `report.html`, the audit page |
| train | – | `checkpoints/`, `model/` (the adapter and what a server must know), `losses.json`, `losses.png` |
| evaluate | replies of both models with their Scores, `.jsonl.gz` | `report.html`, `overlay.png` |

Beside the runs:

```
<runs>/_cache/…                              what teachers and bases have said, to ask nothing twice
<runs>/pointers/latest/0000000001.json       promoted models, one after the other; written once, never moved
<run prefix>/20261121T0317Z/latest.json      the promoted model evaluated again: which one this occasion found
                            <digest>/evaluate/…   and the stage as above
```

An evaluation that was held against another (`--baseline-uri`, and every one of a promoted model) has
`comparison.json` and `comparison.md` beside its report.

Where the images of `convert` are in a tar file, whole or in chunks, that nobody unpacks (each part of a mix has its own
`archive.<part>.json`):

```
<run prefix>/convert/archive.json              the index that this run goes by: its sha256, the chunks' sizes and ETags
                     archive/<state>/index.json, members-….sqlite   the index (elsewhere with --archive-index-uri)
                                     spans/….json.gz                what a killed process had found of it
```

A picture inside it has a URI like any other, and the Store reads it with nothing but that URI: `bytes+`, the object,
`#start+length`, for what goes on in an object beside it `&name#start+length`, and after a last `#` what it is called.

```
bytes+s3://bucket/cot_images_03#1048576+20480#cot_image_data/gqa/1.jpg
bytes+s3://bucket/cot_images_03#10737418000+240&cot_images_04#0+999#cot_image_data/gqa/2.jpg
```

**Boxes** are `[x1, y1, x2, y2]` in float pixels of the upright original, always; only text that a model reads or
writes uses another frame, and which one stands in the tokenize stage's mark and beside every model (`contract`).

**Evidence** `null` means that nobody annotated it; `[]` means that the object is absent.

**Examples** (Parquet) have the columns `id`, `sample`, `alternative`, `split`, `ids` (token ids), `labels` (the same
length, −100 where nothing is learned), `image` (`{bytes, path}`, the Image feature of `datasets`, or null) and
`image_grid` (time, height, width in patches). `datasets.load_dataset("parquet", data_files=…)` opens them as they are.
"""

RECORDS: tuple[tuple[type[Record], str], ...] = (
    (Sample, "a line of `shards/*.jsonl.gz` of convert and distill"),
    (Rejection, "a line of `rejections/*.jsonl` of any stage"),
    (Completion, "what a teacher or a model said: the reply caches, the shards of evaluate"),
    (Score, "one reply held against its Sample"),
    (ShardMark, "`_done/00000.json`"),
    (StageMark, "`_done/stage.json`"),
    (Conversion, "`report.json` of convert; its page shows the same numbers"),
    (Distillation, "`report.json` of distill; its page shows the same numbers"),
    (Promotion, "`pointers/<name>/0000000001.json`, …: the newest promoted model is the one with the highest number"),
)


def document() -> str:
    """The page as Markdown."""
    parts = [LAYOUT]
    for record, what in RECORDS:
        schema = json.dumps(record.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False)
        parts.append(f"## {record.__name__}\n\n{what[0].upper()}{what[1:]}.\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document())
