"""The model card: what a model is, what it was trained on, how well it does, and how it is served.

It says what storage says: markers of the stages, origins of the rows, the report of an evaluation. Knows no torch.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vcot.errors import InputError, SettingsError
from vcot.grounding import FrameName
from vcot.grounding.ways import asked
from vcot.records import Sample, StageMarker, read_samples
from vcot.records.metadata import Contract, TrainMetadata
from vcot.records.shards import DONE, OF_SAMPLES, read_marker
from vcot.reports.rendering import plural, render
from vcot.settings import flag
from vcot.storage import Store, join, read_json
from vcot.storage.folders import read_manifest
from vcot.training.config import METHODS, TrainingConfig

Kind = Literal["adapter", "merged", "model"]

# --- where a model comes from ------------------------------------------------------------------------------


class Source(NamedTuple):
    """A finished stage that a model comes from: its place, and URI → sha256 of what it has read."""

    stage: str
    uri: str
    inputs: Mapping[str, str]


class Rows(NamedTuple):
    """Where Samples come from; `teacher`: who wrote their reasoning, empty where nobody was asked."""

    dataset: str
    licence: str
    teacher: str
    split: str


@dataclass(frozen=True)
class Data:
    """What a model was trained on, and kept from: the stages from the last to the first, the rows of the Samples that
    tokenize has read, and a few questions among them, if possible of those that it was kept from."""

    sources: tuple[Source, ...]
    rows: Counter[Rows]
    questions: tuple[Sample, ...]


def data_of(store: Store, train_uri: str, marker: StageMarker[Any, TrainMetadata], questions: int) -> Data:
    """Reads all Samples once. questions: how many to keep, of the test split where there is one, else of validation,
    else of those that were learned.

    Raises InputError: a stage before it is gone, or damaged.
    """
    sources = (Source("train", train_uri, marker.inputs), *_before(store, marker))
    samples = next((one for one in sources if one.stage in {kind.name for kind in OF_SAMPLES}), None)
    if samples is None:
        raise InputError(f"{train_uri}: the stages before it do not say which Samples it was made of")
    rows, kept = Counter[Rows](), dict[str, list[Sample]]()
    for sample in read_samples(store, samples.uri, read_marker(store, samples.uri, *OF_SAMPLES)[0]):
        origin = sample.origin
        rows[Rows(origin.dataset, origin.licence, origin.teacher or "", origin.split)] += 1
        if len(several := kept.setdefault(origin.split, [])) < questions:
            several.append(sample)
    asked = next((kept[split] for split in ("test", "validation", "train") if kept.get(split)), [])
    return Data(sources, rows, tuple(asked))


def _before(store: Store, marker: StageMarker) -> Iterator[Source]:
    for name in marker.inputs:
        if name.endswith(f"/{DONE}"):
            uri = name.removesuffix(f"/{DONE}")
            there, _ = read_marker(store, uri)
            yield Source(there.stage, uri, there.inputs)
            yield from _before(store, there)
            return


PUBLISHED = "published.json"
"""Says of a folder of which training it is and, of merged weights, what they came to."""


def published_there(store: Store, uri: str, train_sha256: str, kind: Kind) -> dict[str, Any] | None:
    """What `published.json` of a whole folder says; None: nothing whole is there.

    Raises SettingsError: it is of another training, or of another kind.
    """
    manifest = read_manifest(store, uri)
    if manifest is None or not manifest.whole or PUBLISHED not in manifest.files:
        return None
    found: dict[str, Any] = read_json(store, join(uri, PUBLISHED), dict, "publish again")
    if found["train_sha256"] != train_sha256:
        raise SettingsError(
            f"{uri} holds what was published of {found['train_uri']}, another training; give another --to-uri"
        )
    if found["kind"] != kind:
        raise SettingsError(f"{uri} holds this training as {found['kind']}, not as {kind}; give another --to-uri")
    return found


def _merging(said: Mapping[str, Any]) -> str:
    """What merging came to, in sentences."""
    words = (
        f"{said['layers']} layers; rounding to bfloat16 changes what the adapter adds by {100 * said['rounded']:.1f} %"
    )
    if (found := said.get("agreement")) is None:
        return f"{words}. Not held against base + adapter"
    ours, base = found["to_ours"], found["to_base"]
    return (
        f"{words}. On {found['tokens']} tokens of {found['replies']} greedy replies to questions of the run, "
        f"computed in {said['dtype']}, log-probabilities differ from those of base + adapter by "
        f"{ours['mean']:.2g} on average (at most {ours['largest']:.2g}), from those of the base alone by "
        f"{base['mean']:.2g}; {found['same']} of {found['replies']} replies are the same"
    )


# --- the card ----------------------------------------------------------------------------------------------

MOST_ROWS, MOST_FILES = 30, 5
"""Lines of the table of data, and of what one stage has read."""

_FRAMES: Mapping[FrameName, str] = {
    "thousandths": "`[x1, y1, x2, y2]` in thousandths of the image's width and height",
    "fractions": "`[x1, y1, x2, y2]` in fractions of the image's width and height",
    "pixels": "`[x1, y1, x2, y2]` in pixels of the image as it is",
    "padded_square": "`[x1, y1, x2, y2]` in fractions of the image padded to a square",
    "resized_pixels": "`[x1, y1, x2, y2]` in pixels of the image as the processor resizes it, which only those limits "
    "of pixels give that are named below",
}
_BOXES: Mapping[FrameName, str] = {"fractions": "[0.10, 0.20, 0.30, 0.40]", "padded_square": "[0.10, 0.20, 0.30, 0.40]"}

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM's --max-lora-rank may be."""


