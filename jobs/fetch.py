"""A promoted model, fetched for a server: `python -m jobs.fetch`, before one starts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from vcot.settings import Declared, setting
from vcot.stage import launch, summary


class FetchSettings(Declared):
    """Lays a promoted model where a server loads it: its base, its adapter, or whole weights where there are some.

    Files of the training and of its base are held against the digests that the promotion, or the train stage that it
    names, has of them; merged weights, which were made later, against the manifest beside them. Started again, it
    fetches nothing a second time, unless another promotion is taken.
    """

    stage: ClassVar[str] = "fetch"

    pointer_uri: str = setting(
        description="line of promoted models, of which the newest is taken, as s3://vcot/runs/pointers/latest; or one "
        "of them, as s3://vcot/runs/pointers/latest/0000000001.json", min_length=1,
    )  # fmt: skip
    promotion_uri: str | None = setting(
        None, "the one to take, where it is of the line --pointer-uri; default: the newest"
    )
    into: Path = setting(description="folder for the model; everything in it may be replaced")
    merged: bool = setting(
        True, "prefer weights into which publish --merge has merged the adapter and which it has held against base + "
        "adapter, where they lie beside the training"
    )  # fmt: skip
    server: Literal["any", "vllm"] = setting(
        "any", "what will serve it; vllm: refuse a model that it would not serve, or serve wrongly"
    )
    weights: bool = setting(True, "fetch all of it; without, contract.json alone, which says how it writes boxes")

    @property
    def run_name(self) -> str:
        return "fetch"


def run(settings: FetchSettings) -> None:
    from vcot.evaluation.subjects import promotion_at
    from vcot.serving.delivery import deliver
    from vcot.storage import Store

    store = Store()
    pointer = promotion_at(store, settings.pointer_uri, settings.promotion_uri)
    kind = deliver(
        store, pointer, settings.into, weights=settings.weights, merged=settings.merged, vllm=settings.server == "vllm"
    )
    summary(promotion=pointer.uri, model=pointer.promotion.train_uri, kind=kind)
    print(f"{settings.into}: {pointer.promotion.train_uri}, as {pointer.uri} promoted it ({kind})")


if __name__ == "__main__":
    launch(FetchSettings, run)
