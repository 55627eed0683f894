"""The pages of a run that people read, out of storage onto this computer.

python -m tools.pages --run-id smoke --service minio
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tools.storage import StorageSettings
from vcot import logging
from vcot.errors import InputError
from vcot.pipeline.local import PAGES, download_pages
from vcot.settings import setting
from vcot.stage import launch


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


def run(settings: PagesSettings) -> None:
    from vcot.storage import join

    folder, run_uri = settings.local_folder / "runs" / settings.run_id, join(settings.runs_uri, settings.run_id)
    with settings.storage():
        found = download_pages({stage: join(run_uri, stage) for stage in PAGES}, folder)
    if not found:
        raise InputError(f"{run_uri}: no reports there; has the run come that far, and is its name right?")
    for path in found:
        logging.get().info("here", file=str(path.resolve()))


if __name__ == "__main__":
    launch(PagesSettings, run)
