"""The curves of a training: fetches its event files from storage and starts TensorBoard on them.

python -m tools.tensorboard --run-uri s3://vcot/runs/first
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import ClassVar

from tools.storage import StorageSettings
from vcot import logging
from vcot.errors import InputError
from vcot.settings import setting
from vcot.stage import launch
from vcot.storage import Store, fetch_folder, join, name


class TensorBoardSettings(StorageSettings):
    """Fetches the event files of a training into <folder>/tensorboard/<run> and starts TensorBoard on them.

    train writes event files after each checkpoint, so those of a running training are there, too; run the command again
    for newer ones. Storage is named by AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and the other standard variables, or by
    --service.
    """

    stage: ClassVar[str] = "tensorboard"

    run_uri: str = setting(
        description="the run, as s3://bucket/runs/name, or its train stage, as s3://bucket/runs/name/train",
        min_length=1,
    )
    local_folder: Path = setting(Path(".local"), "event files are put below it, in tensorboard/<run>")
    port: int = setting(6006, "port on which TensorBoard answers on this computer", ge=0, le=65535)
    fetch_only: bool = setting(False, "fetch the event files and do not start TensorBoard")

    @property
    def train_uri(self) -> str:
        uri = self.run_uri.rstrip("/")
        return uri if name(uri) == "train" else join(uri, "train")

    @property
    def run_name(self) -> str:
        return name(self.train_uri.removesuffix("/train"))


def open_tensorboard(settings: TensorBoardSettings) -> None:
    """Fetch the event files, then replace this process by TensorBoard."""
    with settings.storage():
        folder = fetch_events(Store(), settings.train_uri, settings.local_folder / "tensorboard" / settings.run_name)
    logging.get().info("fetched", folder=str(folder.resolve()))
    if not settings.fetch_only:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(settings.port)]
        os.execv(sys.executable, command)


def fetch_events(store: Store, train_uri: str, into: Path) -> Path:
    """Fetch the event files of a train stage; files that have not changed are not fetched again.

    Returns:
        The local folder with the event files.

    Raises:
        InputError: The stage has no event files.
    """
    uri = join(train_uri, "tensorboard")
    if next(iter(store.list(uri)), None) is None:
        raise InputError(
            f"{uri}: no event files. train writes them with --report-to tensorboard, the first after its first "
            "checkpoint; check the name of the run"
        )
    return fetch_folder(store, uri, into)


if __name__ == "__main__":
    launch(TensorBoardSettings, open_tensorboard)