def model_card(
    *, published: Mapping[str, Any], uri: str, marker: StageMarker[Any, TrainMetadata],
    settings: Mapping[str, Any], data: Data, base_licence: str | None, numbers: str, measured: str,
) -> str:  # fmt: skip
    """
    Args:
        published: what `published.json` beside it says. uri: where both lie. settings: all that the training was
            given, by its settings.json. numbers: a table in Markdown; measured: where it is from. Both empty where
            there is none.
    """
    kind: Kind = published["kind"]
    trained, contract = marker.metadata, marker.metadata.contract
    run_uri, name = str(settings["run_uri"]), str(settings["run_uri"]).rstrip("/").rpartition("/")[2]
    served_name = name.lower()
    shown = [*sorted(data.rows.items())]
    frame = contract.frame_spec.name
    what = {
        "adapter": f"A LoRA adapter of `{trained.base_uri}`.",
        "merged": f"`{trained.base_uri}` with the adapter of a training merged into its weights, in bfloat16.",
        "model": f"`{trained.base_uri}`, all of its weights tuned.",
    }[kind]
    return render(
        "model_card.md.j2", kind=kind, name=name, what=what, licence=base_licence, base_uri=trained.base_uri,
        base_sha256=trained.base_sha256, method=marker.settings["method"], tune=trained.tune, trained=trained,
        reply=f"The <ref>red gear</ref><box>{_BOXES.get(frame, '[100, 200, 300, 400]')}</box> touches …",
        frame=_FRAMES[frame], pixels=_pixels(contract), merged=_merging(published) if kind == "merged" else "",
        numbers=numbers, measured=measured,
        ways=[(way, asked(way, contract.instruction) or "nothing") for way in contract.ways],
        rows=shown[:MOST_ROWS], more_rows=len(shown[MOST_ROWS:]), digests=_digests(data), run_uri=run_uri,
        command=command(marker, settings), code=marker.code, train_uri=published["train_uri"],
        train_sha256=published["train_sha256"],
        serve=serving(kind, uri, served_name, marker), served_name=served_name, notes=_notes(kind, marker),
        plural=plural,
    ).strip() + "\n"  # fmt: skip


def base_licence(base: Path) -> str | None:
    """That the front matter of the README beside a base names; None: nothing is named there."""
    readme = base / "README.md"
    if not readme.is_file():
        return None
    text = readme.read_text(errors="replace")
    if not text.startswith("---\n"):
        return None
    front = text.removeprefix("---\n").partition("\n---")[0]
    found = [line.partition(":")[2].strip().strip("'\"") for line in front.splitlines() if line.startswith("license:")]
    return found[0] if found and found[0] else None


