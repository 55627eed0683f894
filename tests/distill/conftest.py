"""For the tests of distill's parts."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for a scripted teacher, and a thousandth of the pauses between two tries."""
    for name in [n for n in os.environ if n.startswith(("VCOT_", "OPENAI_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("vcot.distill.client.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("vcot.distill.client.LAST_PAUSE", 0.002)
