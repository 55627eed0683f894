"""mix.yaml: everything that can be wrong with it, in the words of who wrote it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import OF_A_PART, ConvertSettings
from tests.datasets.given import Given
from tests.jobs.test_convert import flags, no_settings_from_outside  # noqa: F401 (fixture)
from tests.jobs.test_convert_mix import mix
from vcot.errors import SettingsError


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")


def told(given: Given, parts: Any, **settings: Any) -> list[str]:
    """What --check says is wrong."""
    loaded, _ = ConvertSettings.load(flags(run_uri="r", mix=mix(given, parts), **settings))
    with pytest.raises(SettingsError) as caught:
        loaded.validate_files()
    return str(caught.value).replace(f"{given.folder}/", "").splitlines()


BAD: dict[str, tuple[Any, list[str]]] = {
    "nothing": ("", ["mix.yaml should be a list of parts, each beginning with '- source: …' and its other keys below "
                     "that; it is None"]),
    "no list": ({"source": "scenes"}, ["mix.yaml should be a list of parts, each beginning with '- source: …' and its "
                                       "other keys below that; it is {'source': 'scenes'}"]),
    "names": (["coco", "viscot"], ["mix.yaml should be a list of parts, each beginning with '- source: …' and its "
                                   "other keys below that; it is ['coco', 'viscot']"]),
    "a dash too few": ("- source: scenes\n  scenes: 3\n  source: coco\n", [
        "mix.yaml, lines 1 and 3: source stands twice in one part; does a dash before it belong there?"]),
    "no source": ([{"input": "x"}], [
        "mix.yaml, part 1: source is missing: what kind of dataset the input is; or --mix"]),
    "unknown source": ([{"source": "vizcot", "input": "x"}], [
        "mix.yaml, part 1 (vizcot): source=vizcot: input should be 'viscot', 'coco', 'refcoco', 'scienceqa', 'aokvqa', "
        "'llava-cot', 'scenes' or 'samples'"]),
    "unknown keys": ([{"source": "scenes", "wieght": 3, "input_uri": "x", 7: 1}], [
        "mix.yaml, part 1 (scenes): wieght: no such key; did you mean weight?",
        "mix.yaml, part 1 (scenes): input_uri: no such key; did you mean input?",
        "mix.yaml, part 1 (scenes): 7: no such key"]),
    "for the whole run": ([{"source": "scenes", "seed": 3}], [
        "mix.yaml, part 1 (scenes): seed is one for all parts; give --seed (or VCOT_CONVERT_SEED)"]),
    "weights": ([{"source": "scenes", "weight": w, "name": f"w{n}"} for n, w in enumerate([0, -1, True, "1e3", 2])], [
        "mix.yaml, part 1 (w0): weight=0: a weight is a number above 0, such as 1 or 0.5",
        "mix.yaml, part 2 (w1): weight=-1: a weight is a number above 0, such as 1 or 0.5",
        "mix.yaml, part 3 (w2): weight=True: a weight is a number above 0, such as 1 or 0.5",
        "mix.yaml, part 4 (w3): weight='1e3': a weight is a number above 0, such as 1 or 0.5"]),
    "no number": ("- {source: scenes, weight: .nan}\n- {source: scenes, name: b, weight: .inf}\n", [
        "mix.yaml, part 1 (scenes): weight=nan: a weight is a number above 0, such as 1 or 0.5",
        "mix.yaml, part 2 (b): weight=inf: a weight is a number above 0, such as 1 or 0.5"]),
    "some weights": ([{"source": "scenes", "name": n} | w for n, w in (("a", {}), ("b", {"weight": 1}), ("c", {}))], [
        "mix.yaml, parts 1 and 3: the weight is missing; all parts have one, or none has and all rows count"]),
    "one name": ([{"source": "scenes"}, {"source": "scenes", "scenes": 3}], [
        "mix.yaml, parts 1 and 2 are both called scenes, and ids of rows begin with that: give one another name, as in "
        "name: scenes-2"]),
    "no name": ([{"source": "scenes", "name": "a/b"}], [
        "mix.yaml, part 1 (a/b): name='a/b': a name is made of letters, digits, dots, dashes and underscores"]),
    "all faults at once": ([{"source": "viscot", "limit": 0}, {"source": "coco", "input": "gs://b/x"},
                            {"source": "samples", "input": "x", "frame": "resized_pixels", "weight": 1}], [
        "mix.yaml, part 1 (viscot): limit=0: input should be greater than or equal to 1",
        "mix.yaml, part 2 (coco): input=gs://b/x: gs:// is not supported; s3://bucket/key, file:///path and plain "
        "paths are",
        "mix.yaml, part 3 (samples): frame=resized_pixels needs min_pixels and max_pixels, the limits of the processor",
        "mix.yaml, parts 1 and 2: the weight is missing; all parts have one, or none has and all rows count"]),
    "what a source needs": ([{"source": "viscot", "frame": "pixels"}, {"source": "scenes", "input": "x"}], [
        "mix.yaml, part 1 (viscot): input is missing: source viscot reads files",
        "mix.yaml, part 1 (viscot): images is missing: the folder with VisCoT's sets of images",
        "mix.yaml, part 1 (viscot): frame: source viscot does not look at it, source samples does; leave it out",
        "mix.yaml, part 2 (scenes): input: source scenes draws its rows and reads no files"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_everything_that_is_wrong_with_the_file_is_said_at_once_by_part_and_key(given: Given, fault: str) -> None:
    written, lines = BAD[fault]
    if fault == "unknown keys":  # JSON has no numbers for keys
        written = "- {source: scenes, wieght: 3, input_uri: x, 7: 1}\n"
    assert told(given, written) == lines


@pytest.mark.parametrize(
    "written", ["- source: [", "\x00", "- {[1]: 2, ? }: 3", "[" * 5000, "- !!python/name:os.system x"]
)
def test_what_is_no_yaml_or_would_run_something(given: Given, written: str) -> None:
    (line,) = told(given, written)
    assert line.startswith("mix.yaml is not YAML: ")


def test_a_file_that_is_not_there_or_is_something_else(given: Given, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--mix .*nowhere\.yaml"):
        ConvertSettings.load(flags(run_uri="r", mix=tmp_path / "nowhere.yaml"))[0].validate_files()
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    with pytest.raises(SettingsError, match="is larger than 1 MiB; it should be a list of sources"):
        ConvertSettings.load(flags(run_uri="r", mix=tmp_path / "big"))[0].validate_files()


def test_a_fifo_in_its_place_is_not_waited_for(given: Given) -> None:
    os.mkfifo(given.folder / "mix.yaml")
    loaded, _ = ConvertSettings.load(flags(run_uri="r", mix=given.folder / "mix.yaml"))
    with pytest.raises(SettingsError, match=r"--mix .*/mix\.yaml: a FIFO, not a regular file"):
        loaded.validate_files()


def test_with_a_mix_the_command_line_names_no_source() -> None:
    some = {
        "source": "coco", "input_uri": "x", "images_uri": "x", "dataset": "x", "licence": "x", "limit": 1,
        "frame": "pixels", "questions": "where", "categories": "x", "category_names": "a=b", "absent": 1,
        "unmatched_annotations": "ignore", "phrasings": "one", "scenes": 1, "min_pixels": 1, "max_pixels": 1,
        "without_image": "keep",
    }  # fmt: skip
    assert set(some) == set(OF_A_PART)
    with pytest.raises(SettingsError) as caught:
        ConvertSettings.load(flags(run_uri="r", mix="mix.yaml", **some))
    assert str(caught.value).splitlines() == [
        f"--{name.replace('_', '-')} (or VCOT_CONVERT_{name.upper()}): with --mix each part of mix.yaml says that for "
        "itself; leave it out here"
        for name in OF_A_PART
    ]
    with pytest.raises(SettingsError, match=r"--source \(or VCOT_CONVERT_SOURCE\) is missing: .*; or --mix"):
        ConvertSettings.load(flags(run_uri="r"))
