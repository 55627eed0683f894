"""A page in the browser on which a model is asked about images, and its boxes appear as it writes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from vcot import logging
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.grounding import FrameName
from vcot.settings import CommaSeparated, Declared, Group, setting
from vcot.stage import die_with_parent, launch, stop

if TYPE_CHECKING:
    from vcot.demo.model import StreamedModel
    from vcot.evaluation.config import Way
    from vcot.evaluation.endpoint import EndpointForm
    from vcot.records import Contract

ROOT = Path(__file__).resolve().parent.parent
LOCAL = "127.0.0.1"
Server = subprocess.Popen[bytes]


class DemoSettings(Declared):
    """Serves a page that asks a model about images. Each box is drawn the moment its tag closes.

    The model stands behind an OpenAI-compatible endpoint (--subject https://host:8000/v1#name). A folder or a finished
    train stage is served by jobs.serve on this computer, beside the page; without --subject it is the last run of
    make local-train, else the rehearsal's base.

    The page listens on this computer alone unless --host says otherwise, asks nobody who they are, and keeps nothing
    unless --keep-uri says where. Ctrl-C ends it.
    """

    stage: ClassVar[str] = "demo"

    subject: str | None = setting(
        None, "the model: an endpoint as https://host:8000/v1#served-name, a finished train stage, or a folder with a "
        "model; default: the last run on this computer, else examples/rehearsal"
    )  # fmt: skip
    host: str = setting(LOCAL, "address to listen on; 0.0.0.0: every one of this computer's, for others to reach")
    port: int = setting(7860, "port to listen on; 0: any that is free", unit="TCP port", ge=0, le=65535)
    allowed_hosts: CommaSeparated = setting(
        (), "names under which others reach the page, beside localhost and addresses by number; comma-separated"
    )
    concurrency: int = setting(4, "replies that are written at a time; others wait, and are told", unit="replies", ge=1)
    max_image_mib: float = setting(20.0, "size of a file that is taken, at most", unit="MiB", gt=0)
    max_pixels: int = setting(50_000_000, "size of an image that is decoded, at most", unit="pixels", gt=0)
    max_new_tokens: int = setting(512, "longest reply", unit="tokens", ge=1)
    temperature: float = setting(0.7, "of replies where several are asked for; a single one is greedy", gt=0)
    timeout: float = setting(180.0, "until the model's server must have sent its next token", unit="seconds", gt=0)
    keep_uri: str | None = setting(None, "where images and replies are kept; default: nowhere")
    local_folder: Path = setting(Path(".local"), "where runs on this computer lie")
    contract_uri: str | None = setting(
        None, "contract.json that train writes beside a model: how it writes boxes, where its server does not tell "
        "(jobs.serve does)", min_length=1,
    )  # fmt: skip
    native_form: Literal["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl"] | None = setting(
        None, "how an endpoint's model points, by its family, where there is no contract of it"
    )
    subject_frame: FrameName | None = setting(
        None, "numbers in which it writes boxes, where its family is none of these"
    )
    subject_dialect: str | None = setting(None, "notation of its boxes: vcot, qwen-special, qwen-json, …")
    subject_min_pixels: int | None = setting(
        None, "area of an image as an endpoint's model sees it, at least", unit="pixels", gt=0
    )
    subject_max_pixels: int | None = setting(None, "the same, at most", unit="pixels", gt=0)

    groups: ClassVar[tuple[Group, ...]] = (
        Group("the model, and who may ask it", ("subject", "host", "port", "allowed_hosts", "concurrency")),
        Group("what is taken and kept", ("max_image_mib", "max_pixels", "keep_uri")),
        Group("an endpoint that does not tell how its model writes boxes", (
            "contract_uri", "native_form", "subject_frame", "subject_dialect", "subject_min_pixels",
            "subject_max_pixels",
        )),
    )  # fmt: skip

    @property
    def run_name(self) -> str:
        return "demo"


def run(settings: DemoSettings) -> None:
    from vcot.demo.model import StreamedModel
    from vcot.distill.endpoint import address_and_name
    from vcot.evaluation.subjects import is_endpoint
    from vcot.pipeline.local import REHEARSAL, newest_model

    form, learned = _declared(settings)
    with contextlib.ExitStack() as within:
        subject = settings.subject or within.enter_context(newest_model(settings.local_folder)) or str(REHEARSAL)
        server = None
        if not is_endpoint(subject):
            subject, server = within.enter_context(_served_here(subject))
        address, name = address_and_name(subject)
        model = StreamedModel(
            address, name, form, learned=learned, max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, timeout=settings.timeout, at_once=settings.concurrency,
        )  # fmt: skip
        asyncio.run(_serve(settings, model, server))


def _declared(settings: DemoSettings) -> tuple[EndpointForm | None, tuple[Way, ...] | None]:
    """How the model writes boxes, and the ways in which it was tuned.

    Raises SettingsError: what is said of it does not fit. InputError: there is no contract.
    """
    from vcot.evaluation.endpoint import EndpointForm, declared_form

    words = (settings.native_form, settings.subject_frame, settings.subject_dialect)
    if settings.contract_uri is not None:
        if any(words):
            raise SettingsError("--contract-uri says all of it: leave out --native-form, --subject-frame and -dialect")
        contract = _contract(settings.contract_uri)
        return EndpointForm.tuned(contract), contract.ways
    if not any(words):
        return None, None
    form = declared_form(
        family=settings.native_form, frame=settings.subject_frame, dialect=settings.subject_dialect,
        min_pixels=settings.subject_min_pixels, max_pixels=settings.subject_max_pixels,
    )  # fmt: skip
    return form, None


def _contract(uri: str) -> Contract:
    from vcot.evaluation.checkpoint import read_json_if_present
    from vcot.records import Contract
    from vcot.storage import Store

    found = read_json_if_present(Store(), uri)
    try:
        return Contract.model_validate(found["contract"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"--contract-uri={uri}: there is no contract.json as train writes it") from None


async def _serve(settings: DemoSettings, model: StreamedModel, server: Server | None) -> None:
    from aiohttp import web

    from vcot.demo.examples import drawn, photographs
    from vcot.demo.server import Limits, Page

    limits = Limits(int(settings.max_image_mib * (1 << 20)), settings.max_pixels, settings.concurrency)
    examples = [*drawn(), *photographs(ROOT / "examples" / "blood-cells")]
    page = Page(
        model, limits, examples=examples, names=(settings.host, *settings.allowed_hosts), keep_uri=settings.keep_uri
    )
    runner = page.runner()
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise SettingsError(f"--host {settings.host} --port {settings.port}: {error.strerror or error}") from None
        port = runner.addresses[0][1]
        shown = "localhost" if settings.host in (LOCAL, "0.0.0.0", "::") else settings.host
        print(f"the page: http://{shown}:{port}", flush=True)
        if settings.host != LOCAL:
            logging.get().warning("others can reach this page, and it asks nobody who they are", host=settings.host)
        while not stop.requested:
            if server is not None and (code := server.poll()) is not None:
                gone = TemporaryError(f"jobs.serve ended with exit code {code}; what it said stands above")
                gone.exit_code = code if code > 0 else gone.exit_code
                raise gone
            await asyncio.sleep(0.2)
    finally:
        await runner.cleanup()
        await model.close()


# --- a model on this computer ------------------------------------------------------------------------------


@contextlib.contextmanager
def _served_here(subject: str) -> Iterator[tuple[str, Server]]:
    """jobs.serve beside the page, ended with it: its endpoint, and its process. The page is up before the model is
    loaded, and says so."""
    with socket.socket() as free:
        free.bind((LOCAL, 0))
        port = free.getsockname()[1]
    *above, last = subject.rstrip("/").split("/")
    name = re.sub(r"[^\w.-]", "-", above[-1] if last == "train" and above else last)  # a run's, or the folder's
    command = [sys.executable, "-m", "jobs.serve", "--subject", subject, "--host", LOCAL]
    command += ["--port", str(port), "--name", name]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_DEMO_")}
    logging.get().info("the model is being loaded", subject=subject)
    server = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent(signal.SIGKILL))
    try:
        yield f"http://{LOCAL}:{port}/v1#{name}", server
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


if __name__ == "__main__":
    launch(DemoSettings, run)
