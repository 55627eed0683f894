"""From what the shards counted and put aside to `report.json` and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot.records import Folder, Tally
from vcot.records.distillation import Distillation
from vcot.records.shards import ShardMark
from vcot.teacher.costs import cost_by_source
from vcot.teacher.funnel import summed
from vcot.teacher.report.gallery import Gallery
from vcot.teacher.report.page import as_page
from vcot.teacher.report.specimens import chosen


def whole(
    folder: Folder, marks: Sequence[ShardMark], tally: Tally, told: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """What report.json holds, and the page.

    Args:
        told: who the teacher was, and how it was asked.

    Raises:
        InputError: a shard put nothing aside.
    """
    facts = summed(mark.facts for mark in marks)
    kept = {source: rows["kept"] for source, rows in facts["funnel"].items()}
    facts["costs"] = cost_by_source(facts.get("bill", {}), kept)
    found = Distillation(tally=tally, shards=len(marks), **told, **facts)
    return found.model_dump(mode="json"), as_page(found, chosen(folder, marks), Gallery(folder.store))
