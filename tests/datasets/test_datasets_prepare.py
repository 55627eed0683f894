"""What prepare finds out about all rows: sides of near-duplicates, benchmarks, questions asked twice, shares."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some
from PIL import Image

from tests.fakes.rows import ALONE, Given, informed, metadata, scene
from vcot.datasets import ConversionContext, near_duplicates, prepare, read, rows_of_shard
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import find
from vcot.datasets.mixture import shares
from vcot.datasets.prepare import NAME, left
from vcot.datasets.row_index import benchmark_paths
from vcot.errors import InputError
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Store, images

BOX = [[1, 2, 30, 40]]


def folder_of(given: Given, name: str = "run") -> Folder:
    return Folder(Store(), str(given.folder / name), CONVERT)


def outcomes(given: Given, context: ConversionContext, source: str = "viscot", shards: int = 1) -> dict[str, str]:
    """Row → its side, or why it was refused; shards know what was looked up before, and read it from the folder."""
    folder = folder_of(given, f"run-{shards}")
    informed(context, folder, look=True, readers=2)
    found: dict[str, str] = {}
    for shard in range(shards):
        knowing = informed(context, folder, look=False)
        for row, result in read(rows_of_shard(context, shard, shards), knowing):
            assert row.id not in found
            found[row.id] = result.origin.split if isinstance(result, Sample) else result.reason.value
    return found


def sides(given: Given, rows: Iterable[Any], source: str = "viscot", **options: Any) -> list[str]:
    return list(outcomes(given, given.context(source, given.rows(list(rows)), **options)).values())


def row(image: str, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    return metadata(BOX, image=image, question=question, width=96, height=96) | more


# ------------------------------------------------------------------------------------------------------ damaged


def damaged_png(seed: int) -> bytes:
    """Header and end are sound; what is between them cannot be unpacked."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(scene(seed))).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[300:400] = bytes(100)
    return bytes(data)


def test_an_image_that_prepare_cannot_decode_is_refused_with_its_reason(given: Given) -> None:
    given.image("vsr/whole.jpg", data=scene(1))
    for name in ("damaged.png", "copied.png"):
        given.image(f"vsr/{name}", data=damaged_png(2))
    rows = [row("whole.jpg"), row("damaged.png"), row("damaged.png", "And this?"), row("copied.png", split="val")]
    context = given.context("viscot", given.rows(rows), validation_share=0)
    for shards in (1, 3):
        assert list(outcomes(given, context, shards=shards).values()).count("image-broken") == 3
    knowing = informed(context, folder_of(given, "run-1"), look=False)
    (sha256,) = knowing.prepared.damaged
    assert sha256 == hashlib.sha256(damaged_png(2)).hexdigest()
    results = [result for _, result in read(rows_of_shard(context), knowing)]
    assert isinstance(results[0], Sample)
    refused = [result for result in results[1:] if isinstance(result, Rejection)]
    assert [r.detail.partition(": ")[0].rpartition("/")[2] for r in refused] == [
        "damaged.png", "damaged.png", "copied.png"
    ]  # fmt: skip
    assert all("not a sound PNG" in r.detail for r in refused)
    assert knowing.prepared.held_out == {}, "rows that are all refused measure nothing"


def test_a_damaged_image_of_a_benchmark_takes_no_rows(given: Given) -> None:
    given.image("vsr/damaged.png", data=damaged_png(2))
    given.image("vsr/whole.jpg", data=scene(1))
    benchmark = given.rows([row("damaged.png", split="val"), row("whole.jpg", split="val")], "benchmark.jsonl")
    context = given.context("viscot", given.rows([row("damaged.png"), row("whole.jpg")]))
    context = replace(context, benchmarks=find(Store(), [benchmark]))
    assert list(outcomes(given, context).values()) == ["image-broken", "held-out"]
    (counted,) = left(folder_of(given, "run-1")).counts["benchmarks"].values()
    assert (counted["images_shared"], counted["rows_refused"]) == (1, 1)


