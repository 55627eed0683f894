"""The comparison of ways to reason, small, through the stages' own entrypoints."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import reason
from tests.fakes.rows import AOKVQA, AOKVQA_DIRECT, AOKVQA_TYPES, png, write_parquet

BASE = Path(__file__).parents[2] / "examples" / "rehearsal"
pytestmark = pytest.mark.chain


def compared(monkeypatch: pytest.MonkeyPatch, out: Path, *flags: str) -> tuple[list[list[str]], str]:
    """The only table and the page of a comparison of models that learn for two steps."""
    given = ["--base", BASE, "--out", out, "--train=--max-steps 2 --batch-tokens 2048", *flags]
    monkeypatch.setattr(sys, "argv", ["reason", *map(str, given)])
    reason.main()
    (table,) = json.loads((out / "report.json").read_text()).values()
    return table, (out / "report.html").read_text()


def settings(folder: Path, **changed: str) -> Path:
    """Those of the example, and others for evaluate."""
    folder.mkdir()
    for path in (reason.BASE / "settings").glob("*.env"):
        (folder / path.name).write_text(path.read_text())
    lines = [f"VCOT_EVALUATE_{name.upper()}={value}" for name, value in changed.items()]
    (folder / "evaluate.env").write_text("\n".join([(folder / "evaluate.env").read_text(), *lines]))
    return folder


def test_rows_in_the_shape_of_aokvqa_are_compared_with_and_without_their_rationales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in (("train", 16), ("validation", 6)):
        rows = [
            AOKVQA
            | {"question": f"What is in the mouth of {split} {n}?", "question_id": f"{split}{n}"}
            | {"image": {"bytes": png(100 + n, 90 if split == "train" else 70), "path": f"{n}.png"}}
            | {"direct_answers": str(AOKVQA_DIRECT)}
            for n in range(count)
        ]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows, AOKVQA_TYPES)
    convert = shlex.join(["--source=aokvqa", f"--input-uri={tmp_path / 'data'}", "--near-duplicates=0"])
    table, page = compared(
        monkeypatch, tmp_path / "out", "--convert", convert, "--models", "direct,words",
        "--settings", settings(tmp_path / "settings", max_new_tokens="24"),
    )  # fmt: skip
    heading, direct, words, *_ = table
    assert heading[:3] == ["rows: answers right", "all rows", "tokens a reply"]
    assert [line[0] for line in (direct, words)] == ["direct", "reasoning in words"]
    for line, name in ((direct, "direct"), (words, "words")):
        report = json.loads((tmp_path / "out" / "rows" / name / "evaluate" / "report.json").read_text())
        assert report["samples"]["rows"] == 6
        right = reason.figures(report, "subject-real")["answer_accuracy"]
        assert line[1] == f"{100 * right['value']:.0f} % ({100 * right['low']:.0f}–{100 * right['high']:.0f})"
    # The loss and the answers of both are drawn, and what is linked lies there.
    assert page.count("<svg") == 1
    links = re.findall(r'href="([^"#]+\.html)"', page)
    assert [(tmp_path / "out" / link).is_file() for link in links] == [True, True]


def test_boards_are_compared_by_their_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--worlds=following", "--models=boxes,filler", "--scenes=24", "--asked=1"]
    table, _ = compared(
        monkeypatch, tmp_path / "out", *flags, "--settings", settings(tmp_path / "settings", max_new_tokens="24")
    )
    heading, boxes, chain, filler, *_, usual = table
    assert heading[1:7] == ["1", "2", "4", "8", "12", "16"]
    assert [line[0] for line in (boxes, chain, filler)] == [
        "reasoning with boxes", "… whole chain of boxes right", "as many meaningless dots"
    ]  # fmt: skip
    assert all(re.fullmatch(r"\d+ % \(\d+–\d+\)", cell) for line in (boxes, chain, filler) for cell in line[1:7])
    assert usual[0] == "the usual answer"
