"""The first requests of a run show whether the teacher writes boxes in the declared frame; nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import sample, see
from tests.fakes.distilling import convert, distill, report
from tests.fakes.teacher import Asked, scripted_teacher
from tests.fakes.wise import Known, Wise, draw_png
from vcot.errors import BudgetSpent, SettingsError
from vcot.records import Sample

pytestmark = pytest.mark.usefixtures("quick_teacher")

PROPOSE = {"propose": True, "image_side": 256, "reply_tokens": 64}
Respell = Callable[[list[int], tuple[int, int]], list[float]]


def discs(folder: Path, count: int = 8) -> list[Sample]:
    """Rows about a disc whose place people annotated, each in an image of its own, none of them square."""
    rows = []
    for n in range(count):
        size = (320, 240) if n % 2 else (400, 160)
        box = (20 + 11 * n, 10 + 3 * n, 120 + 13 * n, 60 + 7 * n)
        data = draw_png(("red disc", box), size=size)
        path = folder / f"disc-{n}.png"
        path.write_bytes(data)
        given: dict[str, Any] = {"uri": str(path), "data": data, "width": size[0], "height": size[1]}
        rows.append(sample(f"Where is disc {n}?", "here", name=f"row-{n}", evidence=(see("red disc", box),), **given))
    return rows


def converted(folder: Path, count: int = 8) -> Path:
    where, rows = folder / "runs" / "one", discs(folder, count)
    convert(str(where), rows[::2], rows[1::2])
    return where


def teacher(respell: Respell | None = None) -> Wise:
    """Finds discs, and writes their boxes in its own way; without one, in thousandths."""

    def spoil(asked: Asked, said: Any) -> Any:
        for item in said["objects"]:
            item["boxes"] = [respell(box, asked.images[0].size) if respell else box for box in item["boxes"]]
        return said

    known = {f"Where is disc {n}?": Known("here", needs="red disc") for n in range(40)}
    return Wise(known, {"locate": spoil})


def transposed(box: list[int], size: tuple[int, int]) -> list[float]:
    return [box[1], box[0], box[3], box[2]]


def sent_pixels(box: list[int], size: tuple[int, int]) -> list[float]:
    return [number * side / 1000 for number, side in zip(box, size * 2, strict=True)]


def fractions(box: list[int], size: tuple[int, int]) -> list[float]:
    return [number / 1000 for number in box]


@pytest.mark.parametrize(
    ("respell", "given", "says"),
    [
        (transposed, {}, r"0\.9\d in thousandths in the order y1, x1, y2, x2\. No frame has that order.*--prompts"),
        (fractions, {}, r"0\.\d\d in fractions\. Set --frame fractions"),
        (sent_pixels, {"image_side": 128}, r"in pixels of the image as sent\. Set --frame resized_pixels"),
        (sent_pixels, {"image_side": 1024}, r"in pixels\. Set --frame pixels"),
        (None, {"frame": "fractions"}, r"in thousandths\. Set --frame thousandths"),
    ],
    ids=["transposed", "fractions", "as sent", "pixels", "declared wrongly"],
)
def test_wrong_frame_stops_before_any_row_is_asked(
    tmp_path: Path, respell: Respell | None, given: dict[str, Any], says: str
) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher(respell)) as there:
        with pytest.raises(SettingsError, match=rf"--frame \w+ does not fit.*mean IoU is 0\.\d\d in .*{says}") as error:
            distill(where, there, **PROPOSE | given)
        assert error.value.exit_code == 78
        assert {asked.purpose for asked in there.asked} == {"locate"}
        assert len(there.asked) == 8


def test_another_frame_may_follow_in_the_same_run(tmp_path: Path) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher(fractions)) as there:
        with pytest.raises(SettingsError):
            distill(where, there, **PROPOSE)
        distill(where, there, frame="fractions", **PROPOSE)
    fit = report(str(where))["frame_fit"]
    assert (fit["declared"], fit["best"]) == ("fractions", "fractions")


def test_right_frame_is_reported_and_asked_once(tmp_path: Path) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher()) as there:
        with pytest.raises(BudgetSpent):
            distill(where, there, budget_requests=10, **PROPOSE)
        distill(where, there, budget_requests=100, **PROPOSE)
        asked = [one.purpose for one in there.asked]
    assert asked.count("locate") == 8
    found = report(str(where))
    fit = found["frame_fit"]
    assert fit["declared_iou"] == fit["best_iou"] > 0.95
    assert (fit["rows"], fit["boxes"], fit["rows_requested"]) == (8, 8, 8)
    assert fit["usd"] == pytest.approx(8 * 0.00035)
    page = (where / "distill" / "report.html").read_text()
    assert "in thousandths as declared, over 8 boxes of 8 rows" in page.replace("\n", " ")


def test_pilot_is_bounded_and_can_be_turned_off(tmp_path: Path) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher(transposed)) as there:
        with pytest.raises(SettingsError):
            distill(where, there, frame_check_rows=6, **PROPOSE)
        assert len(there.asked) == 6
        distill(where, there, frame_check_rows=0, **PROPOSE)
    assert report(str(where)).get("frame_fit") is None


@pytest.mark.parametrize(
    ("count", "given"),
    [(4, {}), (8, {"propose": False})],
    ids=["too few rows", "no box of the teacher"],
)
def test_nothing_is_asked_where_nothing_can_be_learned(tmp_path: Path, count: int, given: dict[str, Any]) -> None:
    where = converted(tmp_path, count)
    with scripted_teacher(teacher(transposed)) as there:
        distill(where, there, **PROPOSE | given)
        assert "locate" not in {asked.purpose for asked in there.asked}
    assert report(str(where)).get("frame_fit") is None


def test_pilot_comes_before_a_batch(tmp_path: Path) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher(transposed)) as there, pytest.raises(SettingsError, match="does not fit"):
        distill(where, there, batch=True, **PROPOSE)
    assert not (where / "distill" / "_batches").exists()


def test_estimate_holds_the_pilot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = converted(tmp_path)
    with scripted_teacher(teacher()) as there:
        distill(where, there, dry_run=True, **PROPOSE)
        assert not there.asked
    assert "requests      16," in capsys.readouterr().out


def test_boxes_that_fit_in_no_frame_are_reported(tmp_path: Path) -> None:
    where = converted(tmp_path)
    elsewhere = teacher(lambda box, size: [900, 900, 990, 990])
    with scripted_teacher(elsewhere) as there:
        distill(where, there, **PROPOSE)
    fit = json.loads((where / "distill" / "frame_fit.json").read_text())
    assert fit["declared_iou"] < 0.2
    assert report(str(where))["frame_fit"] == fit
