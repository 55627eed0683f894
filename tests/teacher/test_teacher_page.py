"""The page of distill: every number is the report's, pictures are chosen by hash, and nothing on it can do harm."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.teacher.made import CENTRE, RIGHT, TOP_LEFT, see, stored
from vcot.errors import InputError
from vcot.grounding import Trace
from vcot.records import Folder, Reason, Rejection, Sample, Tally
from vcot.records.distillation import Distillation
from vcot.records.page import PREDICTED, TRUE
from vcot.records.sample import IMAGE_REASONS
from vcot.records.shards import File, ShardMark, ShardWriter
from vcot.storage import Store
from vcot.teacher.funnel import reached
from vcot.teacher.report.gallery import Gallery, drawn_boxes, told
from vcot.teacher.report.specimens import SHOWN, Specimens, chosen
from vcot.teacher.report.whole import whole
from vcot.teacher.report.words import MEANING
from vcot.teacher.row import DistilledReasoning, Outcome, refuse
from vcot.teacher.runner import write

HOSTILE = '<script>alert("x")</script><img src=http://e.example/x onerror=alert(1)>'
MODEL = {"teacher": "gpt", "way": "answer-aware", "prompts": {"reason": 1, "look": 2}}
POINTS = DistilledReasoning((Trace(("I see the ", see("red disc", TOP_LEFT), " and the ", see("lever", RIGHT), ".")),))
NONE = File(name="x", sha256="0" * 64, size=0)


def refused(row: Sample, reason: Reason, **more: Any) -> Rejection:
    return refuse(row, reason, "why it fell").model_copy(update={"said": ("what was said",)} | more)


def finished(folder: Path, *shards: list[tuple[Sample, Outcome]], facts: Any = None, **told: Any) -> tuple[Any, str]:
    """report.json and the page of what a teacher made of these rows."""
    stage = Folder(Store(), str(folder / "run"), "distill")
    marks = []
    for index, rows in enumerate(shards):
        (scratch := folder / f"scratch-{index}").mkdir()
        writer, held = ShardWriter(index, "distill", scratch, _Nowhere), Specimens()
        counted = write(rows, "gpt", writer, held) | {"trust": {}, "spent": {}} | (facts or {})
        held.put_aside(stage, index)
        marks.append(ShardMark(shard=index, files=(), rejections=NONE, tally=writer.tally, facts=counted))
    return whole(stage, marks, sum((mark.tally for mark in marks), Tally()), told or MODEL)


class _Nowhere:
    suffix = ""

    def __init__(self, path: Path) -> None: ...
    def write(self, record: Any) -> None: ...
    def close(self) -> None: ...


class Seen(HTMLParser):
    """Tags, attributes and text, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[Pillow.Image]:
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [Pillow.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in sources]


def rows(folder: Path, number: int, source: str = "made", begin: int = 0, **given: Any) -> list[Sample]:
    found = [stored(folder / "images", f"row-{n}", **given) for n in range(begin, begin + number)]
    return [row.model_copy(update={"origin": row.origin.model_copy(update={"dataset": source})}) for row in found]


# ------------------------------------------------------------------------------------------------------ numbers


def test_the_funnel_of_each_source_and_of_all(tmp_path: Path) -> None:
    a, b = rows(tmp_path, 6, "vsr"), rows(tmp_path, 2, "gqa", begin=6)
    fallen = [Reason.TEACHER_EMPTY, Reason.TEACHER_BOX_UNSURE, Reason.TEACHER_WRONG_ANSWER, Reason.IMAGE_MISSING]
    first = [(row, refused(row, reason)) for row, reason in zip(a, fallen, strict=False)]
    written = a[5].model_copy(update={"reasoning": POINTS.traces})
    found, page = finished(tmp_path, [*first, (a[4], POINTS), (written, None)], [(b[0], POINTS), (b[1], POINTS)])
    assert found["funnel"]["vsr"] == {
        "rows": 6, "passed": 1, "asked": 4, "parsed": 3, "boxes_accepted": 2, "answer_agreed": 1, "kept": 1,
    }  # fmt: skip
    assert found["refused"]["vsr"] == {reason.value: 1 for reason in fallen}
    assert found["rows"] == {"taught": 3, "traces": 3, "had_reasoning": 1, "test_passed": 0}
    seen = Seen(page)
    assert "vsr 6 1 4 3 (75 %) 2 (50 %) 1 (25 %) 1 (25 %)" in seen.text
    assert "50 % kept: 3 of 6 rows that needed reasoning" in seen.text
    assert "1 were refused before anybody was asked" in seen.text
    for reason in fallen:
        assert f"{reason.value} 1 row: {MEANING[reason][1]}." in seen.text