# ------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(("near", "of_the_copy"), [(24, "held-out"), (0, "train")])
def test_near_duplicates_can_be_left_alone_and_the_same_bytes_still_count_as_one(
    given: Given, near: int, of_the_copy: str
) -> None:
    for name, quality in (("a", 90), ("b", 90), ("c", 30)):
        given.image(f"vsr/{name}.jpg", data=scene(1, quality))
    rows = [row("a.jpg", split="val"), row("b.jpg"), row("c.jpg")]
    assert sides(given, rows, near_duplicates=near, validation_share=0) == ["test", "held-out", of_the_copy]


@pytest.mark.parametrize("options", [{}, {"near_duplicates": 0}, {"near_duplicates": 0, "duplicates": "keep"}])
def test_rows_that_share_any_image_are_on_one_side(given: Given, options: dict[str, Any]) -> None:
    """Each row of a chain shows the second image of the one before it as its first; the draw alone would part them."""
    names = [given.image(f"{seed}.jpg", data=scene(seed)) for seed in range(24)]
    chains = [names[:8], names[8:16], names[16:]]
    rows = [
        {"images": [chain[n + 1], chain[n]], "question": f"{n}?", "answers": ["x"]}
        for chain in chains
        for n in range(7)
    ]
    found = sides(given, rows, source="samples", validation_share=0.5, **options)
    assert [len(set(found[start : start + 7])) for start in (0, 7, 14)] == [1, 1, 1]
    assert set(found) == {"train", "validation"}


def test_what_one_row_of_a_chain_measures_with_no_other_learns_from(given: Given) -> None:
    names = [given.image(f"{seed}.jpg", data=scene(seed)) for seed in range(10)]
    rows = [{"images": [names[n + 1], names[n]], "question": f"{n}?", "answers": ["x"]} for n in (0, 1, 2, 3, 8)]
    held = [*rows[:4], rows[4] | {"origin": {"split": "test"}}]
    bridge = {"images": [names[9], names[0]], "question": "Both?", "answers": ["x"]}
    found = sides(given, [*held, bridge], source="samples", validation_share=0)
    assert found == ["held-out"] * 4 + ["test", "held-out"]


def test_the_second_image_is_looked_at_as_the_first_is(given: Given) -> None:
    sound, copied = given.image("a.jpg", data=scene(1)), given.image("b.jpg", data=scene(2, 90))
    given.image("near.jpg", data=scene(2, 30))
    given.image("damaged.png", data=damaged_png(3))
    asked = {"question": "?", "answers": ["x"]}
    rows = [
        asked | {"image": copied, "origin": {"split": "test"}},
        asked | {"images": [sound, "near.jpg"]}, asked | {"images": [sound, "damaged.png"]}, asked | {"image": sound},
    ]  # fmt: skip
    assert sides(given, rows, source="samples", validation_share=0)[:3] == ["test", "held-out", "image-broken"]


def test_the_same_question_about_other_second_images_is_another_one(given: Given) -> None:
    sound, copied, near = (given.image(f"{n}.jpg", data=scene(n)) for n in range(3))
    asked = {"question": "?", "answers": ["x"]}
    twice = [asked | {"images": [sound, other], "origin": {"split": "train"}} for other in (copied, near, copied)]
    assert sides(given, twice, source="samples", near_duplicates=0) == ["train", "train", "duplicate"]


def test_a_row_that_says_train_takes_the_silent_rows_of_its_image_along(given: Given) -> None:
    """Or the same image would be learned from and measured with, whenever the draw says validation."""
    images = [given.image(f"{seed}.jpg", data=scene(seed)) for seed in range(8)]
    rows = [
        {"image": p, "question": f"{said}?", "answers": ["x"]} | ({"origin": {"split": said}} if said else {})
        for p in images
        for said in ("", "train")
    ]
    for options in ({}, {"near_duplicates": 0, "duplicates": "keep"}):
        context = given.context("samples", given.rows(rows), validation_share=0.9, **options)
        found = informed(context, folder_of(given, str(len(options))), look=True)
        kept = [result for _, result in read(rows_of_shard(context), found)]
        assert {r.origin.split for r in kept if isinstance(r, Sample)} == {"train"}
        assert len(kept) == 16


