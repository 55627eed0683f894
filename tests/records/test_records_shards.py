"""The contract of a stage in storage: markers, row counts, resumption, refusals."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from tests.fakes.evaluating import sample
from tests.fakes.faults import Fault, flipped, missing, replaced, truncated
from tests.fakes.markers import shard_marker, stage_marker
from tests.s3 import FaultyPlace
from vcot.errors import InputError, SettingsError
from vcot.records import Folder, Reason, Rejection, read_samples
from vcot.records.metadata import NoMetadata
from vcot.records.shards import (
    STAGES,
    TOKENIZE,
    JsonLines,
    ShardWriter,
    StageKind,
    StageMarker,
    read_marker,
    run_shards,
)
from vcot.settings import Settings, setting
from vcot.storage import Store

COUNT = StageKind("count", NoMetadata, NoMetadata)


class Count(Settings):
    """Counts."""

    stage: ClassVar[str] = "count"
    upto: int = setting(10, "rows")
    helpers: int = setting(1, "at once", shapes_result=False)
    max_rejected_share: float = setting(0.5, "of all rows", shapes_result=False)


def run(
    folder: Path, work: Callable[[ShardWriter], NoMetadata] | None = None, shards: int = 3, **values: object
) -> StageMarker:
    settings = Count(run_uri=str(folder), **values)  # type: ignore[arg-type]

    def rows(writer: ShardWriter) -> NoMetadata:
        for number in range(writer.index, settings.upto, shards):
            if number % 5 == 4:
                writer.reject(Rejection(id=str(number), stage="count", reason=Reason.NO_BOX, detail="none"))
            else:
                writer.keep(sample(f"s{number}"))
        return NoMetadata()

    return run_shards(  # type: ignore[return-value]  # None where a part is done, and nobody looks at it then
        Folder(Store(), str(folder), COUNT), settings, inputs={"in": "digest"}, shards=shards,
        work=work or rows, max_rejected_share=settings.max_rejected_share, metadata=NoMetadata(),
    )  # fmt: skip


def files(folder: Path) -> dict[str, str]:
    below = (folder / "count").rglob("*")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in below if p.is_file()}


def test_rows_in_are_kept_or_refused_by_reason(tmp_path: Path) -> None:
    marker = run(tmp_path)
    assert (marker.row_counts.rows, marker.row_counts.kept, marker.row_counts.rejected) == (10, 8, {"no-box": 2})
    assert {s.id for s in read_samples(Store(), str(tmp_path / "count"), marker)} == {
        f"s{n}" for n in range(10) if n % 5 != 4
    }
    refused = [
        json.loads(x) for f in sorted((tmp_path / "count/rejections").iterdir()) for x in f.read_text().splitlines()
    ]
    assert sorted(r["id"] for r in refused) == ["4", "9"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    shards = {n: d for n, d in files(tmp_path / "a").items() if "/shards/" in n or "/rejections/" in n}
    assert shards.items() <= files(tmp_path / "b").items()
    assert len(shards) == 6
    data = next((tmp_path / "a/count/shards").iterdir()).read_bytes()
    assert data[4:8] == b"\0\0\0\0", "no time stamp"


def test_killed_between_shards_it_goes_on_and_makes_none_twice(tmp_path: Path) -> None:
    made: list[int] = []

    def work(writer: ShardWriter) -> NoMetadata:
        if writer.index == 1 and made == [0]:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(writer.index)
        writer.keep(sample(f"s{writer.index}"))
        return NoMetadata()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, work)
    assert run(tmp_path, work).row_counts.kept == run(tmp_path, work).row_counts.kept == 3
    assert made == [0, -1, 1, 2]


def test_a_second_run_with_other_settings_is_refused_by_the_setting(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(SettingsError, match="upto was 10 and is now 11"):
        run(tmp_path, upto=11)
    run(tmp_path, helpers=4)
    folder = Folder(Store(), str(tmp_path), COUNT)
    with pytest.raises(InputError, match="in has changed since"):
        folder.begin(Count(run_uri=str(tmp_path)), {"in": "another"})


def test_more_refusals_than_allowed_are_an_error_that_counts_them_and_keeps_the_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 of 10 rows were refused \(20\.0%\).*0\.1 allows: 2 no-box"):
        run(tmp_path, max_rejected_share=0.1)
    assert json.loads((tmp_path / "count/report.json").read_text())["row_counts"]["rejected"] == {"no-box": 2}
    assert not (tmp_path / "count/_done/stage.json").exists()
    run(tmp_path, max_rejected_share=0.3)


def test_parts_done_apart_give_what_one_process_gives(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", part="shards", shard=0)
    with pytest.raises(InputError, match="shard 1 of 3 is not done"):
        run(tmp_path / "parts", part="finish")
    with pytest.raises(SettingsError, match="--shard=3: there are 3 shards, 0 to 2"):
        run(tmp_path / "parts", part="shards", shard=3)
    for index in (2, 1):
        run(tmp_path / "parts", part="shards", shard=index)
    run(tmp_path / "parts", part="finish")
    assert files(tmp_path / "whole")["count/_done/stage.json"] == files(tmp_path / "parts")["count/_done/stage.json"]


def test_a_late_writer_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "count/_done/00000.json"
    before = path.read_bytes()
    path.unlink()

    def slow(writer: ShardWriter) -> NoMetadata:
        writer.keep(sample(f"s{99}"))
        path.write_bytes(before)  # another process finishes meanwhile
        return NoMetadata()

    marker = Folder(Store(), str(tmp_path), COUNT).make_shard(0, slow, JsonLines)
    assert path.read_bytes() == before
    assert marker.row_counts.rows == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"stage": "tokenize"', b'"stage": "convert"', "is the marker of a convert stage; give the URI of a finished"),
        (b'"version": 2', b'"version": 1', "was written by another version of vcot. Delete .* run that stage again"),
        (b'"base_uri"', b'"base"', r"is damaged \(metadata\.base_uri: field required\)"),
        (b'"stage"', b'"state"', "is damaged: it names no stage"), (b"{", b"", "is damaged"),
    ],
)  # fmt: skip
def test_a_marker_of_another_kind_is_refused_in_one_line(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    with pytest.raises(InputError, match="is not a finished stage"):
        read_marker(Store(), str(tmp_path / "tokenize"))
    Folder(Store(), str(tmp_path), TOKENIZE).finish(stage_marker("tokenize"))
    path = tmp_path / "tokenize/_done/stage.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(InputError, match=f"{path} {said}") as caught:
        read_marker(Store(), str(tmp_path / "tokenize"), TOKENIZE)
    assert "\n" not in str(caught.value)


def test_metadata_is_read_as_it_was_written(tmp_path: Path) -> None:
    for kind in STAGES:
        folder = Folder(Store(), str(tmp_path), kind)
        marker = stage_marker(kind.name, shards=[shard_marker(kind.name)])
        folder.finish(marker)
        assert folder.marker() == read_marker(Store(), folder.uri, kind)[0] == marker


@pytest.mark.parametrize("cut", [0, 10, -5])
def test_a_truncated_shard_is_named_and_never_read(tmp_path: Path, cut: int) -> None:
    marker = run(tmp_path)
    path = tmp_path / "count" / marker.shards[1].files[0].name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=f"{path.name} is not what its marker says"):
        list(read_samples(Store(), str(tmp_path / "count"), marker))


def test_the_last_word_tells_shards_rows_and_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vcot.stage import summary

    def told(**values: object) -> dict[str, object]:
        monkeypatch.setattr(summary, "facts", {})
        run(tmp_path, **values)
        return summary.facts

    assert told(part="prepare") == {"shards": 3}
    assert told(part="shards", shard=1) == {"shards": 3, "rows": 3, "kept": 2, "rejected": 1}  # 1, 4, 7
    told(part="shards")
    whole = {"shards": 3, "rows": 10, "kept": 8, "rejected": 2}
    assert told(part="finish") == whole
    assert told(part="prepare") == whole  # nothing left to do


@pytest.mark.parametrize("stage", ["convert", "distill", "tokenize", "evaluate"])
def test_rejection_hides_credentials_of_any_stage(stage: str) -> None:
    ports = "http://127.0.0.1:9000 is busy; (http://host:80) 'http://host:81': http://host:82; http://host:83."
    text = f"s3://me:hunter2/x@bucket/a.jpg: missing; http://host:8000/v1 and s3://arn:aws:s3:us stay; {ports}"
    rejection = Rejection(id="1", stage=stage, reason=Reason.IMAGE_MISSING, detail=text, said=(text,))
    assert rejection.detail == rejection.said[0] == text.replace("me:hunter2/x", "***")


# --- one bad answer of storage ---

ONCE: dict[str, Callable[[], Fault]] = {
    "settings flipped": lambda: flipped("settings.json", at=1),
    "settings of a value": lambda: replaced("settings.json", b'{"settings": {"upto": 9}, "inputs": {}, "code": "1"}'),
    "settings of another input": lambda: replaced(
        "settings.json", b'{"settings": {"upto": 10}, "inputs": {"in": "other"}, "code": "1"}'
    ),
    "settings stale": lambda: missing("settings.json"), "settings cut": lambda: truncated("settings.json"),
    "marker flipped": lambda: flipped("_done/00001.json", at=3), "marker cut": lambda: truncated("_done/00001.json"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ONCE)
def test_a_run_goes_on_after_one_bad_read(faulty_place: FaultyPlace, fault: str) -> None:
    folder = cast(Any, faulty_place.uri)
    run(folder, part="shards")
    faulty_place.proxy.add(ONCE[fault]())
    marker = run(folder)
    assert (len(marker.shards), marker.row_counts.rows) == (3, 10)
    assert faulty_place.proxy.faults[0].times == 0


def test_settings_are_compared_after_a_stale_404(faulty_place: FaultyPlace) -> None:
    folder = cast(Any, faulty_place.uri)
    run(folder, part="shards")
    faulty_place.proxy.add(missing("settings.json"))
    with pytest.raises(SettingsError, match="belongs to a run with other settings"):
        run(folder, upto=9)


def test_a_finish_awaits_markers_that_are_late(faulty_place: FaultyPlace) -> None:
    folder = cast(Any, faulty_place.uri)
    run(folder, part="shards")
    faulty_place.proxy.add(missing("_done/00002.json", times=2))
    assert len(run(folder, part="finish").shards) == 3


def test_a_shard_of_another_process_keeps_its_marker(faulty_place: FaultyPlace) -> None:
    """Its marker was written, and is not shown yet: ours does not count in its place."""
    folder = Folder(Store(), faulty_place.uri, COUNT)
    theirs = folder.make_shard(0, lambda writer: NoMetadata(), JsonLines)

    def work(writer: ShardWriter) -> NoMetadata:
        writer.keep(sample("mine"))
        faulty_place.proxy.add(missing("_done/00000.json"))
        return NoMetadata()

    faulty_place.proxy.add(missing("_done/00000.json"))
    assert folder.make_shard(0, work, JsonLines) == theirs


def marker_of(stage: str) -> StageMarker:
    return read_marker(Store(), stage, COUNT)[0]


def test_the_next_stage_reads_after_one_bad_answer(faulty_place: FaultyPlace) -> None:
    run(cast(Any, faulty_place.uri))
    stage, name = f"{faulty_place.uri}/count", "count/shards/00001"
    for faults in (
        [missing("_done/stage.json")], [flipped("_done/stage.json", at=2)], [truncated("_done/stage.json")],
        [flipped(name), missing(name)], [truncated(name, times=2)],
    ):  # fmt: skip
        faulty_place.proxy.add(*faults)
        marker = marker_of(stage)
        assert len(list(read_samples(Store(), stage, marker))) == 8
        assert all(fault.times == 0 for fault in faults)


def test_what_stays_damaged_is_reported_with_its_reads(faulty_place: FaultyPlace) -> None:
    run(cast(Any, faulty_place.uri), part="shards")
    uri, store = f"{faulty_place.uri}/count/settings.json", Store()
    for data in (b"{", b"[]", b'{"settings": []}', b'{"settings": {}, "inputs": {}}', b"\xff", b"null"):
        store.write(uri, data)
        with pytest.raises(InputError, match=rf"^{uri} is damaged .*run that stage again.* \(read 3 times\)$"):
            run(cast(Any, faulty_place.uri))
    with pytest.raises(InputError, match="is not a finished stage"):
        marker_of(f"{faulty_place.uri}/count")


def test_a_first_run_does_not_wait(faulty_place: FaultyPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcot.storage.reread._wait", lambda seconds: pytest.fail("waited"))
    run(cast(Any, faulty_place.uri))
    run(cast(Any, faulty_place.uri))