def test_each_reason_stands_at_the_gate_where_the_funnel_counts_it() -> None:
    gates = list(dict.fromkeys(gate for gate, _ in MEANING.values()))
    assert {reason: gates.index(gate) for reason, (gate, _) in MEANING.items()} == {
        reason: reached(reason) for reason in MEANING
    }


def test_every_reason_that_distill_may_give_has_its_words() -> None:
    room = Path(__file__).parents[2] / "vcot" / "teacher"
    written = "".join(path.read_text() for path in room.rglob("*.py") if path.parent.name != "report")
    given = {Reason[name] for name in re.findall(r"Reason\.([A-Z_]+)", written)} | set(IMAGE_REASONS.values())
    assert given <= MEANING.keys()


@pytest.mark.parametrize(
    ("decoys", "accepted", "says"),
    [
        (40, 2, "2 of 40 decoys (5.0 %): it tells what is there from what is not"),
        (40, 12, "12 of 40 decoys (30 %): proposed boxes that passed it may be wrong"),
        (19, 0, "Only 19 of 50 looks were tested with a decoy, too few"),
        (0, 0, "None of 50 looks was tested"),
    ],
)
def test_the_decoy_rate_is_told_with_what_it_means(tmp_path: Path, decoys: int, accepted: int, says: str) -> None:
    trust = {"looks": 50, "looks_refused": 5, "decoys": decoys, "decoys_accepted": accepted}
    found, page = finished(tmp_path, [(row, POINTS) for row in rows(tmp_path, 1)], facts={"trust": trust})
    assert found["trust"] | trust == found["trust"]
    assert says in Seen(page).text


def test_what_it_cost_and_what_has_no_price(tmp_path: Path) -> None:
    one = [(row, POINTS) for row in rows(tmp_path, 4)]
    line = {"requests": 6, "kept_replies_used": 2, "tokens_in": 9000, "tokens_out": 700, "tokens_paid": 9700}
    line |= {"tokens_cached": 80, "tries_again": 3, "unpriced": 0, "usd": 0.5, "usd_paid": 0.4, "usd_lost": 0.1}
    found, page = finished(tmp_path, one, facts={"bill": {"made": {"reason": line}}})
    assert found["costs"]["made"]["usd_a_row_kept"] == 0.15
    text = Seen(page).text
    assert "made 6 (+ 3 tried again) 2 9,000 (80 cached) 700 $0.6000 $0.5000 $0.1500" in text
    assert "reason 8 9,700 $0.6000" in text
    (again := tmp_path / "again").mkdir()
    _, page = finished(again, one, facts={"bill": {"made": {"reason": line | {"unpriced": 3}}}})
    assert "The price of 3 replies is unknown" in Seen(page).text
    assert "$" not in Seen(page).text


# ------------------------------------------------------------------------------------------------------ pictures