@pytest.mark.parametrize("how", ["changed", "another version"])
def test_what_was_looked_up_is_held_against_its_digest_and_its_version(given: Given, how: str) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    context, folder = given.context("viscot", given.rows([row("a.jpg")])), folder_of(given)
    with pytest.raises(InputError, match=f"{NAME} is missing: --part prepare comes before --part shards"):
        informed(context, folder, look=False)
    informed(context, folder, look=True)
    path = Path(folder.uri) / NAME
    found = json.loads(path.read_text())["found"]
    said = json.dumps(found, sort_keys=True) if how == "changed" else json.dumps({"held_out": {}})
    found = found | {"drawn": {"a": "train"}} if how == "changed" else {"held_out": {}}
    path.write_text(json.dumps({"sha256": hashlib.sha256(said.encode()).hexdigest(), "found": found}))
    with pytest.raises(InputError, match="is damaged" if how == "changed" else "another version of vcot made it"):
        informed(context, folder, look=False)


# --------------------------------------------------------------------------------------------------- questions


def test_a_question_is_asked_once_of_an_image_and_the_row_that_measures_stays(given: Given) -> None:
    for name, seed in (("a", 1), ("same-as-a", 1), ("b", 2), ("c", 3)):
        given.image(f"vsr/{name}.jpg", data=scene(seed))
    rows = [
        row("a.jpg", "What is it?"), row("a.jpg", "what is it"), row("same-as-a.jpg", "What is it?"),
        row("b.jpg", "What is it?"), row("a.jpg", "What is that?"),
        metadata([[30, 2, 1, 40]], image="b.jpg", question="And this?", width=96, height=96), row("b.jpg", "And this?"),
        row("c.jpg"), row("c.jpg", split="val"), row("c.jpg", split="val"),
    ]  # fmt: skip
    assert sides(given, rows, validation_share=0) == [
        "train", "duplicate", "duplicate", "train", "train", "box-inverted", "train", "held-out", "test", "duplicate",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["exact", "near"])
@pytest.mark.parametrize("source", ["viscot", "samples"])
def test_the_same_words_about_other_boxes_or_with_other_answers_are_another_question(
    given: Given, source: str, how: Any
) -> None:
    """VisCoT's OpenImages asks of two players "What is the people that wears the football helmet doing?"."""
    given.image("vsr/a.jpg", data=scene(1))

    def asks(answer: str, *boxes: list[float]) -> dict[str, Any]:
        if source == "viscot":
            return row("a.jpg", "What is the player doing?") | {"answer": answer, "bboxs": [*boxes]}
        evidence = {"evidence": [{"label": "player", "boxes": [*boxes]}]} if boxes else {}
        return {"image": "vsr/a.jpg", "question": "What is the player doing?", "answers": [answer]} | evidence

    left, right, nearly_left = [1, 2, 30, 40], [50, 2, 90, 40], [1.4, 1.2, 31, 39.5]
    rows = [
        asks("Walking", left), asks("Walking", right), asks("Running", left), asks("Walking", left, right),
        asks("walking.", nearly_left), asks("Walking", right, nearly_left), asks("Running", [4, 2, 30, 40]),
    ]  # fmt: skip
    context = given.context(source, given.rows(rows), duplicates=how)
    found = informed(context, folder_of(given), look=True).prepared.duplicates
    assert found == {"rows.jsonl:5": "rows.jsonl:1", "rows.jsonl:6": "rows.jsonl:4"}


