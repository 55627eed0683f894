"""The model that a subject names, on this machine: its files, its contract, its encoder and its weights, each fetched
and loaded when it is first asked for, and held against the digests that say which model it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vcot import storage
from vcot.grounding import FrameName
from vcot.records import Contract
from vcot.records.metadata import Role, TrainMetadata
from vcot.storage import NotFound, Store, join
from vcot.storage.folders import fetch_base, fetch_files, fetch_folder
from vcot.tokens import Encoder, contract_of, is_processor_file, load_processor


@dataclass
class Checkpoint:
    """A tuned model and its base; or a base alone, of which `trained` is None.

    uri: of the finished stage that tuned it; of a base alone, its folder. scratch: a folder on this disk, for weights.
    """

    store: Store
    uri: str
    trained: TrainMetadata | None
    base_uri: str
    base_sha256: str
    scratch: Path
    quantize: Literal["as-trained", "none", "nf4"]
    dtype: Literal["auto", "bfloat16", "float32"]

    @property
    def quantization(self) -> Literal["none", "nf4"]:
        if self.quantize != "as-trained":
            return self.quantize
        return "nf4" if self.trained and self.trained.tune == "qlora" else "none"

    @cached_property
    def files(self) -> Path:
        """The base's folder with its processor's files, which are small."""
        return fetch_folder(self.store, self.base_uri, self.scratch / "base", is_processor_file)

    def contract(self, frame: FrameName, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Contract:
        """By which it was tuned; else its own, where train wrote one beside it; else by its processor, this frame and
        these limits."""
        if self.trained is not None:
            return self.trained.contract
        if (found := read_json_if_present(self.store, join(self.base_uri, "contract.json"))) is not None:
            return Contract.model_validate(found["contract"])
        least, most = min_pixels or 4 * 784, max_pixels or 1280 * 784
        processor = load_processor(self.files, min_pixels=least, max_pixels=most)
        return contract_of(processor, mode="multimodal", frame=frame, max_length=1 << 20)

    def encoder(self, contract: Contract, roles: tuple[Role, ...]) -> Encoder:
        processor = load_processor(self.files, min_pixels=contract.min_pixels, max_pixels=contract.max_pixels)
        return Encoder(processor, contract.model_copy(update={"roles": roles}))

    def load_base(self) -> Any:
        from vcot.models.loading import load_base

        what = "is not the base that was trained on" if self.trained else "has changed since it was first looked at"
        folder = fetch_base(self.store, self.base_uri, self.base_sha256, self.scratch / "base", what)
        return load_base(folder, quantization=self.quantization, dtype=self.dtype)

    def load_tuned(self, base: Any = None) -> Any:
        """base: loaded already, where it is to become the tuned model by its adapter; which it does in place."""
        from vcot.models.loading import load_adapter, load_base

        assert self.trained is not None
        if self.trained.tune == "full":
            return load_base(self._fetch_tuned(self.trained), quantization=self.quantization, dtype=self.dtype)
        folder = self._fetch_tuned(self.trained)
        return load_adapter(self.load_base() if base is None else base, folder)

    def _fetch_tuned(self, trained: TrainMetadata) -> Path:
        """The trained model's folder with the files that its stage names, and no other."""
        uri = join(self.uri, trained.model)
        return fetch_files(self.store, uri, trained.files, self.scratch / "tuned")


def read_json_if_present(store: Store, uri: str) -> Any:
    """Return a stored JSON document, or None if there is none. Raises InputError: it is not JSON."""
    try:
        return storage.read_json(store, uri, lambda value: value, recorded=False)
    except NotFound:
        return None
