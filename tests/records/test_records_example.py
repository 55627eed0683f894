"""Examples in Parquet: read back as written, opened by `datasets`, the same bytes each time."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from vcot.errors import InputError
from vcot.records.example import GROUP_ROWS, IGNORED, Example, Examples, ExampleSink, Row


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 28), (number % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def example(number: int, image: int = 1) -> Example:
    ids = tuple(range(number, number + 5 + number % 7))
    return Example(
        id=f"s{number}#0", sample=f"s{number}", alternative=number % 3, split="train" if number % 4 else "validation",
        ids=ids, labels=(IGNORED, IGNORED, *ids[2:]), images=(png(number),) * image, image_grids=((1, 2, 4),) * image,
        shrunk=number % 5 == 0, way="ground" if number % 9 else "direct",
    )  # fmt: skip


def write(path: Path, examples: list[Example]) -> Path:
    sink = ExampleSink(path)
    for one in examples:
        sink.write(one)
    sink.close()
    return path


def test_examples_are_read_as_they_were_written_in_any_order(tmp_path: Path) -> None:
    first = [example(n, image=n % 3) for n in range(70)]
    second = [example(n) for n in range(100, 103)]
    found = Examples([write(tmp_path / "a", first), write(tmp_path / "none", []), write(tmp_path / "b", second)])
    assert (tmp_path / "a").read_bytes() == write(tmp_path / "again", first).read_bytes()
    assert len(found) == 73
    assert found.rows[8:10] == [
        Row("s8#0", "s8", 2, "validation", 6, 16), Row("s9#0", "s9", 0, "train", 7, 0, "direct"),
    ]  # fmt: skip
    assert [found[i] for i in (72, 0, 69, 70, 33, -1)] == [
        second[2], first[0], first[69], second[0], first[33], second[2],
    ]  # fmt: skip
    assert list(found) == first + second
    with pytest.raises(IndexError):
        found[73]
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301  (to a worker process, without open files)
    assert not copy._groups
    assert copy[72] == second[2]


def test_row_groups_are_bounded_by_rows_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows", [example(n) for n in range(2 * GROUP_ROWS + 1)])
    monkeypatch.setattr("vcot.records.example.GROUPS_IN_MEMORY", 2)
    found = Examples([path])
    assert (len(list(found)), len(found._groups)) == (2 * GROUP_ROWS + 1, 2)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [GROUP_ROWS, GROUP_ROWS, 1]
    monkeypatch.setattr("vcot.records.example.GROUP_BYTES", 3 * len(png(1)))
    path = write(tmp_path / "bytes", [example(n) for n in range(10)])
    assert pq.ParquetFile(path).metadata.num_row_groups >= 4


def test_datasets_opens_the_file_as_it_is_with_images_as_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    path = write(tmp_path / "00000-abc.parquet", [example(n, image=n % 3) for n in range(40)])
    table = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), streaming=False
    )
    assert table.features["images"] == datasets.List(datasets.Image())
    assert table.features["ids"] == datasets.List(datasets.Value("int32"))
    row = table[5]
    assert [image.size for image in row["images"]] == [(56, 28)] * 2
    assert row["images"][1].getpixel((0, 0)) == (5, 0, 0)
    wanted = example(5)
    assert (tuple(row["ids"]), tuple(row["labels"])) == (wanted.ids, wanted.labels)
    assert row["image_grids"] == [[1, 2, 4]] * 2
    assert table[3]["images"] == table[3]["image_grids"] == []
    streamed = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    assert next(iter(streamed))["id"] == "s0#0"


def test_a_file_that_is_cut_or_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    import pyarrow as pa

    whole = write(tmp_path / "whole", [example(1)]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"cut\.parquet: not a Parquet file"):
        Examples([tmp_path / "cut.parquet"])
    pq.write_table(pa.table({"id": ["a"], "ids": [[1]]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"other\.parquet: not a file of examples; it has no column alternative"):
        Examples([tmp_path / "other.parquet"])


def test_ids_and_labels_of_different_length_are_no_example() -> None:
    with pytest.raises(ValueError, match="2 ids and 1 labels"):
        Example("a", "a", 0, "train", (1, 2), (1,))
    with pytest.raises(ValueError, match="come together"):
        Example("a", "a", 0, "train", (1,), (1,), images=(b"x",))


def test_a_file_of_the_time_of_one_image_is_read(tmp_path: Path) -> None:
    """Columns as they were: image {bytes, path} and image_grid, null in an example without one."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    tokens = pa.list_(pa.int32())
    schema = pa.schema(
        {
            "id": pa.string(), "sample": pa.string(), "alternative": pa.int32(), "split": pa.string(), "ids": tokens,
            "labels": tokens, "image": image, "image_grid": tokens, "shrunk": pa.bool_(),
        }
    )  # fmt: skip
    rows = []
    for one in (wanted := [example(1, image=1), example(2, image=0)]):
        rows.append({name: value for name, value in vars(one).items() if name != "way" and name[:5] != "image"})
        rows[-1]["image"] = {"bytes": one.images[0], "path": None} if one.images else None
        rows[-1]["image_grid"] = one.image_grids[0] if one.images else None
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "old.parquet")
    found = Examples([tmp_path / "old.parquet"])
    assert list(found) == wanted
    assert [(row.patches, row.way) for row in found.rows] == [(8, "ground"), (0, "ground")]
