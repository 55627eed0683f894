"""Names that stand on disk and on command lines, as they were when the suite was frozen → as they are called today.

The values in `frozen.json` are compared under the old names, so that a rename changes this file and nothing else here.
"""

from __future__ import annotations

from typing import Any

FLAGS: dict[str, str] = {
    "distill --no-reanswer": "--no-answer-from-evidence",
    "train --r": "--lora-r",
    "train --batch-size": "--batch-tokens",
    "train --accumulation": "--gradient-accumulation-steps",
    "train --eval-every": "--eval-steps",
    "train --save-every": "--save-steps",
    "train --warmup": "--warmup-steps",
    "train --workers": "--dataloader-num-workers",
}
"""`train --batch-size` → what that flag is called now."""
KEYS: dict[str, str] = {}
"""Key of a line in a shard, in rejections or in a report → what it is called now."""
VALUES: dict[tuple[str, str], str] = {}
"""(key, value) of a closed list, such as a refusal's reason → what the value is called now."""
WORDS: dict[str, str] = {"the same picture": "the same image"}
"""Words in the detail of a rejection → what it says now."""


def flag(stage: str, name: str) -> str:
    return FLAGS.get(f"{stage} {name}", name)


def as_frozen(value: Any, key: str = "") -> Any:
    """The same JSON under the names that it was frozen with."""
    value = _of_one_image(value)
    old = {now: was for was, now in KEYS.items()}
    if isinstance(value, dict):
        return {old.get(name, name): as_frozen(inner, old.get(name, name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_frozen(inner, key) for inner in value]
    if key == "detail":
        for said, now in WORDS.items():
            value = value.replace(now, said)
    was = [frozen for (of, frozen), now in VALUES.items() if (of, now) == (key, value)]
    return was[0] if was else value


def _of_one_image(value: Any) -> Any:
    """Samples of version 1 had one `image`, or null, where those of version 2 have a list `images`; with several, or
    with turns, there were none.
    """
    if not (isinstance(value, dict) and "images" in value and value.get("version") == 2):
        return value
    assert len(value["images"]) <= 1
    assert "turns" not in value
    image = value["images"][0] if value["images"] else None
    return {name: inner for name, inner in value.items() if name != "images"} | {"version": 1, "image": image}


def example_as_frozen(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a Parquet file with `image` and `image_grid`, or null, in the place of lists of at most one, and
    without its way of answering, of which there was one."""
    assert len(row["images"]) == len(row["image_grids"]) <= 1
    assert row["way"] == "ground"
    rest = {name: value for name, value in row.items() if name not in ("images", "image_grids", "way")}
    return rest | {
        "image": row["images"][0] if row["images"] else None,
        "image_grid": row["image_grids"][0] if row["image_grids"] else None,
    }