def test_evidence_that_nobody_annotated_is_not_the_same_as_none_or_some(given: Given) -> None:
    given.image("a.jpg", data=scene(1))
    boxes = [None, [], [{"label": "bus", "boxes": BOX}]]
    rows = [{"image": "a.jpg", "question": "?", "answers": ["no"], "evidence": e} for e in boxes * 2]
    context = given.context("samples", given.rows(rows))
    found = informed(context, folder_of(given), look=True).prepared.duplicates
    assert found == {f"rows.jsonl:{n + 3}": f"rows.jsonl:{n}" for n in (1, 2, 3)}


def test_a_row_and_its_other_form_are_duplicates_though_each_rounds_its_box(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    same = metadata([[100.63, 100.2, 310.71, 240.9]], image="a.jpg", question="Why?", answer="So.")
    assert isinstance(given.sample("viscot", same), Sample)
    turns = ["<image>\nWhy?", "[0.157, 0.282, 0.485, 0.501]", "<image>", "So."]
    other = {
        "dataset": "vsr", "question_id": 1, "image": ["cot/vsr/a.jpg", "cot/vsr/a.jpg###[100, 100, 310, 240]"],
        "conversations": [
            {"from": who, "value": turn} for who, turn in zip(("human", "gpt") * 2, turns, strict=True)
        ],
    }  # fmt: skip
    uris = given.rows([same], "metadata.jsonl"), given.rows([other], "chat.jsonl")
    found = informed(given.context("viscot", *uris), folder_of(given), look=True)
    assert found.prepared.duplicates == {"chat.jsonl:1": "metadata.jsonl:1"}


SEEDS = [(0, "several"), (1, "one"), (2, "several")]


def test_coco_repeats_the_same_rows_under_every_seed_and_phrasing(given: Given) -> None:
    """An image that the file has three times: once more as it is, once annotated otherwise."""
    for name in "abc":
        given.image(f"{name}.jpg", data=scene(1))
    file = given.folder / "instances.json"
    boxes = {1: ([1, 2, 30, 40], [50, 2, 30, 40]), 2: ([1, 2, 30, 40], [50, 2, 30, 40]), 3: ([1, 40, 30, 40],)}
    file.write_text(
        json.dumps({
            "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate("abc", 1)],
            "categories": [{"id": n, "name": name} for n, name in enumerate(("cup", "cups", "dog"), 1)],
            "annotations": [{"image_id": n, "category_id": 1, "bbox": box} for n in boxes for box in boxes[n]],
        })
    )  # fmt: skip
    refused = []
    for seed, phrasings in SEEDS:
        context = given.context("coco", str(file), seed=seed, phrasings=phrasings, absent=2)
        told = informed(context, folder_of(given, f"{seed}-{phrasings}"), look=True)
        refused.append(told.prepared.duplicates)
    of_two = {f"instances.json:2:{kind}:cup": f"instances.json:1:{kind}:cup" for kind in ("count", "point", "presence")}
    assert refused == refused[:1] * len(SEEDS)
    assert of_two.items() <= refused[0].items()
    assert {name.split(":")[3] for name in refused[0].keys() - of_two.keys()} == {"cups", "dog"}  # none is there


@pytest.mark.parametrize(
    ("how", "found"), [("exact", ["train"] * 3 + ["duplicate"]), ("near", ["train", "duplicate"] * 2),
                       ("keep", ["train"] * 4)],
)  # fmt: skip
def test_nearly_the_same_question_when_it_is_asked_for(given: Given, how: Any, found: list[str]) -> None:
    given.image("vsr/a.jpg", data=scene(1))
    asked = [f"What is the colour of the large bus on the left side of the {w}?" for w in ("road", "roads")]
    rows = [row("a.jpg", question) for question in (*asked, "Why?", "Why?")]
    assert sides(given, rows, duplicates=how, validation_share=0) == found


# ---------------------------------------------------------------------------------------------------- benchmarks


def with_benchmark(given: Given, context: ConversionContext, uri: str, images: Path | None) -> ConversionContext:
    shown = None if images is None else DatasetImages(Store(), str(images), str(given.folder / "made"))
    return replace(context, benchmarks=find(Store(), [uri]), benchmark_images=shown)


def test_a_benchmarks_image_is_known_by_its_content_or_by_its_name(given: Given) -> None:
    for name, seed, q in (("a", 1, 90), ("copy-of-a", 1, 30), ("000000000007", 2, 90), ("c", 3, 90), ("d", 4, 90)):
        given.image(f"vsr/{name}.jpg", data=scene(seed, q))
    shown = [
        {"img_path": "cot/vsr/a.jpg", "expression": "?", "bbox": BOX[0]},
        {"img_path": "COCO_train2014_000000000007.jpg", "expression": "it", "bbox": BOX[0], "sent_id": 1},
        {"dataset": "vsr", "image": ["cot/vsr/nowhere.jpg", "cot/vsr/nowhere.jpg###[1, 2, 3, 4]"], "conversations": []},
        {"dataset": "other", "image": "c.jpg"},  # the same file name in another set is another image
    ]
    rows = [row(f"{name}.jpg") for name in ("a", "copy-of-a", "000000000007", "c", "d")] + [row("d.jpg", split="val")]
    context = given.context("viscot", given.rows(rows), validation_share=0)
    benchmark = given.rows(shown, "bench.jsonl")
    told = outcomes(given, with_benchmark(given, context, benchmark, None))
    assert list(told.values()) == ["held-out", "held-out", "held-out", "train", "held-out", "test"]
    assert left(folder_of(given, "run-1")).counts["benchmarks"] == {
        "bench.jsonl": {
            "rows": 4, "images": 4, "images_found": 2, "images_shared": 2, "rows_with_a_shared_image": 2,
            "rows_refused": 3,
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"img_path": "cot/textcap/a.jpg", "expression": "x", "bbox": [1, 2, 3, 4]}, "textvqa/a.jpg"),
        ({"dataset": "v7w", "image": ["cot/v7w/a.jpg", "cot/v7w/a.jpg###[1, 2, 3, 4]"]}, "v7w/a.jpg"),
        (metadata([[1, 2, 3, 4]], image="a.jpg", dataset="textcap"), "textvqa/a.jpg"),
        (metadata([[1, 2, 3, 4]], image="001.Albatross/a.jpg", dataset="cub"), "cub/001.Albatross/a.jpg"),
        ({"image": "mine/deep/a.jpg", "question": "?", "answers": ["x"]}, "mine/deep/a.jpg"),
        ({"image": {"uri": "s3://b/images/a.jpg"}}, "s3://b/images/a.jpg"),
        ({"image": {"file_name": "train2014/a.jpg"}}, "train2014/a.jpg"),
    ],
)
def test_the_path_that_a_row_names(given: Given, row: dict[str, Any], path: str) -> None:
    (file,) = given.context("viscot", given.rows([row])).inputs
    assert list(benchmark_paths(given.context("viscot").store, file)) == [path]


