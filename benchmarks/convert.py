"""How fast rows become Samples, and in how much memory.

    python -m benchmarks.convert --rows 400000 --processes 2

VisCoT's rows beside the checkout (shared/data/viscot, or TEST_DATA_DIR), repeated under other names of images until
there are enough. The images are not there: their sizes and digests come from an index, as `prepare` of a second run
leaves one. Every check is on but the search for near-duplicates, which is timed apart: by a prepare that does nothing
more, with fingerprints from the index, drawn at random. The parts are processes of `jobs.convert`, the shards all at
once. Beside them, what orjson alone takes to parse the same input and to write the same output. Seconds of CPU count;
those of the clock belong to whoever else is on the machine, too.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot"
SMALL = 10_000
NEAR = "near-duplicates"
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--processes", type=int, default=2, help="shards, each a process")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    options = parser.parse_args()
    # A server off which processes are forked is waited for by nobody: it becomes this one's when the stage has ended.
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        parser.error("this measures processes on Linux alone")
    if not DATA.is_dir():
        parser.error(f"VisCoT's rows are not in {DATA}")
    print(f"{os.cpu_count()} cores, load of the last minute {os.getloadavg()[0]:.1f}, niceness {os.nice(0)}")
    for form in options.forms:
        with tempfile.TemporaryDirectory(prefix="convert-") as folder:
            small = converted(Path(folder) / "small", form, SMALL, options.processes)
            large = converted(Path(folder) / "large", form, options.rows, options.processes)
            tell(form, options.rows, large, small)
            apart(yardstick, Path(folder) / "large", form, options.rows)


@dataclass(frozen=True)
class Cost:
    """Of one part: seconds of the clock, seconds of CPU of all its processes, MiB of the largest of them."""

    wall: float
    cpu: float
    peak: float


def converted(folder: Path, form: str, rows: int, processes: int) -> dict[str, Cost]:
    """Part → what it cost."""
    folder.mkdir()
    apart(FORMS[form], folder, rows)
    read = [
        "--source", "viscot", "--input-uri", str(folder / f"rows.{SUFFIX[form]}"), "--images-uri",
        str(folder / "images"), "--num-shards", str(processes), "--processes", str(processes), "--max-rejected-share",
        "0.1",
    ]  # fmt: skip
    settings = [*read, "--run-uri", str(folder / "run"), "--near-duplicates", "0"]
    shards = [["--part", "shards", "--shard", str(shard)] for shard in range(processes)]
    return {
        "prepare": cost([[*settings, "--part", "prepare"]]),
        "shards": cost([[*settings, *shard] for shard in shards]),
        "finish": cost([[*settings, "--part", "finish"]]),
        NEAR: cost([[*read, "--run-uri", str(folder / "near"), "--part", "prepare"]]),
    }


def cost(all_settings: Sequence[Sequence[str]]) -> Cost:
    # Bytecode is kept, as in an image: without it a process begins with seconds of compiling libraries.
    clean = {n: v for n, v in os.environ.items() if not n.startswith("VCOT_") and n != "PYTHONDONTWRITEBYTECODE"}
    log = tempfile.TemporaryFile()  # noqa: SIM115 (gone with the process)
    begun = time.monotonic()
    pids = [
        subprocess.Popen(
            [sys.executable, "-m", "jobs.convert", *settings], cwd=ROOT, env=clean | {"OMP_NUM_THREADS": "1"},
            stderr=log,
        ).pid
        for settings in all_settings
    ]  # fmt: skip
    ended = {pid: os.wait4(pid, 0) for pid in pids}
    wall = time.monotonic() - begun
    with suppress(ChildProcessError):  # what they have left running, until that has ended, too
        while found := os.wait4(-1, 0):
            ended[found[0]] = found
    if any(ended[pid][1] for pid in pids):
        log.seek(0)
        raise SystemExit(f"convert {' '.join(all_settings[0])} failed:\n{log.read().decode()}")
    used = [usage for _, _, usage in ended.values()]
    return Cost(wall, sum(u.ru_utime + u.ru_stime for u in used), max(u.ru_maxrss for u in used) / 1024)


def tell(form: str, rows: int, large: dict[str, Cost], small: dict[str, Cost]) -> None:
    near = large.pop(NEAR)
    total = Cost(sum(c.wall for c in large.values()), sum(c.cpu for c in large.values()), 0)
    print(f"\n{form}: {rows:,} rows")
    for part, cost in large.items():
        more = cost.peak / small[part].peak - 1
        print(
            f"  {part:8} {cost.wall:6.1f} s, {cost.cpu:6.1f} s of CPU; at most {cost.peak:.0f} MiB a process, "
            f"{more:+.1%} of {small[part].peak:.0f} MiB at {SMALL:,} rows"
        )
    print(f"  all      {total.wall:6.1f} s, {total.cpu:6.1f} s of CPU: {rows / total.cpu:,.0f} rows a second of CPU")
    print(f"  shards alone: {rows / large['shards'].cpu:,.0f} rows a second of CPU")
    print(
        f"  {NEAR}: {near.cpu - large['prepare'].cpu:.1f} s of CPU more in prepare, at most {near.peak:.0f} MiB "
        f"({small[NEAR].peak:.0f} at {SMALL:,} rows)"
    )


def yardstick(folder: Path, form: str, rows: int) -> None:
    """orjson on the same bytes: each row of the input parsed, each line of the output written."""
    import orjson

    rows_in = [json.dumps(row).encode() for row in itertools.islice(FORM_ROWS[form](), 40_000)]
    out = itertools.chain.from_iterable(map(gzip.open, folder.glob("run/convert/shards/*")))
    samples = [orjson.loads(line) for line in itertools.islice(out, 40_000)]
    begun = time.process_time()
    for row in rows_in:
        orjson.loads(row)
    parsed = time.process_time()
    for sample in samples:
        orjson.dumps(sample)
    written = time.process_time()
    parse, write = (parsed - begun) / len(rows_in) * rows, (written - parsed) / len(samples) * rows
    print(
        f"  orjson alone: {parse:.1f} s to parse, {write:.1f} s to write: {rows / (parse + write):,.0f} rows a second"
    )


# ----------------------------------------------------------------------------------------------------- what goes in


def chat_rows() -> Iterator[dict[str, Any]]:
    """Without end. The rows' own split is the benchmark's; these are to be learned from."""
    found = [row for file in sorted((DATA / "benchmark").glob("*.json")) for row in json.loads(file.read_text())]
    for again in itertools.count():
        for row in found:
            images = [
                image.replace(f"/{(name := image.rpartition('/')[2])}", f"/{again}-{name}") for image in row["image"]
            ]
            yield row | {"image": images, "split": "train"}


def metadata_rows() -> Iterator[dict[str, Any]]:
    files = sorted((DATA / "metadata").glob("*.jsonl"))
    found = [json.loads(line) for file in files for line in file.open()]
    for again in itertools.count():
        for row in found:
            yield row | {"image": f"{again}-{row['image']}"}


FORM_ROWS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"chat": chat_rows, "metadata": metadata_rows}
SUFFIX = {"chat": "json", "metadata": "jsonl"}


def make_chat(folder: Path, rows: int) -> None:
    sizes = {}
    for file in (DATA / "detection").glob("*.jsonl"):
        for truth in map(json.loads, file.open()):
            name = truth["img_path"].removeprefix("cot/").replace("visual7w/", "v7w/")
            sizes[name] = truth["width"], truth["height"]
    known: dict[str, tuple[int, int]] = {}
    with (folder / "rows.json").open("w") as file:
        for number, row in enumerate(itertools.islice(chat_rows(), rows)):
            file.write(("," if number else "[") + json.dumps(row))
            path = row["image"][0].removeprefix("cot/")
            group, _, name = path.partition("/")
            known[path] = sizes[f"{group}/{name.partition('-')[2]}"]
        file.write("]")
    index(folder, known)


def make_metadata(folder: Path, rows: int) -> None:
    known: dict[str, tuple[int, int]] = {}
    with (folder / "rows.jsonl").open("w") as file:
        for row in itertools.islice(metadata_rows(), rows):
            file.write(json.dumps(row) + "\n")
            known[f"{row['dataset']}/{row['image']}"] = row["width"], row["height"]
    index(folder, known)


FORMS: dict[str, Callable[[Path, int], None]] = {"chat": make_chat, "metadata": make_metadata}


def index(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    import hashlib

    from vcot.datasets import near_duplicates
    from vcot.datasets.image_index import NAME, ImageIndex
    from vcot.records import Image
    from vcot.storage import Store
    from vcot.storage.images import MAX_PIXELS

    images = folder / "images"
    images.mkdir()
    (images / "one").write_bytes(b"")  # a folder with nothing in it is refused
    known = ImageIndex(folder / "known.sqlite")
    for path, (width, height) in sizes.items():
        if width * height > MAX_PIXELS:
            continue  # convert refuses them, and no index has them
        digest = hashlib.sha256(path.encode()).hexdigest()
        uri = f"{images}/{path}"
        known.put(Image(uri=uri, width=width, height=height, sha256=digest), 1, "as listed")
        known.note_print(uri, digest, bytes.fromhex(digest)[: near_duplicates.BYTES])
    for run in ("run", "near"):
        known.leave(Store(), str(folder / run / "convert" / NAME))


def apart(work: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own: what it holds would count as the memory of those that are started after it."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
