"""Several sources in one run: the file that says so, what it refuses, and what comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import OF_A_PART, ConvertSettings
from tests.fakes.convert import flags, rejections, report, samples, stage
from tests.fakes.rows import ONE_AND_TWO, Given, instances, metadata, scene
from tests.storage.tars import tar
from vcot.datasets import DATASETS
from vcot.errors import InputError, SettingsError
from vcot.records import Sample
from vcot.uris import pieces

pytestmark = pytest.mark.usefixtures("clean")
Mixed = list[dict[str, Any]]


def mix(given: Given, parts: Any, name: str = "mix.yaml") -> Path:
    """JSON is YAML, too."""
    path = given.folder / name
    path.write_text(parts if isinstance(parts, str) else json.dumps(parts, default=str))
    return path


def convert(run_uri: Path | str, mix_uri: Path | str, **settings: Any) -> list[Sample]:
    stage(run_uri, mix=mix_uri, **settings)
    return samples(run_uri)


def of_viscot(given: Given, count: int = 30) -> dict[str, Any]:
    rows = []
    for n in range(count):
        given.image(f"vsr/{n // 2}.png", 90, 100 + n // 2)
        box = [[1, 2, 30, 40]] if n != 5 else [[30, 2, 1, 40]]
        rows.append(metadata(box, image=f"{n // 2}.png", width=90, height=100 + n // 2, question=f"What is {n}?"))
    return {"source": "viscot", "input": given.rows(rows, "viscot.jsonl"), "images": given.images}


def of_coco(given: Given) -> dict[str, Any]:
    return {"source": "coco", "input": instances(given, ONE_AND_TWO), "images": given.images}


def asked(image: str, question: str = "?", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": question, "answers": ["x"]} | more


def of_samples(given: Given, name: str, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A part of this name, whose rows lie in a file of this name."""
    uri = given.rows(list(rows), f"{name}.jsonl")
    return {"source": "samples", "name": name, "input": uri, "images": given.images} | more


@pytest.mark.parametrize("weights", [({}, {}, {}), ({"weight": 3}, {"weight": 1}, {"weight": 0.5})])
def test_any_number_of_shards_makes_the_same_set(given: Given, tmp_path: Path, weights: Any) -> None:
    parts = [of_viscot(given), of_coco(given), {"source": "scenes", "scenes": 10, "questions": ["where", "count"]}]
    parts = [part | weight for part, weight in zip(parts, weights, strict=True)]
    path, made = mix(given, parts), {}
    for shards in (1, 3, 7):
        kept = convert(
            tmp_path / f"{shards}", path, num_shards=shards, stored_images_uri=tmp_path / "made", validation_share=0.3
        )
        made[shards] = (
            sorted(sample.line() for sample in kept),
            sorted(rejection.line() for rejection in rejections(tmp_path / f"{shards}")),
            report(tmp_path / f"{shards}")["mix"],
        )
        assert len({sample.id for sample in kept}) == len(kept)
    assert made[1] == made[3] == made[7]
    names = {json.loads(line)["id"].partition("/")[0] for line in made[1][0]}
    assert names == {"viscot", "coco", "scenes"}


def test_the_report_says_what_each_part_brought(given: Given, tmp_path: Path) -> None:
    viscot, coco = of_viscot(given, 40), of_coco(given)
    path = mix(given, [viscot | {"weight": 1}, coco | {"name": "cups", "weight": 0.5, "limit": 6}])
    kept = convert(tmp_path / "run", path)
    found = report(tmp_path / "run")
    by_name = {part["name"]: part for part in found["mix"]}
    assert [part["name"] for part in found["mix"]] == ["viscot", "cups"]
    assert by_name["cups"] | {"drawn": 0, "learned": 0} == {
        "name": "cups", "source": "coco", "rows": 6, "not_drawn": 0, "kept": 6, "rejected": {},
        "wanted": pytest.approx(1 / 3), "drawn": 0, "learned": 0,
    }  # fmt: skip
    one = by_name["viscot"]
    assert one["rows"] == 40
    assert one["not_drawn"] + one["kept"] + sum(one["rejected"].values()) == 40
    assert one["not_drawn"] > 0
    assert found["row_counts"]["rows"] == 46 - one["not_drawn"]
    assert found["row_counts"]["kept"] == one["kept"] + 6 == len(kept)
    train = [sample for sample in kept if sample.origin.split == "train"]
    assert one["learned"] == sum(sample.id.startswith("viscot/") for sample in train) / len(train)
    assert found["source"] == "viscot, coco"