def test_what_people_drew_and_what_was_proposed_have_two_colours(tmp_path: Path) -> None:
    held = Specimens()
    (row,) = rows(tmp_path, 1)
    new = row.model_copy(update={"id": "row-0#1", "evidence": (see("lever", RIGHT),), "reasoning": POINTS.traces})
    held.kept(row, [row.model_copy(update={"reasoning": POINTS.traces}), new])
    folder = Folder(Store(), str(tmp_path / "run"), "distill")
    held.put_aside(folder, 0)
    one, other = chosen(folder, [ShardMark(shard=0, files=(), rejections=NONE, tally=Tally())])["kept"]["made"]
    assert drawn_boxes(one) == {TRUE: [(TOP_LEFT, "red disc")], PREDICTED: [(RIGHT, "lever")]}
    assert drawn_boxes(other) == drawn_boxes(one)  # the evidence of a new question is the teacher's
    assert one.reasoning is not None
    words = '<span class="true">red disc</span> and the <span class="proposed">lever</span>'
    assert words in told(one.reasoning, one)
    (card,) = Gallery(Store()).cards([one])
    pixels = Seen(f'<img src="{card.picture}">').pictures[0].convert("RGB")
    scale = pixels.width / 320
    for box, colour in ((TOP_LEFT, TRUE), (RIGHT, PREDICTED)):
        edge = pixels.getpixel((round(box.x1 * scale) + 1, round((box.y1 + box.y2) / 2 * scale)))
        wanted = tuple(bytes.fromhex(colour[1:]))
        assert sum(abs(a - b) for a, b in zip(edge, wanted, strict=True)) < 120, (edge, wanted)  # type: ignore[arg-type]


def test_rows_are_chosen_by_hash_whatever_the_shards(tmp_path: Path) -> None:
    many = rows(tmp_path, 40)
    outcomes: list[tuple[Sample, Outcome]] = [
        (row, refused(row, Reason.TEACHER_EMPTY) if n % 2 else POINTS) for n, row in enumerate(many)
    ]

    def shown(name: str, *shards: list[tuple[Sample, Outcome]]) -> dict[str, list[str]]:
        (tmp_path / name).mkdir()
        finished(tmp_path / name, *shards)
        folder = Folder(Store(), str(tmp_path / name / "run"), "distill")
        marks = [ShardMark(shard=n, files=(), rejections=NONE, tally=Tally()) for n in range(len(shards))]
        return {
            kind: [one.id for some in groups.values() for one in some] for kind, groups in chosen(folder, marks).items()
        }

    whole_shard = shown("one", outcomes)
    assert whole_shard == shown("three", outcomes[:5], outcomes[5:30], outcomes[30:]) == shown("back", outcomes[::-1])
    assert {kind: len(found) for kind, found in whole_shard.items()} == SHOWN | {"part": 0}
    assert whole_shard["kept"] != [row.id for row in many[::2]][: SHOWN["kept"]]


def test_a_part_of_a_row_is_shown_once_beside_the_row(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, 1)
    part = refused(row, Reason.TEACHER_BOX_NOT_SEEN, part="object 2")
    lesson = DistilledReasoning(POINTS.traces, parts=(part, part), flags=("answer-first",))
    found, page = finished(tmp_path, [(row, lesson)])
    assert found["parts"] == {"made": {"teacher-box-not-seen": 2}}
    assert found["flags"] == {"made": {"answer-first": 1}}
    text = Seen(page).text
    assert "teacher-box-not-seen 2 parts:" in text
    assert text.count("object 2:") == 1
    assert "answer-first 1 kept row: the first sentence states the answer." in text
    assert "100 % of the kept rows state the answer in their first sentence" in text


def test_a_picture_that_is_gone_leaves_its_row(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, 1)
    Path(row.image.uri).unlink()
    _, page = finished(tmp_path, [(row, POINTS)])
    assert not Seen(page).pictures
    assert "Where is the red disc?" in Seen(page).text


