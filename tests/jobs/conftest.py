"""For the tests of the stages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.rows import Given


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A folder for rows and their images."""
    return Given(tmp_path / "data")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the settings of whoever runs the tests."""
    for name in [n for n in os.environ if n.startswith(("VCOT_", "OPENAI_", "AZURE_", "JUDGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def quick_teacher(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for a scripted teacher, and a thousandth of the pauses between two tries or two looks at a batch."""
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setattr("vcot.distill.batch.POLL", 0.01)
    monkeypatch.setattr("vcot.distill.client.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("vcot.distill.client.LAST_PAUSE", 0.002)
