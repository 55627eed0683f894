"""Storage as a person reaches it, in reach or behind a Service of a cluster, and out of it the pages of a run.

python -m tools.storage --run-id smoke --service minio
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from tools.overlay import kubectl
from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.pipeline.local import PAGES, download_pages
from vcot.redaction import learn, secrets_of
from vcot.settings import Declared, setting
from vcot.stage import launch
from vcot.storage import join

S3_SECRET = "s3-credentials"
S3_PORT = 9000


class StorageSettings(Declared):
    """Of commands that a person runs, about storage in reach or behind a Service of a cluster."""

    service: str | None = setting(
        None, "Service of the cluster that the storage is behind; by kubectl port-forward, with the keys of the "
        "Secret s3-credentials", min_length=1,
    )  # fmt: skip
    namespace: str = setting("vcot", "where that Service and that Secret are")

    @contextlib.contextmanager
    def storage(self) -> Iterator[None]:
        """Inside, the AWS variables of this process name the storage behind the Service, with the keys of its Secret.

        Without a service nothing changes: the variables are the user's.

        Raises:
            SettingsError: there is no such Secret or Service, or no way to it.
        """
        if self.service is None:
            yield
            return
        command = [kubectl(), "--namespace", self.namespace]
        ask = [*command, "get", "secret", S3_SECRET, "-o", "json"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise SettingsError(f"no keys of the storage: {_last_line(answer.stderr)}")
        secret = json.loads(answer.stdout).get("data") or {}
        keys = {name: base64.b64decode(value).decode() for name, value in secret.items() if name.startswith("AWS_")}
        learn(*secrets_of(keys))
        with tempfile.TemporaryFile("w+") as said:
            forward = [*command, "port-forward", f"service/{self.service}", f":{S3_PORT}"]
            process = subprocess.Popen(forward, stdout=subprocess.PIPE, stderr=said, text=True)
            try:
                assert process.stdout is not None
                # Forwarding from 127.0.0.1:4321 -> 9000
                found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
                if found is None:
                    process.wait()
                    said.seek(0)
                    where = f"Service {self.service} in namespace {self.namespace}"
                    raise SettingsError(f"no way to {where}: {_last_line(said.read())}")
                # It says a line for each connection, and would wait for ever once the pipe is full.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                where = f"{self.namespace}/{self.service}"
                logging.get().info("storage of the cluster", service=where, port=int(found[1]))
                # What else this computer is set up for, a profile or a proxy, must not get between.
                for name in [name for name in os.environ if name.startswith("AWS_")]:
                    del os.environ[name]
                os.environ |= keys | {
                    "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{found[1]}",
                    "AWS_CONFIG_FILE": os.devnull,
                    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                    "NO_PROXY": "127.0.0.1",
                    "no_proxy": "127.0.0.1",
                }
                yield
            finally:
                process.terminate()
                process.wait()


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["kubectl said nothing"])[-1]


class PagesSettings(StorageSettings):
    """Brings the reports of a run to this computer: <folder>/runs/<run>/evaluate-report.html and others.

    Storage is named by AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and the other standard variables, or by --service.
    """

    stage: ClassVar[str] = "pages"

    run_id: str = setting(description="name of the run", min_length=1)
    runs_uri: str = setting("s3://vcot/runs", "prefix under which runs stand", min_length=1)
    local_folder: Path = setting(Path(".local"), "below it they are put, as `make local-train` puts them")

    @property
    def run_name(self) -> str:
        return self.run_id


def bring_pages(settings: PagesSettings) -> None:
    folder, run_uri = settings.local_folder / "runs" / settings.run_id, join(settings.runs_uri, settings.run_id)
    with settings.storage():
        found = download_pages({stage: join(run_uri, stage) for stage in PAGES}, folder)
    if not found:
        raise InputError(f"{run_uri}: no reports there; has the run come that far, and is its name right?")
    for path in found:
        logging.get().info("here", file=str(path.resolve()))


if __name__ == "__main__":
    launch(PagesSettings, bring_pages)
