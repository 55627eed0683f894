"""One file per dataset: a row in, a Sample or a Rejection out.

A new source is one file with one function (a row and the desk in, a Sample out; `Refused` where it says no), one line
in SOURCES, and one test with three rows. Where its input is neither rows of JSON nor Parquet, a second function makes
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from vcot.sources import aokvqa, coco, drawn, llava_cot, refcoco, samples, scienceqa, talks, viscot
from vcot.sources.desk import Desk, Options
from vcot.sources.reading import Source, read, rows_of_shard

__all__ = ["SOURCES", "Desk", "Options", "Source", "read", "rows_of_shard"]

SOURCES: Mapping[str, Source] = {
    "viscot": Source(
        viscot.sample,
        ("chat", "metadata"),
        licence=viscot.LICENCE,
        splits=viscot.SPLITS,
        glance=viscot.glance,
        whole=viscot.whole,
        in_archive=viscot.IN_ARCHIVE,
    ),
    "coco": Source(coco.sample, rows=coco.rows, ready=coco.ready, asks=coco.asks),
    "scienceqa": Source(
        scienceqa.sample, ("lectures",), columns=scienceqa.COLUMNS, licence=scienceqa.LICENCE, dataset="scienceqa"
    ),
    "aokvqa": Source(aokvqa.sample, ("rationales",), columns=aokvqa.COLUMNS, licence=aokvqa.LICENCE, dataset="aokvqa"),
    "llava-cot": Source(
        llava_cot.sample,
        ("talk",),
        columns=llava_cot.COLUMNS,
        expand=talks.rounds,
        licence=llava_cot.LICENCE,
        dataset="llava-cot",
    ),
    "refcoco": Source(
        refcoco.sample,
        ("expressions",),
        licence=refcoco.LICENCE,
        splits=refcoco.SPLITS,
        dataset="refcoco",
        asks=refcoco.asks,
    ),
    "samples": Source(samples.sample, ("sample", "messages", "talk"), expand=talks.rounds, names_rows=True, dataset=""),
    "scenes": Source(drawn.sample, rows=drawn.rows, licence=drawn.LICENCE, dataset="scenes"),
}