@pytest.mark.parametrize(
    ("one", "other", "kept", "refused"),
    [
        (  # what holds for all may be said otherwise for a part
            ({"dataset": "d", "licence": "CC0"}, ["1", "thin"]),
            ({"max_box_aspect": 1000, "splits": "by-content"}, ["thin"]),
            ["one/one.jsonl:1"], {"one/one.jsonl:2": "box-too-thin", "other/other.jsonl:1": "held-out"},
        ),
        (  # a question is asked once, whichever part asks it
            ({}, ["1", "2"]), ({}, ["2", "3"]),
            ["one/one.jsonl:1", "one/one.jsonl:2", "other/other.jsonl:2"], {"other/other.jsonl:1": "duplicate"},
        ),
        (  # ids never meet, whatever rows say theirs is
            ({}, ["1#7", "2#b", "3", "4#b", "5#rows.jsonl:3"]), ({"limit": 2}, ["6#one/7", "7#b", "8#b"]),
            ["one/7", "one/one.jsonl:2:b", "one/one.jsonl:3", "one/one.jsonl:4:b", "one/rows.jsonl:3", "other/b",
             "other/one/7"], {},
        ),
    ],
)  # fmt: skip
def test_rows_of_two_parts_in_one_run(
    given: Given, tmp_path: Path, one: Any, other: Any, kept: list[str], refused: dict[str, str]
) -> None:
    """Rows by their question, and behind a # their id; all are about one image."""
    given.image("wide.png", 400, 40)

    def row(said: str) -> dict[str, Any]:
        question, _, own = said.partition("#")
        evidence = [{"label": "it", "boxes": [[0, 0, 400, 1]]}] if question == "thin" else None
        more = {"origin": {"split": "test"}, "evidence": evidence} | ({"id": own} if own else {})
        return asked("wide.png", question, **more)

    parts = [of_samples(given, n, *map(row, rows), **keys) for n, (keys, rows) in (("one", one), ("other", other))]
    found = convert(tmp_path / "run", mix(given, parts), max_box_aspect=50, max_rejected_share=0.9)
    assert [sample.id for sample in found] == kept
    assert {rejection.id: rejection.reason.value for rejection in rejections(tmp_path / "run")} == refused
    if "licence" in one[0]:
        assert (found[0].origin.dataset, found[0].origin.licence) == ("d", "CC0")


def test_what_is_not_drawn_holds_nothing_out_and_is_repeated_by_nobody(given: Given, tmp_path: Path) -> None:
    names = [given.image(f"{n}.png", 30 + n, 20) for n in range(40)]
    parts = [
        of_samples(given, "mine", *(asked(name, origin={"split": "test"}) for name in names), weight=1),
        of_samples(given, "yours", *(asked(name, origin={"split": "train"}) for name in names), weight=4),
    ]
    kept = convert(tmp_path / "run", mix(given, parts), max_rejected_share=0.5)
    drawn = {s.image.uri for s in kept if s.id.startswith("mine/")}
    assert 0 < len(drawn) < 40
    rest = {str(given.images / name) for name in names} - drawn
    assert {s.image.uri for s in kept if s.id.startswith("yours/")} == rest
    assert len(rejections(tmp_path / "run")) == len(drawn)


def test_a_benchmark_is_kept_out_of_every_part_wherever_its_images_lie(given: Given, tmp_path: Path) -> None:
    elsewhere = Given(given.folder / "elsewhere")
    elsewhere.image("b.jpg", data=scene(2))
    names = [given.image(f"{name}.jpg", data=scene(n)) for n, name in enumerate(("a", "copy-of-b", "c"), 1)]
    parts = [of_samples(given, "mine", *map(asked, names)), of_samples(elsewhere, "other", asked("b.jpg", "Why?"))]
    shown = given.rows([{"img_path": "b.jpg"}], "bench.jsonl")
    kept = convert(tmp_path / "run", mix(given, parts), exclude_benchmarks=shown, max_rejected_share=0.5)
    assert {s.id for s in kept} == {"mine/mine.jsonl:1", "mine/mine.jsonl:3"}
    assert report(tmp_path / "run")["benchmarks"]["bench.jsonl"]["rows_refused"] == 2


