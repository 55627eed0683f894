"""The report of distill: every number is the shards', and nothing on its page can do harm."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import CENTRE, RIGHT, TOP_LEFT, see, stored
from tests.fakes.faults import missing, replaced
from tests.fakes.markers import shard_marker
from tests.s3 import FaultyPlace
from vcot.distill import DistilledReasoning, Outcome, refuse
from vcot.distill.runner import write
from vcot.errors import InputError
from vcot.grounding import Trace
from vcot.records import Folder, Reason, Rejection, RowCounts, Sample
from vcot.records.metadata import DistillMetadata
from vcot.records.reports import Distillation
from vcot.records.sample import IMAGE_REASONS
from vcot.records.shards import DISTILL, JsonLines, ShardWriter
from vcot.reports.distillation import GATES, MEANING, SHOWN, report
from vcot.reports.examples import sampled
from vcot.storage import Store

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script><img src=http://e.example/x onerror=alert(1)>'
MODEL = {"teacher": "gpt", "strategy": "answer-aware", "prompts": {"reason": 1, "look": 2}}
POINTS = DistilledReasoning((Trace(("I see the ", see("red disc", TOP_LEFT), " and the ", see("lever", RIGHT), ".")),))


def refused(row: Sample, reason: Reason, **more: Any) -> Rejection:
    return refuse(row, reason, "why it fell").model_copy(update={"said": ("what was said",)} | more)


def finished(folder: Path, *shards: list[tuple[Sample, Outcome]], facts: Any = None, **told: Any) -> tuple[Any, str]:
    """report.json and the text of the page of what a teacher made of these rows."""
    folder.mkdir(exist_ok=True)
    stage = Folder(Store(), str(folder / "run"), DISTILL)
    markers = []
    for index, rows in enumerate(shards):
        (scratch := folder / f"scratch-{index}").mkdir()
        writer = ShardWriter(index, "distill", scratch, JsonLines)
        funnel = write(rows, "gpt", writer)
        funnel.put_aside(stage, index)
        counted = funnel.counts() | (facts or {})
        markers.append(shard_marker("distill", index, writer.row_counts, **counted))
    metadata = DistillMetadata(**(told or MODEL))
    return report(stage, markers, sum((marker.row_counts for marker in markers), RowCounts()), metadata)


def text_of(page: str) -> str:
    """As somebody reads it."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])))


def rows(folder: Path, number: int, dataset: str = "made", begin: int = 0, **given: Any) -> list[Sample]:
    found = [stored(folder / "images", f"row-{n}", **given) for n in range(begin, begin + number)]
    return [row.model_copy(update={"origin": row.origin.model_copy(update={"dataset": dataset})}) for row in found]


def test_the_funnel_of_each_dataset_and_of_all(tmp_path: Path) -> None:
    a, b = rows(tmp_path, 6, "vsr"), rows(tmp_path, 2, "gqa", begin=6)
    fallen = [Reason.TEACHER_EMPTY, Reason.TEACHER_BOX_UNSURE, Reason.TEACHER_WRONG_ANSWER, Reason.IMAGE_MISSING]
    first = [(row, refused(row, reason)) for row, reason in zip(a, fallen, strict=False)]
    written = a[5].model_copy(update={"reasoning": POINTS.traces})
    found, page = finished(tmp_path, [*first, (a[4], POINTS), (written, None)], [(b[0], POINTS), (b[1], POINTS)])
    assert found["funnel"]["vsr"] == {
        "rows": 6, "passed": 1, "asked": 4, "parsed": 3, "boxes_accepted": 2, "answer_agreed": 1, "kept": 1,
    }  # fmt: skip
    assert found["refused"] == {"vsr": {reason.value: 1 for reason in fallen}}
    assert found["rows"] == {"taught": 3, "traces": 3, "had_reasoning": 1, "without": 0, "test_passed": 0}
    assert Distillation.model_validate(found).model_dump(mode="json") == found
    text = text_of(page)
    assert "vsr 6 1 4 3 (75 %) 2 (50 %) 1 (25 %) 1 (25 %)" in text
    assert "50 % kept: 3 of 6 rows that needed reasoning" in text
    for reason in fallen:
        assert f"{reason.value} 1 row: {MEANING[reason][1]}." in text


def test_every_reason_that_distill_may_give_has_its_words_on_the_page_and_in_the_docs() -> None:
    written = "".join(path.read_text() for path in (ROOT / "vcot/distill").rglob("*.py"))
    given = {Reason[name] for name in re.findall(r"Reason\.([A-Z_]+)", written)} | set(IMAGE_REASONS.values())
    assert given <= MEANING.keys()
    assert {gate for gate, _ in MEANING.values()} == set(GATES)
    docs = (ROOT / "docs/distill.md").read_text()
    for reason, (gate, meaning) in MEANING.items():
        assert re.search(rf"^\| (?:{gate}|) \| `{reason.value}` \| {re.escape(meaning)} \|$", docs, re.M), reason


