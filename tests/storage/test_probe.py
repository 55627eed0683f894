"""The probe passes real storage, and finds each promise that a server breaks."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from vcot.storage import Store
from vcot.storage.probe import CHECKS, probe


def faults(store: Store, place: str) -> set[str]:
    found = list(probe(store, place))
    assert [guarantee.name for guarantee in found] == list(CHECKS)
    return {guarantee.name for guarantee in found if not guarantee.holds}


def test_real_storage_passes_and_is_left_as_it_was(any_place):
    assert faults(Store(), any_place) == set()
    assert list(Store().list(any_place)) == []


class Replaces(Store):
    """Ignores If-None-Match, as servers did for years."""

    def write_once(self, uri, data):
        self.write(uri, data)
        return True


class Refuses(Store):
    def write_once(self, uri, data):
        return False


class LosesRaces(Store):
    """Looks first and writes then: right for one writer, wrong for many."""

    def write_once(self, uri, data):
        return (Replaces if uri.endswith("one-winner/object") else Store)().write_once(uri, data)


class KeepsFraming(Store):
    """Stores what the client sent around the bytes, too."""

    def write(self, uri, data):
        super().write(uri, b"%x\r\n" % len(data) + data if data.startswith(b"5\r\n") else data)


class Stale(Store):
    def write(self, uri, data):
        if self.stat(uri) is None:
            super().write(uri, data)


class ListsLate(Store):
    def list(self, prefix_uri):
        return iter(list(super().list(prefix_uri))[:-1])


class IgnoresRanges(Store):
    def read_range(self, uri, start, length):
        return self.read(uri)[:length]


class ShowsHalves(Store):
    @contextmanager
    def open_write(self, uri):
        super().write(uri, b"half")
        with super().open_write(uri) as target:
            yield target


class CutsParts(Store):
    @contextmanager
    def open_write(self, uri):
        with super().open_write(uri) as target:
            yield type("Short", (), {"write": lambda _, data: target.write(data[: 16 << 20])})()


@pytest.mark.parametrize(
    ("server", "broken"),
    [
        (Replaces, {"write-once", "one-winner"}), (Refuses, {"write-once", "one-winner"}), (LosesRaces, {"one-winner"}),
        (KeepsFraming, {"bytes"}), (Stale, {"newest"}), (ListsLate, {"list"}), (IgnoresRanges, {"range"}),
        (ShowsHalves, {"halves"}), (CutsParts, {"multipart"}),
    ],
)  # fmt: skip
def test_a_broken_promise_is_found_and_no_other(server, broken, folder_place):
    assert faults(server(), folder_place) == broken


def test_the_command_names_what_is_wrong_and_writes_its_last_word(moto_place, tmp_path, capsys, monkeypatch):
    from jobs.probe import ProbeSettings, run
    from vcot.stage import launch, stop, summary

    monkeypatch.setattr(stop, "listen", lambda: None)
    monkeypatch.setattr(summary, "facts", {})
    log = tmp_path / "termination-log"
    for uri, code in ((moto_place, 0), ("s3://elsewhere/x", 78)):
        with pytest.raises(SystemExit) as ended:
            launch(ProbeSettings, run, ["--uri", uri, "--termination-log", str(log)])
        out, said = capsys.readouterr()
        assert ended.value.code == code, said
        if code == 0:
            assert [line.split()[:2] for line in out.splitlines()] == [["ok", name] for name in CHECKS]
            assert '"one-winner": "ok"' in log.read_text()
    assert "there is no bucket 'elsewhere'" in said
    assert "there is no bucket 'elsewhere'" in log.read_text()