def test_a_benchmark_without_images_is_no_benchmark(given: Given) -> None:
    wrong = given.rows([{"image": "cot/vsr/a.jpg"}, {"question": "?", "answer": "!"}], "bench.jsonl")
    (file,) = given.context("viscot", wrong).inputs
    with pytest.raises(InputError, match=r"bench.jsonl:2 names no image: it has the fields question, answer"):
        list(benchmark_paths(Store(), file))


# ------------------------------------------------------------------------------------------------- in any shards

ROWS = some.lists(
    some.tuples(
        some.integers(0, 5),  # which image
        some.sampled_from([(90, 96), (30, 96), (90, 64)]),  # which copy of it
        some.sampled_from([None, "train", "validation", "test"]),
        some.sampled_from(["Why?", "why", "Where is it?"]),
    ),
    min_size=1,
    max_size=14,
)


@tuned(max_examples=8, deadline=None)
@for_all(ROWS, some.integers(1, 5), some.sampled_from(["exact", "near", "keep"]), some.sampled_from([0, 24]))
def test_any_number_of_shards_gives_the_same_samples_and_no_group_crosses(
    drawn: list[Any], shards: int, duplicates: Any, near: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        rows = []
        for seed, (quality, size), split, question in drawn:
            path = given.image(f"{seed}-{quality}-{size}.jpg", data=scene(seed, quality, size))
            rows.append({"image": path, "question": question, "answers": ["x"], "origin": {"split": split}})
        context = given.context(
            "samples", given.rows(rows), duplicates=duplicates, near_duplicates=near, validation_share=0.5
        )
        one = outcomes(given, context, "samples")
        assert len(one) == len(rows)
        assert outcomes(given, context, "samples", shards=shards) == one
        of_group: dict[Any, set[str]] = {}
        for (seed, copy, _, _), side in zip(drawn, one.values(), strict=True):
            if side in ("train", "validation", "test"):
                of_group.setdefault(seed if near else (seed, copy), set()).add(side)
        assert all(len(found) == 1 for found in of_group.values())
        asked = [
            (seed, copy, question.casefold().strip("?"))
            for (seed, copy, _, question), side in zip(drawn, one.values(), strict=True)
            if side in ("train", "validation", "test")
        ]
        assert duplicates == "keep" or len(set(asked)) == len(asked)


# ---------------------------------------------------------------------------------------------- shares by weight

WEIGHT = some.fractions(min_value=Fraction(1, 1000), max_value=1000)


@tuned(max_examples=30)
@for_all(some.dictionaries(some.text(), some.tuples(some.integers(1, 10**7), WEIGHT), min_size=1))
def test_the_largest_mix_in_these_proportions_repeats_no_row(parts: dict[str, tuple[int, Fraction]]) -> None:
    found = shares({name: rows for name, (rows, _) in parts.items()}, {name: w for name, (_, w) in parts.items()})
    assert max(found.values()) == 1.0  # one part is there as a whole, and rounding takes no row of it
    assert min(found.values()) > 0
    first = next(iter(parts))
    for name, (rows, weight) in parts.items():
        there, there_first = found[name] * rows, found[first] * parts[first][0]
        assert there / there_first == pytest.approx(float(weight / parts[first][1]))


def weighted(given: Given, name: str, rows: int, weight: str | None, seed: int = 0) -> ConversionContext:
    uri = given.rows([{"image": "a.png", "question": f"{n}?", "answers": ["x"]} for n in range(rows)], f"{name}.jsonl")
    context = given.context("samples", uri, near_duplicates=0, duplicates="keep", seed=seed)
    return replace(context, part=name, weight=None if weight is None else Fraction(weight))


def drawn_of(
    given: Given, parts: list[ConversionContext], name: str, shards: int = 1
) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Part → ids of its rows that are drawn, and how many are not."""
    folder = Folder(Store(), str(given.folder / name), CONVERT)
    known = prepare.informed(parts, folder, look=True, workers=ALONE, readers=1)
    assert prepare.informed(parts, folder, look=False, workers=ALONE, readers=1) == known
    ids: dict[str, set[str]] = {}
    left: dict[str, int] = {}
    for part in known:
        out: list[int] = []
        found = [row.id for n in range(shards) for row in rows_of_shard(part, n, shards, partial(out.append, 1))]
        ids[part.part], left[part.part] = set(found), len(out)
        assert len(found) == len(ids[part.part])
    return ids, left


def test_ten_thousand_rows_come_in_the_wanted_proportions_and_none_is_lost(given: Given) -> None:
    rows = {"a": 6_000, "b": 2_500, "c": 1_500}
    weights = {"a": "3", "b": "2.5", "c": "0.5"}
    parts = [weighted(given, name, n, weights[name]) for name, n in rows.items()]
    ids, left = drawn_of(given, parts, "run")
    assert {name: len(ids[name]) + left[name] for name in rows} == rows
    expected = {"a": 3_000, "b": 2_500, "c": 500}
    assert len(ids["b"]) == 2_500  # what is wanted most for its size is there as a whole
    for name, wanted in expected.items():
        share = wanted / rows[name]
        assert abs(len(ids[name]) - wanted) <= 4 * math.sqrt(rows[name] * share * (1 - share))
    numbers = sorted(int(name.rpartition(":")[2]) for name in ids["a"])
    assert abs(sum(numbers) / len(numbers) - 3_000) < 4 * 6_000 / math.sqrt(12 * 3_000)  # not the first ones
    assert drawn_of(given, parts, "shards", shards=7) == (ids, left)
    other, _ = drawn_of(given, [weighted(given, name, n, weights[name], seed=1) for name, n in rows.items()], "seed")
    assert 1_250 < len(ids["a"] & other["a"]) < 1_750  # another seed, another half


# ------------------------------------------------------------------------- which images are nearly the same


def bits(data: bytes) -> np.ndarray:
    found = near_duplicates.fingerprint(images.small(data, "a", near_duplicates.SEEN))
    assert found is not None
    return np.frombuffer(found, np.uint8)


def test_an_image_is_looked_at_upright() -> None:
    image = Image.effect_noise((200, 120), 80).resize((400, 240))
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer, straight = io.BytesIO(), io.BytesIO()
    image.save(straight, "JPEG")
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=turned)
    assert int(np.bitwise_count(bits(buffer.getvalue()) ^ bits(straight.getvalue())).sum()) <= 4


def prints(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, near_duplicates.BYTES), dtype=np.uint8)


def noisy(count: int, flips: float, seed: int = 0) -> np.ndarray:
    """One fingerprint in which each bit is turned over by chance: a scanned form, the frames of a still camera."""
    dice = np.random.default_rng(seed)
    one = dice.random(near_duplicates.BITS) < 0.5
    return np.packbits(one ^ (dice.random((count, near_duplicates.BITS)) < flips / near_duplicates.BITS), axis=1)


def drifting(count: int, flips: float, seed: int = 0) -> np.ndarray:
    """Each a little unlike the one before it: the frames of a moving camera."""
    dice = np.random.default_rng(seed)
    turned = dice.random((count, near_duplicates.BITS)) < flips / near_duplicates.BITS
    return np.packbits(np.cumsum(turned, axis=0) & 1, axis=1)


def members(groups: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)}


def compared_all(many: np.ndarray, at_most: int) -> set[frozenset[int]]:
    """The groups, by comparing all with all."""
    groups = np.arange(len(many))
    for one in range(len(many)):
        near = np.bitwise_count(many[one] ^ many).sum(axis=1) <= at_most
        groups[np.isin(groups, groups[near])] = one
    return members(groups)


@tuned(max_examples=40, deadline=None)
@for_all(
    some.lists(some.tuples(some.sampled_from([noisy, drifting]), some.integers(1, 40), some.floats(0, 8)), max_size=4),
    some.integers(0, 1 << 32),
    some.integers(8, 16),
)
def test_groups_are_those_that_comparing_all_with_all_gives(drawn: Any, seed: int, at_most: int) -> None:
    """At up to 16 bits, where one pair in ten millions is missed."""
    parts = [make(count, flips, seed + place) for place, (make, count, flips) in enumerate(drawn)]
    many = np.random.default_rng(seed).permutation(np.concatenate([prints(3, seed), *parts]))
    assert members(near_duplicates.groups(many, at_most)) == compared_all(many, at_most)


def test_thousands_of_alike_images_take_no_more_memory_than_others() -> None:
    """Pairs of them are hundreds of millions. Bytes an image, so that no pair of each can be held."""
    many = np.concatenate([noisy(10_000, 3, n) for n in (1, 2, 3)])
    tracemalloc.start()
    try:
        found = near_duplicates.groups(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.bincount(found).max() >= 10_000
    assert peak / len(many) < 500