@pytest.mark.parametrize(
    ("decoys", "accepted", "says"),
    [
        (40, 2, "2 of 40 negative crops (5.0 %): it tells what is there from what is not"),
        (40, 12, "12 of 40 negative crops (30 %): proposed boxes that passed it may be wrong"),
        (19, 0, "Only 19 of 50 crop checks were tested with a negative crop, too few"),
        (0, 0, "None of 50 crop checks was tested"),
    ],
)
def test_what_negative_crops_say_is_told(tmp_path: Path, decoys: int, accepted: int, says: str) -> None:
    trust = {"looks": 50, "looks_refused": 5, "decoys": decoys, "decoys_accepted": accepted}
    found, page = finished(tmp_path, [(row, POINTS) for row in rows(tmp_path, 1)], facts={"trust": trust})
    assert found["trust"] | trust == found["trust"]
    assert says in text_of(page)


def test_what_it_cost_and_what_has_no_price(tmp_path: Path) -> None:
    one = [(row, POINTS) for row in rows(tmp_path, 4)]
    line = {"requests": 6, "kept_replies_used": 2, "tokens_in": 9000, "tokens_out": 700, "tokens_paid": 9700}
    line |= {"tokens_cached": 80, "tries_again": 3, "unpriced": 0, "usd": 0.5, "usd_paid": 0.4, "usd_lost": 0.1}
    found, page = finished(tmp_path, one, facts={"bill": {"made": {"reason": line}}})
    assert found["costs"]["made"] == line | {"rows_kept": 4, "usd_a_row_kept": 0.15}
    text = text_of(page)
    assert "made 6 (+ 3 tried again) 2 9,000 (80 cached) 700 $0.6000 $0.5000 $0.1500" in text
    assert "reason 8 9,700 $0.6000" in text
    _, page = finished(tmp_path / "again", one, facts={"bill": {"made": {"reason": line | {"unpriced": 3}}}})
    assert "The price of 3 replies is unknown" in text_of(page)
    assert "$" not in text_of(page)


def test_boxes_of_the_teacher_are_told_from_those_that_people_drew(tmp_path: Path) -> None:
    """The evidence of a new question is the teacher's, too."""
    (row,) = rows(tmp_path, 1)
    new = row.model_copy(update={"id": "row-0#1", "evidence": (see("lever", RIGHT),), "reasoning": POINTS.traces})
    finished(tmp_path, [(row, DistilledReasoning(POINTS.traces, pairs=(new,)))])
    folder = Folder(Store(), str(tmp_path / "run"), DISTILL)
    shown = sampled(folder, [shard_marker("distill")], SHOWN)
    for one in shown.by_dataset()["made"]["kept"]:
        assert [(box.label, box.proposed) for box in one.boxes] == [("red disc", False), ("lever", True)]


def test_nothing_on_the_page_runs_or_is_fetched(tmp_path: Path) -> None:
    row = stored(tmp_path / "images", "row").model_copy(
        update={"id": HOSTILE, "question": HOSTILE, "answers": (HOSTILE,), "choices": (HOSTILE, "b")}
    )
    row = row.model_copy(update={"origin": row.origin.model_copy(update={"dataset": HOSTILE})})
    bad = refused(row, Reason.TEACHER_EMPTY, said=(HOSTILE, "x" * 9000), detail=HOSTILE)
    lesson = DistilledReasoning((Trace((HOSTILE, see(HOSTILE, TOP_LEFT, CENTRE))),), flags=(HOSTILE,))
    other = row.model_copy(update={"id": "b" + HOSTILE})
    _, page = finished(tmp_path, [(row, bad), (other, lesson)], **(MODEL | {"teacher": HOSTILE}))
    assert "url(" not in page
    assert not re.search(r"<(script|iframe|link|object|form)|<[^>]* on\w+=", re.sub(r'"[^"]*"', '""', page))
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert sum(value.startswith("data:") for value in addresses) >= 2
    assert "(9,000 characters)" in text_of(page)


@pytest.mark.parametrize("data", [b"{", b"[]]", b'[{"id": 1}]', b"null", b"\xff"])
def test_damaged_examples_of_a_shard_are_an_input_error(tmp_path: Path, data: bytes) -> None:
    folder = Folder(Store(), str(tmp_path), DISTILL)
    place = tmp_path / "distill" / "report" / "00003.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    with pytest.raises(InputError, match=rf"{place} is damaged .*; delete .*/distill and run the stage again"):
        sampled(folder, [shard_marker("distill", 3)], SHOWN)


def test_examples_of_a_shard_survive_one_bad_read(faulty_place: FaultyPlace) -> None:
    folder = Folder(Store(), faulty_place.uri, DISTILL)
    folder.store.write(f"{folder.uri}/report/00003.json", b"[]")
    for fault in (replaced("00003.json", b"{"), missing("00003.json")):
        faulty_place.proxy.add(fault)
        sampled(folder, [shard_marker("distill", 3)], SHOWN)
        assert fault.times == 0
