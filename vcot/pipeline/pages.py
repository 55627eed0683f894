"""The pages of a run that people read, out of storage onto this computer.

python -m vcot.pipeline.pages --run-id smoke --service minio
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vcot import log
from vcot.errors import InputError
from vcot.pipeline.kubectl import StorageSettings
from vcot.settings import setting
from vcot.stage import launch

PAGES: Mapping[str, tuple[str, ...]] = {
    "convert": ("report.html",),
    "tokenize": ("report.html",),
    "train": ("losses.png",),
    "evaluate": ("report.html", "report.json", "overlay.png"),
}
"""Stage → its files that are for people."""


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
        found = bring_home({stage: join(run_uri, stage) for stage in PAGES}, folder)
    if not found:
        raise InputError(f"{run_uri}: no reports there; has the run come that far, and is its name right?")
    for path in found:
        log.get().info("here", file=str(path.resolve()))


def bring_home(stages: Mapping[str, str], folder: Path) -> list[Path]:
    """Copies what there is of each stage's pages.

    Args:
        stages: stage → the URI of its folder.
    """
    from vcot.storage import NotFound, Store, join

    store, found = Store(), []
    for stage, uri in stages.items():
        for name in PAGES.get(stage, ()):
            target = folder / f"{stage}-{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotFound):
                store.download(join(uri, name), target)
                found.append(target)
    return found


if __name__ == "__main__":
    launch(PagesSettings, run)