def command(marker: StageMarker[Any, TrainMetadata], settings: Mapping[str, Any]) -> str:
    """That makes this model again: what was set otherwise than it is by default."""
    method = METHODS[str(marker.settings["method"])]
    fields = TrainingConfig.model_fields | method.options.model_fields
    usual = {name: field.get_default(call_default_factory=True) for name, field in fields.items()} | dict(
        method.defaults
    )
    words = ["python -m jobs.train"]
    for name in ("run_uri", "base_uri", "input_uri", "from_uri"):
        if settings.get(name) is not None:
            words.append(f"{flag(name)} {shlex.quote(str(settings[name]))}")
    words.append(f"--method {marker.settings['method']}")
    for name, value in marker.settings.items():
        several = isinstance(value, list)
        if name not in usual or value is None or value == (list(usual[name] or ()) if several else usual[name]):
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else f"--no-{flag(name)[2:]}")
        else:
            said = ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
            words.append(f"{flag(name)} {shlex.quote(said)}")
    return " \\\n        ".join([f"{words[0]} {' '.join(words[1:3])}", *words[3:]])


def serving(kind: Kind, uri: str, served_name: str, marker: StageMarker[Any, TrainMetadata]) -> list[str]:
    """Lines of a shell that fetch and serve it by vLLM, under a name."""
    fetch = f"aws s3 cp --recursive {uri} ./{served_name}" if uri.startswith("s3://") else ""
    here = f"./{served_name}" if fetch else uri
    if kind != "adapter":
        lines = [f"vllm serve {here} --served-model-name {served_name}"]
    else:
        contract = marker.metadata.contract
        rank = next((rank for rank in _RANKS if rank >= int(str(marker.settings["lora_r"]))), _RANKS[-1])
        limits = json.dumps({"min_pixels": contract.min_pixels, "max_pixels": contract.max_pixels})
        lines = [
            f"vllm serve <folder of the base> --enable-lora --max-lora-rank {rank} \\",
            f"    --lora-modules {served_name}={here} --mm-processor-kwargs '{limits}' \\",
            "    --override-generation-config '{\"repetition_penalty\": 1.0}'",
        ]
    return [fetch, *lines] if fetch else lines


def wrong_in_vllm(kind: str, marker: StageMarker[Any, TrainMetadata]) -> list[str]:
    """Why vLLM does not serve a model, or not as it was trained, in sentences; empty where nothing is known."""
    found = []
    merge = "serve the merged weights (`python -m jobs.publish --merge`)"
    if kind == "adapter" and marker.settings.get("use_dora"):
        found.append(f"vLLM does not load DoRA: {merge}.")
    if kind == "adapter" and marker.settings.get("targets", "language") != "language":
        found.append(
            "This adapter changes the merger or the vision tower too, which vLLM applies for some families only: "
            f"{merge}, or verify."
        )
    if marker.metadata.contract.roles:
        found.append(
            "The rationale is a turn of its own with an end of its own; vLLM ends its reply there, and has to be asked "
            "on for the answer (`python -m jobs.serve` goes on by itself)."
        )
    return found


def _notes(kind: Kind, marker: StageMarker[Any, TrainMetadata]) -> list[str]:
    trained, notes = marker.metadata, []
    if kind == "adapter":
        notes += [
            "With other limits of pixels a server shows the model other images than it was trained on, and a penalty "
            "for repetition bends coordinates: both stand on the command line, for the base's own files say otherwise."
        ]
    if kind == "merged" and trained.tune == "qlora":
        notes += [
            "The adapter was trained, and is evaluated by default, on the base in 4 bits; here it is merged into the "
            "base as it is, so figures differ a little from those above. `python -m jobs.evaluate --subject` with this "
            "folder measures them."
        ]
    return notes + wrong_in_vllm(kind, marker)


def _pixels(contract: Contract) -> str:
    if contract.mode == "text":
        return "none; it was trained by text alone"
    most = contract.max_pixels // contract.factor**2
    return (
        f"resized to {contract.min_pixels:,} to {contract.max_pixels:,} pixels, at most {most:,} visual tokens of "
        f"{contract.factor}x{contract.factor} pixels"
    )


def _digests(data: Data) -> list[tuple[str, str, str]]:
    """Stage, what it has read, its digest; the first stage first, of many files the first few."""
    found: list[tuple[str, str, str]] = []
    for source in reversed(data.sources):
        inputs = sorted(source.inputs.items())
        found += [(source.stage, f"`{uri}`", f"`{sha256[:12]}…`") for uri, sha256 in inputs[:MOST_FILES]]
        if inputs[MOST_FILES:]:
            found.append((source.stage, f"{len(inputs) - MOST_FILES} more, in its marker", ""))
    return found
