"""The stage tokenize, from finished Samples to Parquet and a page."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.tokenize import TokenizeSettings, run
from tests.fakes.markers import stage_marker
from tests.tokens.base import MAX_PIXELS, MIN_PIXELS, WHERE, png, processor, sample, toy_base
from vcot.errors import InputError, SettingsError
from vcot.grounding import Trace
from vcot.records import Folder, Sample, StageMarker
from vcot.records.example import Examples
from vcot.records.metadata import DistillShardMetadata, TokenizeMetadata, TokenizeShardMetadata
from vcot.records.sample import Image
from vcot.records.shards import DISTILL, TOKENIZE, JsonLines, ShardWriter, read_marker
from vcot.storage import Store, join
from vcot.tokens.encoder import check_contract

__all__ = ["toy_base", "processor"]


def distilled(place: str, shards: list[list[Sample]]) -> None:
    """<place>/distill with these Samples."""
    folder = Folder(Store(), place, DISTILL)

    def work(writer: ShardWriter) -> DistillShardMetadata:
        for row in shards[writer.index]:
            writer.keep(row)
        return DistillShardMetadata()

    markers = tuple(folder.make_shard(number, work, JsonLines) for number in range(len(shards)))
    folder.finish(stage_marker("distill", shards=markers))


def settings_of(place: str, base: Path | str, **changes: Any) -> TokenizeSettings:
    limits = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "max_length": 256}
    return TokenizeSettings(run_uri=place, base_uri=str(base), **(limits | changes))


def tokenize(place: str, base: Path | str, **changes: Any) -> StageMarker[TokenizeShardMetadata, TokenizeMetadata]:
    run(settings_of(place, base, **changes))
    return read_marker(Store(), join(place, "tokenize"), TOKENIZE)[0]


def rows(place: str, splits: str, start: int = 0) -> list[Sample]:
    """A sample per letter (t, v, e for test), each with an image of its own."""
    found = []
    for number, letter in enumerate(splits, start):
        data = png(colour=f"rgb({number * 20}, 40, 90)")
        uri = join(place, f"images/{number}.png")
        Store().write(uri, data)
        row = sample(data, uri, id=f"s{number}")
        split = {"t": "train", "v": "validation", "e": "test"}[letter]
        found.append(row.model_copy(update={"origin": row.origin.model_copy(update={"split": split})}))
    return found


def examples(place: str, marker: StageMarker) -> Examples:
    return Examples([Path(join(place, "tokenize", file.name)) for shard in marker.shards for file in shard.files])


def everything(place: str) -> dict[str, bytes]:
    """Shards and rejections by name."""
    folder = Path(place) / "tokenize"
    return {f"{kind}/{p.name}": p.read_bytes() for kind in ("shards", "rejections") for p in (folder / kind).iterdir()}


def test_samples_become_examples_shard_by_shard_and_the_mark_states_the_contract(
    tmp_path: Path, toy_base: Path, processor: Any
) -> None:
    place = str(tmp_path / "run")
    first, second = rows(place, "tte"), rows(place, "tv", 3)
    second[0] = second[0].model_copy(update={"reasoning": (WHERE, Trace(("I see it. ", *WHERE.parts)))})
    distilled(place, [first, second])
    marker = tokenize(place, toy_base)
    found = examples(place, marker)
    assert [row.id for row in found.rows] == ["s0#0", "s1#0", "s3#0", "s3#1", "s4#0"]
    assert [row.split for row in found.rows] == ["train"] * 4 + ["validation"]
    assert found[0].images[0] == (tmp_path / "run/images/0.png").read_bytes()
    assert [shard.row_counts.rows for shard in marker.shards] == [2, 2]  # without the row of the test split
    assert marker.metadata.base_uri == str(toy_base)
    check_contract(marker.metadata.contract, processor)
    assert marker.inputs[str(toy_base)] == marker.metadata.base_sha256
    report = json.loads((tmp_path / "run/tokenize/report.json").read_text())
    assert report["examples"] == {"train": 4, "validation": 1}
    assert report["test_rows_left_out"] == 1
    assert report["visual_tokens"]["per_example"]["p50"] == 12
    assert 0 < report["tokens"]["learned_share"] < 1
    assert (tmp_path / "run/tokenize/report.html").read_text().count("data:image/jpeg") == 5


def test_several_ways_give_examples_of_each_row_and_are_counted_and_shown(tmp_path: Path, toy_base: Path) -> None:
    place = str(tmp_path / "run")
    first, silent, held_out = rows(place, "ttv")
    first = first.model_copy(update={"reasoning": (WHERE, Trace(("I see it. ", *WHERE.parts)))})
    silent = silent.model_copy(update={"reasoning": ()})
    distilled(place, [[first, silent, held_out]])
    marker = tokenize(place, toy_base, learn="direct,reason,ground")
    found = examples(place, marker)
    assert [(row.id, row.way) for row in found.rows] == [
        ("s0#direct", "direct"), ("s0#0/reason", "reason"), ("s0#1/reason", "reason"), ("s0#0", "ground"),
        ("s0#1", "ground"), ("s1#direct", "direct"),
        ("s2#direct", "direct"), ("s2#0/reason", "reason"), ("s2#0", "ground"),
    ]  # fmt: skip
    assert marker.metadata.contract.ways == ("direct", "reason", "ground")
    report = json.loads((tmp_path / "run/tokenize/report.json").read_text())
    assert report["ways"] == {"direct": 3, "reason": 3, "ground": 3}
    assert report["refused_alternatives"] == {"no-reasoning": 1}
    page = (tmp_path / "run/tokenize/report.html").read_text()
    assert page.count("data:image/jpeg") == 9  # two of each way and split, or as many as there are
    assert "validation · reason" in page
    alone = str(tmp_path / "alone")
    marker = tokenize(alone, toy_base, input_uri=join(place, "distill"), max_rejected_share=0.5)
    assert list(examples(alone, marker)) == [one for one in found if one.way == "ground"]


def test_the_rationale_can_be_a_turn_of_its_own(tmp_path: Path, toy_base: Path, processor: Any) -> None:
    place = str(tmp_path / "run")
    first, silent, held_out = rows(place, "ttv")
    distilled(place, [[first, silent.model_copy(update={"reasoning": ()})], [held_out]])
    given: dict[str, Any] = {"learn": "direct,ground", "without_reasoning": "ask"}
    marker = tokenize(place, toy_base, roles="rationale", processes=2, **given)
    assert marker.metadata.contract.roles == ("rationale",)
    found = {one.id: one for one in examples(place, marker)}
    assert list(found) == ["s0#direct", "s0#0", "s1#direct", "s1#question", "s2#direct", "s2#0"]
    text = {name: processor.tokenizer.decode(list(one.ids)) for name, one in found.items()}
    learned = text["s0#0"].partition("<|im_start|>rationale\n")[2]
    assert learned == (
        "The <ref>red disc</ref><box>[100, 100, 300, 300]</box> is at the top left.<|im_end|>\n"
        "<|im_start|>assistant\nAnswer: top left<|im_end|>\n"
    )
    assert text["s1#question"].endswith("<|im_end|>\n<|im_start|>rationale\n")
    page = (tmp_path / "run/tokenize/report.html").read_text()
    assert "<tr><td>turns of their own</td><td>rationale</td></tr>" in page
    plain = str(tmp_path / "plain")
    marker = tokenize(plain, toy_base, input_uri=join(place, "distill"), **given)
    assert "roles" not in marker.metadata.contract.model_dump()
    usual = {one.id: one for one in examples(plain, marker)}
    assert [usual[name] == one for name, one in found.items()] == [True, False, True, False, True, False]
    assert "turns of their own" not in (tmp_path / "plain/tokenize/report.html").read_text()
    with pytest.raises(ValueError, match="no such role: analyzer; there is rationale"):
        settings_of(place, toy_base, roles="analyzer")


def test_rows_without_reasoning_can_give_their_question_alone(tmp_path: Path, toy_base: Path) -> None:
    place = str(tmp_path / "run")
    first, second, third = rows(place, "ttv")
    silent = [row.model_copy(update={"reasoning": ()}) for row in (second, third)]
    distilled(place, [[first, *silent]])
    marker = tokenize(place, toy_base, learn="direct,ground", without_reasoning="ask", processes=2)
    found = {one.id: one for one in examples(place, marker)}
    assert list(found) == ["s0#direct", "s0#0", "s1#direct", "s1#question", "s2#direct", "s2#question"]
    asked, answered = found["s1#question"], found["s0#0"]
    assert (asked.alone, asked.learned, asked.alternative) == (True, 0, -1)
    assert asked.ids == answered.ids[: len(asked.ids)]  # the same question, up to where the reply begins
    assert answered.labels[: len(asked.ids)] == asked.labels
    assert answered.labels[len(asked.ids)] == answered.ids[len(asked.ids)]
    assert asked.images
    assert asked.image_grids == answered.image_grids
    report = json.loads((tmp_path / "run/tokenize/report.json").read_text())
    assert (report["questions_alone"], report["refused_alternatives"], report["refused"]) == (2, {}, {})
    page = " ".join((tmp_path / "run/tokenize/report.html").read_text().split())
    assert "<b>2</b><span>questions alone, for rewards</span>" in page
    only_asked = str(tmp_path / "only")
    distilled(only_asked, [silent])
    tokenize(only_asked, toy_base, without_reasoning="ask")  # nothing in it is learned, and that is no fault


def test_direct_alone_needs_no_reasoning(tmp_path: Path, toy_base: Path) -> None:
    place = str(tmp_path / "run")
    distilled(place, [[row.model_copy(update={"reasoning": ()}) for row in rows(place, "tv")]])
    marker = tokenize(place, toy_base, learn="direct")
    assert [row.id for row in examples(place, marker).rows] == ["s0#direct", "s1#direct"]
    assert marker.row_counts.rejected == {}


@pytest.mark.parametrize("ways", ["look-again", ","])
def test_a_way_that_cannot_be_learned_is_told(ways: str, clean: None) -> None:
    with pytest.raises(SettingsError, match=r"--learn=.*: .* direct, reason, ground"):
        TokenizeSettings.load(["--run-uri", "x", "--base-uri", "y", "--learn", ways])


def test_parts_and_single_shards_make_what_one_process_makes_and_a_third_run_does_nothing(
    tmp_path: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = str(tmp_path / "run"), str(tmp_path / "other")
    shards = [rows(place, "tt"), rows(place, "tv", 2)]
    for run_uri in (place, other):
        distilled(run_uri, shards)
    for part, shard in (("prepare", None), ("shards", 1), ("shards", 0), ("finish", None)):
        run(settings_of(other, toy_base, part=part, shard=shard))
    assert tokenize(place, toy_base).row_counts.written == 4
    assert everything(other) == everything(place)
    monkeypatch.setattr("vcot.tokens.load_processor", lambda *_, **__: pytest.fail("a processor is loaded for nothing"))
    tokenize(place, toy_base)
    with pytest.raises(SettingsError, match="frame"):
        tokenize(place, toy_base, frame="resized_pixels")


@pytest.mark.parametrize("mode", ["multimodal", "text"])
def test_two_processes_make_the_same_bytes_as_one(tmp_path: Path, toy_base: Path, mode: str) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    shards = [rows(one, "tt"), rows(one, "tve", 2), rows(one, "t", 5)]
    for run_uri in (one, two):
        distilled(run_uri, shards)
    tokenize(one, toy_base, mode=mode, processes=1)
    assert tokenize(two, toy_base, mode=mode, processes=2).row_counts.written == 5
    assert everything(two) == everything(one)


def test_asked_to_stop_two_processes_leave_whole_shards_and_no_scratch(tmp_path: Path, toy_base: Path) -> None:
    place, scratch = str(tmp_path / "run"), tmp_path / "scratch"
    scratch.mkdir()
    (made,) = rows(place, "t")
    shards = [[made.model_copy(update={"id": f"{n}-{row}"}) for row in range(100)] for n in range(24)]
    distilled(place, shards)
    flags = ["--run-uri", place, "--base-uri", str(toy_base), "--processes", "2", "--max-length", "256"]
    flags += ["--min-pixels", str(MIN_PIXELS), "--max-pixels", str(MAX_PIXELS)]
    command, environment = [sys.executable, "-m", "jobs.tokenize", *flags], os.environ | {"TMPDIR": str(scratch)}
    done = tmp_path / "run/tokenize/_done"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(done.glob("0*.json")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143, said
    assert 1 <= len(list(done.glob("0*.json"))) < len(shards)
    assert not list(scratch.glob("tokenize-*"))
    assert tokenize(place, toy_base).row_counts.written == 24 * 100


def test_refused_rows_are_counted_listed_and_judged(tmp_path: Path, toy_base: Path) -> None:
    place = str(tmp_path / "run")
    good, missing, changed, cut, wordy, silent, half = rows(place, "ttttttt")
    (tmp_path / "run/images/1.png").unlink()
    (tmp_path / "run/images/2.png").write_bytes(png(colour="white"))
    short = png()[: len(png()) // 2]
    cut = sample(uri=cut.image.uri, id="cut").model_copy(
        update={"images": (Image(uri=cut.image.uri, width=320, height=240, sha256=hashlib.sha256(short).hexdigest()),)}
    )
    Path(cut.image.uri).write_bytes(short)
    long_text = Trace(("So " * 300, *WHERE.parts))
    wordy = wordy.model_copy(update={"reasoning": (long_text,)})
    silent = silent.model_copy(update={"reasoning": ()})
    half = half.model_copy(update={"reasoning": (long_text, WHERE)})
    distilled(place, [[good, missing, changed, cut, wordy, silent, half]])
    with pytest.raises(InputError, match=r"5 of 7 rows were refused .*--max-rejected-share 0\.05"):
        tokenize(place, toy_base)
    marker = tokenize(place, toy_base, max_rejected_share=0.8)
    assert marker.row_counts.rejected == {
        "image-changed": 1, "image-missing": 1, "image-truncated": 1, "no-reasoning": 1, "too-long": 1,
    }  # fmt: skip
    assert [row.id for row in examples(place, marker).rows] == ["s0#0", "s6#1"]
    report = json.loads((tmp_path / "run/tokenize/report.json").read_text())
    assert report["refused_alternatives"] == {"too-long": 1}
    listed = [json.loads(line) for line in (tmp_path / "run/tokenize" / marker.shards[0].rejections.name).open()]
    assert [(line["id"], line["reason"]) for line in listed][:2] == [("s1", "image-missing"), ("s2", "image-changed")]
    assert "--max-length allows 256" in next(line["detail"] for line in listed if line["reason"] == "too-long")


def test_an_image_made_smaller_is_counted_and_in_text_mode_none_is_read(tmp_path: Path, toy_base: Path) -> None:
    place = str(tmp_path / "run")
    distilled(place, [rows(place, "tt")])
    marker = tokenize(place, toy_base, max_pixels=1280 * 784, max_length=128)
    found = examples(place, marker)
    assert all(one.shrunk and len(one.ids) <= 128 for one in found)
    report = json.loads((tmp_path / "run/tokenize/report.json").read_text())
    assert report["shrunk"] == 2
    (tmp_path / "run/images/0.png").unlink()
    text = str(tmp_path / "text")
    marker = tokenize(text, toy_base, mode="text", input_uri=join(place, "distill"))
    assert [one.images for one in examples(text, marker)] == [(), ()]
    assert marker.metadata.contract.mode == "text"


def test_a_base_without_a_processor_is_named(tmp_path: Path) -> None:
    distilled(str(tmp_path), [rows(str(tmp_path), "t")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    with pytest.raises(InputError, match="empty: nothing wanted in it"):
        tokenize(str(tmp_path), tmp_path / "empty")


def test_of_a_base_in_a_bucket_the_weights_stay_there(tmp_path: Path, toy_base: Path, moto_place: str) -> None:
    from vcot.tokens import is_processor_file

    store, base = Store(), join(moto_place, "base")
    for path in toy_base.iterdir():
        if is_processor_file(path.name):
            store.write(join(base, path.name), path.read_bytes())
    distilled(moto_place, [rows(moto_place, "tv")])
    store.write(join(base, "model.safetensors"), b"not weights at all")
    marker = tokenize(moto_place, base)
    assert marker.row_counts.written == 2
    digest = marker.metadata.base_sha256
    store.write(join(base, "model.safetensors"), b"others")  # other weights under one processor: the same examples
    assert tokenize(moto_place, base).metadata.base_sha256 == digest
    store.write(join(base, "chat_template.jinja"), b"{{ messages }}")
    with pytest.raises((SettingsError, InputError), match="base"):
        tokenize(moto_place, base)


def test_a_budget_of_pixels_that_makes_no_sense_is_told() -> None:
    with pytest.raises(SettingsError, match="--min-pixels=4000 is more than --max-pixels=784"):
        TokenizeSettings.load(["--run-uri", "x", "--base-uri", "y", "--min-pixels", "4000", "--max-pixels", "784"])
