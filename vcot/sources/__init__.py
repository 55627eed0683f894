"""One file per dataset: a row in, a Sample or a Rejection out.

A new source is one file with one function (a row and the desk in, a Sample out; `Refused` where it says no), one line
in SOURCES, and one test with three rows. Where its input is not rows of JSON, a second function makes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from vcot.sources import coco, drawn, samples, viscot
from vcot.sources.desk import Desk, Options
from vcot.sources.reading import Source, read, rows_of_shard

__all__ = ["SOURCES", "Desk", "Options", "Source", "read", "rows_of_shard"]

SOURCES: Mapping[str, Source] = {
    "viscot": Source(viscot.sample, ("chat", "metadata"), licence=viscot.LICENCE, splits=viscot.SPLITS),
    "coco": Source(coco.sample, rows=coco.rows),
    "samples": Source(samples.sample, ("sample", "messages"), names_rows=True),
    "scenes": Source(drawn.sample, rows=drawn.rows, licence=drawn.LICENCE),
}
