"""A small model behind OpenAI's interface, on this computer. `python -m jobs.serve`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

from vcot.settings import DEVICE, Declared, Device, setting
from vcot.stage import launch, stop, summary


class ServeSettings(Declared):
    """Answers /v1/models, /v1/chat/completions and /health with one model, by transformers, until it is stopped.

    For laptops and tests. Where vLLM runs, serve with that (docs/serving.md).
    """

    stage: ClassVar[str] = "serve"

    subject: str | None = setting(
        None, "what is served: a finished train stage, or a folder with any model (config.json and safetensors); "
        "default: the last run on this computer, else examples/rehearsal", min_length=1,
    )  # fmt: skip
    base_uri: str | None = setting(
        None, "another place of the base; default: the one that the model was trained from", existing_folder=True
    )
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: any computer can ask", min_length=1)
    port: int = setting(8000, "port to listen on; 0: one that is free", unit="port", ge=0, le=65535)
    name: str | None = setting(
        None, "by which requests ask for the model; default: that of its run or folder", pattern=r"^[\w][\w./:-]*$"
    )
    queue: int = setting(32, "requests that may wait; one more is told to come again (503)", unit="requests", ge=1)
    max_new_tokens: int = setting(
        1024, "longest reply that may be asked for, and what a request without max_tokens gets", unit="tokens", ge=1
    )
    max_upload_bytes: int = setting(32 << 20, "longest request, its images included", unit="bytes", ge=1024)
    quantization: Literal["as-trained", "none", "nf4"] = setting(
        "as-trained", "weights of the base in 4 bits (nf4) or as they are; as-trained: nf4 after qlora"
    )
    local_folder: Path = setting(Path(".local"), "where runs on this computer lie")
    device: Device = setting("auto", DEVICE)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "numbers to compute with; auto: bfloat16 where the device has it, else float32"
    )

    @property
    def run_name(self) -> str:
        return self.name or "serve"


def run(settings: ServeSettings) -> None:
    # Where cores are shared, threads that spin while they wait make a small model ten times slower. Must be set
    # before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vcot.evaluation.subjects import model_at
    from vcot.pipeline.local import REHEARSAL, newest_model
    from vcot.serving.model import load
    from vcot.serving.server import listening, serve
    from vcot.storage import Store

    with (
        listening(settings.host, settings.port) as held, tempfile.TemporaryDirectory(prefix="serve-") as scratch,
        contextlib.ExitStack() as within,
    ):  # fmt: skip
        subject = settings.subject or within.enter_context(newest_model(settings.local_folder)) or str(REHEARSAL)
        store = Store()
        found = model_at(store, subject)
        from vcot.models.device import use_device  # of torch: what is wrong above is told without it

        use_device(settings.device)
        model = load(
            store, found, Path(scratch), name=settings.name, base_uri=settings.base_uri,
            quantization=settings.quantization, dtype=settings.dtype,
        )  # fmt: skip
        summary(model=model.name, digest=model.card["digest"])
        serve(
            model, held, stop, queue=settings.queue, max_new_tokens=settings.max_new_tokens,
            max_upload_bytes=settings.max_upload_bytes,
        )  # fmt: skip
    stop.raise_if_requested("replies under way were finished")


if __name__ == "__main__":
    launch(ServeSettings, run)