def test_pictures_have_so_much_room_and_no_more(tmp_path: Path) -> None:
    held = [row.model_copy(update={"reasoning": POINTS.traces}) for row in rows(tmp_path, 6)]
    aside = Specimens()
    for row in held:
        aside.kept(row, [row])
    folder = Folder(Store(), str(tmp_path / "run"), "distill")
    aside.put_aside(folder, 0)
    some = chosen(folder, [ShardMark(shard=0, files=(), rejections=NONE, tally=Tally())])["kept"]["made"]
    size = len(Gallery(Store()).cards(some)[0].picture or "")
    cards = Gallery(Store(), room=3 * size + size // 2).cards(some)
    assert [card.picture is None for card in cards] == [False] * 3 + [True] * 3
    assert cards[-1].note == "no room for more pictures on this page"


# -------------------------------------------------------------------------------------------------- hard cases


def test_nothing_on_the_page_runs_or_is_fetched(tmp_path: Path) -> None:
    row = stored(tmp_path / "images", "row").model_copy(
        update={"id": HOSTILE, "question": HOSTILE, "answers": (HOSTILE,), "choices": (HOSTILE, "b")}
    )
    row = row.model_copy(update={"origin": row.origin.model_copy(update={"dataset": HOSTILE})})
    bad = refused(row, Reason.TEACHER_EMPTY, said=(HOSTILE, "x" * 9000), detail=HOSTILE)
    other = row.model_copy(update={"id": "b" + HOSTILE})
    lesson = DistilledReasoning((Trace((HOSTILE, see(HOSTILE, TOP_LEFT, CENTRE))),), flags=(HOSTILE,))
    _, page = finished(tmp_path, [(row, bad), (other, lesson)], **(MODEL | {"teacher": HOSTILE}))
    seen = Seen(page)
    assert not {"script", "iframe", "link", "object", "form"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert all(
        value.startswith(("data:image/jpeg;base64,", "#")) for n, value in seen.attributes if n in ("src", "href")
    )
    assert "url(" not in page
    assert len(seen.pictures) == 2
    assert "(9,000 characters)" in seen.text


def test_a_template_asks_nobody_and_the_page_says_so(tmp_path: Path) -> None:
    found, page = finished(tmp_path, [(row, POINTS) for row in rows(tmp_path, 2)], teacher="template/1")
    text = Seen(page).text
    assert found["way"] is None
    assert "A template wrote it from boxes that people drew" in text
    assert "decoy" not in text
    assert "Cost" not in text
    assert "No row was refused." in text


@pytest.mark.parametrize("told", [MODEL, {"teacher": "template/1"}], ids=["model", "template"])
def test_nothing_asked_and_nothing_kept(tmp_path: Path, told: dict[str, Any]) -> None:
    one, two = rows(tmp_path, 2)
    found, page = finished(tmp_path, [(one, None)], **told)
    assert "No row was asked about" in Seen(page).text
    assert "No row got reasoning." in Seen(page).text
    assert Distillation.model_validate(found).model_dump(mode="json") == found
    (again := tmp_path / "again").mkdir()
    _, page = finished(again, [(two, refused(two, Reason.NO_REASONING))], **told)
    assert "No row got reasoning." in Seen(page).text
    assert "no-reasoning" in Seen(page).text


def test_very_many_sources_share_the_last_line_and_the_page_stays_small(tmp_path: Path) -> None:
    made = [(row, POINTS) for n in range(60) for row in rows(tmp_path, 1, f"source-{n:02d}", begin=n)]
    _, page = finished(tmp_path, made)
    assert "20 others 20 0 20" in Seen(page).text
    assert len(page) < 5_000_000


def test_a_shard_that_put_nothing_aside_is_named(tmp_path: Path) -> None:
    folder = Folder(Store(), str(tmp_path / "run"), "distill")
    with pytest.raises(InputError, match=r"report/00003\.json is missing; delete .*distill and run the stage again"):
        chosen(folder, [ShardMark(shard=3, files=(), rejections=NONE, tally=Tally())])


def test_the_page_of_reasons_says_what_this_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "distill.md").read_text()
    for reason, (gate, meaning) in MEANING.items():
        assert re.search(rf"^\| (?:{gate}|) \| `{reason.value}` \| {re.escape(meaning)} \|$", page, re.M), reason


def test_texts_are_shortened_and_say_so(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, 1, question="why " * 2000)
    held = Specimens()
    held.refused(row, refused(row, Reason.TEACHER_EMPTY, said=tuple(map(str, range(20)))))
    folder = Folder(Store(), str(tmp_path / "run"), "distill")
    held.put_aside(folder, 0)
    (one,) = chosen(folder, [ShardMark(shard=0, files=(), rejections=NONE, tally=Tally())])["refused"]["teacher-empty"]
    assert one.question.endswith("… (8,000 characters)")
    assert one.said == tuple(map(str, range(14, 20)))
