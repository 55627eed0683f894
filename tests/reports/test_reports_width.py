"""Pages of all stages in a real browser: nothing is wider than a phone, and dark mode changes the colors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.distill import DistillSettings
from jobs.distill import run as run_distill
from jobs.evaluate import EvaluateSettings
from jobs.evaluate import run as run_evaluate
from jobs.tokenize import TokenizeSettings
from jobs.tokenize import run as run_tokenize
from tests.demo.conftest import browser  # noqa: F401
from tests.fakes.teacher import Asked, Say, scripted_teacher
from tests.reports.test_reports_distillation import POINTS, finished, refused, rows
from vcot.records import Reason
from vcot.reports.rendering import render
from vcot.training.rollout_log import _curves

BASE = Path(__file__).resolve().parents[2] / "examples" / "rehearsal"
LONG = "https://models.example/" + "a-very-long-name-without-any-break-" * 4
PAGES = ("convert", "distill", "tokenize", "evaluate", "comparison", "rollouts")


def rollouts_page() -> str:
    sample = SimpleNamespace(question=f"Where is {LONG}?", id=LONG, answers=["left"])
    rollout = SimpleNamespace(advantage=0.5, rewards={"answer": 1.0, "boxes": None}, tokens=12, ended=False, text=LONG)
    reply = {"rollout": rollout, "image": "data:image/png;base64,", "times": 2}
    group = {"sample": sample, "count": 2, "mean": 0.5, "replies": [reply, reply | {"image": None}]}
    curves = _curves([{"step": step, "reward": 0.1 * step, "rewards/answer/mean": 0.1 * step} for step in range(5)])
    parts = [("The last steps", [("improved", [group])])]
    return render("rollouts.html.j2", steps=(0, 4), curves=curves, parts=parts)


def say(asked: Asked) -> Any:
    """A box in every reply, another one for each model, and a long word."""
    x = 100 if asked.body["model"] == "first" else 500
    box = f"<ref>thing</ref><box>[{x}, 100, {x + 200}, 400]</box>"
    return Say(f"I see {box}{box.replace('100', '120')} {LONG}.\nAnswer: left")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Name of a stage → its page, made by the stage itself where that takes no training."""
    folder = tmp_path_factory.mktemp("pages")
    convert: dict[str, Any] = {"source": "scenes", "scenes": 10, "validation_share": 0.5, "questions": "point,where"}
    run_convert(ConvertSettings(run_uri=str(folder / "run"), **convert))
    tokenize: dict[str, Any] = {"base_uri": str(BASE), "min_pixels": 3136, "max_pixels": 12544}
    run_distill(DistillSettings(run_uri=str(folder / "run")))
    run_tokenize(TokenizeSettings(run_uri=str(folder / "run"), **tokenize))
    asked: dict[str, Any] = {
        "samples_uri": str(folder / "run" / "convert"), "subject_frame": "thousandths", "subject_dialect": "vcot",
        "conditions": "real,blank", "ask": "ground,direct", "samples": 2, "cache_uri": str(folder / "cache"),
        "max_unusable_share": 1.0,
    }  # fmt: skip
    with scripted_teacher(say) as teacher:
        for name in ("first", "second"):
            run_evaluate(EvaluateSettings(run_uri=str(folder / name), subject=f"{teacher.address}#{name}", **asked))
    compared = (str(folder / "first"), str(folder / "second"))
    run_evaluate(EvaluateSettings(run_uri=str(folder / "both"), compare=compared))
    some = rows(folder / "distill", 3, LONG)
    outcomes = [(some[0], POINTS), (some[1], refused(some[1], Reason.TEACHER_EMPTY)), (some[2], POINTS)]
    (folder / "distill.html").write_text(finished(folder / "distill", outcomes)[1])
    (folder / "rollouts.html").write_text(rollouts_page())
    return {
        "convert": folder / "run/convert/report.html",
        "tokenize": folder / "run/tokenize/report.html",
        "evaluate": folder / "first/evaluate/report.html",
        "comparison": folder / "both/comparison/comparison.html",
        "distill": folder / "distill.html",
        "rollouts": folder / "rollouts.html",
    }


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_has_a_dark_mode(name: str, pages: Mapping[str, Path], browser: Browser) -> None:  # noqa: F811
    backgrounds = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(pages[name].as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate(CONTRAST) >= 4.5
        context.close()
    assert len(backgrounds) == 2


CONTRAST = """(() => {
  const light = name => {
    const [r, g, b] = getComputedStyle(document.body)[name].match(/[0-9.]+/g).map(Number)
      .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [dark, bright] = [light("color"), light("backgroundColor")].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
})()"""
"""Contrast of text and background, as WCAG 2 defines it."""