def test_archives_and_copies_work_in_every_part(given: Given, tmp_path: Path) -> None:
    mine = [asked(given.image(f"big-{n}.jpg", data=scene(n, size=200))) for n in range(3)]
    parts = [of_viscot(given, 5), of_samples(given, "mine", *mine)]
    data = {p.relative_to(given.images): p.read_bytes() for p in given.images.rglob("*.*")}
    for part, top in zip(parts, ("cot_image_data/", ""), strict=True):
        part["images"] = given.folder / f"{part['source']}.tar"
        part["images"].write_bytes(tar({f"{top}{path}": said for path, said in data.items()}))
    kept = convert(tmp_path / "run", mix(given, parts), ingest=True, ingest_pixels=28 * 28 * 10)
    assert [s.id.partition("/")[0] for s in kept] == ["mine"] * 3 + ["viscot"] * 5
    assert all(pieces(s.image.uri) and s.image.kept.width * s.image.kept.height <= 7840 for s in kept)


def test_what_does_not_fit_the_rows_is_said_with_the_name_of_their_part(given: Given, tmp_path: Path) -> None:
    parts = [{"source": "scenes", "scenes": 3}, of_samples(given, "chat", {"image": "a.png", "messages": []})]
    with pytest.raises(InputError, match=r"^part chat: images .*/images: there is nothing in that folder$"):
        convert(tmp_path / "empty", mix(given, parts))
    given.image("a.png")
    with pytest.raises(SettingsError, match=r"^part chat: --frame is missing: chat/chat.jsonl:1 is a chat message"):
        convert(tmp_path / "no-frame", mix(given, parts))


def told(given: Given, parts: Any, **settings: Any) -> list[str]:
    """What --check says is wrong."""
    loaded, _ = ConvertSettings.load(flags(run_uri="r", mix=mix(given, parts), **settings))
    with pytest.raises(SettingsError) as caught:
        loaded.validate_files()
    return str(caught.value).replace(f"{given.folder}/", "").splitlines()


BAD: dict[str, tuple[Any, list[str]]] = {
    "names": (["coco", "viscot"], ["mix.yaml should be a list of parts, each beginning with '- source: …' and its "
                                   "other keys below that; it is ['coco', 'viscot']"]),
    "a dash too few": ("- source: scenes\n  scenes: 3\n  source: coco\n", [
        "mix.yaml, lines 1 and 3: source stands twice in one part; does a dash before it belong there?"]),
    "no source": ([{"input": "x"}], [
        "mix.yaml, part 1: source is missing: what kind of dataset the input is; or --mix"]),
    "unknown source": ([{"source": "vizcot", "input": "x"}], [
        f"mix.yaml, part 1 (vizcot): source=vizcot: input should be {', '.join(map(repr, list(DATASETS)[:-1]))} or "
        f"{list(DATASETS)[-1]!r}"]),
    "unknown keys": ([{"source": "scenes", "wieght": 3, "input_uri": "x", 7: 1}], [
        "mix.yaml, part 1 (scenes): wieght: no such key; did you mean weight?",
        "mix.yaml, part 1 (scenes): input_uri: no such key; did you mean input?",
        "mix.yaml, part 1 (scenes): 7: no such key"]),
    "for the whole run": ([{"source": "scenes", "seed": 3}], [
        "mix.yaml, part 1 (scenes): seed is one for all parts; give --seed (or VCOT_CONVERT_SEED)"]),
    "weights": ("\n".join(f"- {{source: scenes, weight: {w}, name: w{w}}}" for w in (0, ".nan", "true", "1e3", 2)), [
        f"mix.yaml, part {number} (w{w}): weight={said}: a weight is a number above 0, such as 1 or 0.5"
        for number, (w, said) in enumerate(((0, 0), (".nan", "nan"), ("true", True), ("1e3", "'1e3'")), 1)]),
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
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("nowhere.yaml", r"--mix .*nowhere\.yaml"), ("big", "is larger than 1 MiB; it should be a list of sources"),
        ("fifo", "--mix .*/fifo: a FIFO, not a regular file"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=said):
            ConvertSettings.load(flags(run_uri="r", mix=tmp_path / name))[0].validate_files()


def test_with_a_mix_the_command_line_names_no_source() -> None:
    some = {
        "source": "coco", "input_uri": "x", "images_uri": "x", "dataset": "x", "licence": "x", "limit": 1,
        "frame": "pixels", "questions": "where", "categories": "x", "category_names": "a=b", "absent": 1,
        "absent_by": "random", "unmatched_annotations": "ignore", "phrasings": "one", "scenes": 1, "min_pixels": 1,
        "max_pixels": 1, "without_image": "keep", "world": "routes", "steps": "1", "side": 4, "held_out": 1,
        "held_out_steps": "1", "reasoning_steps": "1", "written": "places", "min_routes": "2",
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
