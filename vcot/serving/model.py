"""The one model that is served: its encoder and weights, and what `/v1/models` says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vcot import __version__, logging
from vcot.evaluation.checkpoint import Checkpoint
from vcot.evaluation.models import forms_of
from vcot.evaluation.page import headline
from vcot.evaluation.subjects import Finished, ModelFound, evaluation_of
from vcot.storage import Store, join, read_json
from vcot.storage import name as last_part
from vcot.tokens import Encoder


@dataclass(frozen=True)
class ServedModel:
    """
    name: by which requests ask for it. context: tokens of a prompt and its reply, at most. card: of the model; see
    `_card`. network: of vcot.models.loading.
    """

    name: str
    encoder: Encoder
    network: Any
    context: int
    card: dict[str, Any]

    @property
    def described(self) -> dict[str, Any]:
        """Its entry in `/v1/models`."""
        contract = self.encoder.contract
        said = contract.model_dump(mode="json") | {"ways": contract.ways, "roles": contract.roles}
        about = {"contract": said, "card": self.card}
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "vcot", "vcot": about}


def load(
    store: Store, found: ModelFound, scratch: Path, *, name: str | None = None, base_uri: str | None = None,
    quantization: Literal["as-trained", "none", "nf4"] = "as-trained",
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
) -> ServedModel:  # fmt: skip
    """
    Args:
        found: of `model_at`. scratch: a folder on this disk, for weights.
        name: default: that of the run that trained it, or of its folder.
        base_uri: another place of the base that it was trained from.

    Raises InputError: its files are not those that its stage names, or no model of a known family.
    """
    from vcot.models.loading import context_length

    trained = None if found.train is None else found.train.marker.metadata
    base = (found.uri, found.sha256) if trained is None else (base_uri or trained.base_uri, trained.base_sha256)
    checkpoint = Checkpoint(store, found.uri, trained, *base, scratch, quantization, dtype)
    form = forms_of(store, checkpoint.base_uri, "auto", None if trained is None else trained.contract)["subject"]
    contract = checkpoint.contract(form.frame)
    logging.get().info("loading the model", subject=found.uri, quantization=checkpoint.quantization)
    encoder = checkpoint.encoder(contract, contract.roles)
    network = checkpoint.load_base() if trained is None else checkpoint.load_tuned()
    run = found.uri if found.train is None else found.uri.rpartition("/")[0]
    return ServedModel(
        name or last_part(run) or "model", encoder, network, context_length(network), _card(store, found)
    )


def _card(store: Store, found: ModelFound) -> dict[str, Any]:
    """
    base: the name of what it was tuned from. method: how, and what of it. numbers: of the evaluation beside its train
    stage, where that asked this very model. code: version of what trained it. digest: of the train stage's marker, or
    of the folder. No places and no keys: whoever asks is not whoever trained.
    """
    if found.train is None:
        return {"base": None, "method": None, "numbers": {}, "code": __version__, "digest": found.sha256}
    marker = found.train.marker
    method = str(marker.settings.get("method", "sft"))
    return {
        "base": last_part(marker.metadata.base_uri), "method": f"{method}, {marker.metadata.tune}",
        "numbers": _numbers(store, found.train), "code": marker.code, "digest": found.sha256,
    }  # fmt: skip


def _numbers(store: Store, train: Finished) -> dict[str, Any]:
    evaluation = evaluation_of(store, train.uri, train.sha256)
    return {} if evaluation is None else headline(read_json(store, join(evaluation.uri, "report.json"), dict))
