"""Does this storage keep what vcot builds on? `python -m jobs.probe`, here or in a pod."""

from __future__ import annotations

from typing import ClassVar

from vcot.errors import SettingsError
from vcot.settings import Declared, setting
from vcot.stage import launch, summary


class ProbeSettings(Declared):
    """Writes, reads, lists and races below a prefix, and says which guarantees hold; takes seconds and some 20 MB.

    The storage is the one that the AWS_* variables name. What it writes it deletes again, where the keys allow it.
    """

    stage: ClassVar[str] = "probe"

    uri: str = setting(description="prefix to try it on, as s3://bucket/runs/_probe", min_length=1)

    @property
    def run_name(self) -> str:
        return "probe"


def run(settings: ProbeSettings) -> None:
    """Print each guarantee as it is checked.

    Raises:
        SettingsError: a guarantee does not hold, or the storage cannot be used.
        TemporaryError: the storage was too busy or unreachable; nothing is known about the remaining guarantees.
    """
    from vcot.storage import Store
    from vcot.storage.probe import probe

    found = []
    for guarantee in probe(Store(), settings.uri):
        found.append(guarantee)
        mark = "ok  " if guarantee.holds else "FAIL"
        print(f"{mark} {guarantee.name:11} {guarantee.fault or guarantee.meaning}")
    summary(guarantees={guarantee.name: guarantee.fault or "ok" for guarantee in found})
    broken = [guarantee.name for guarantee in found if not guarantee.holds and not guarantee.is_refused]
    refused = [guarantee.name for guarantee in found if guarantee.is_refused]
    if broken:
        raise SettingsError(
            f"{settings.uri}: {len(broken)} of {len(found)} guarantees do not hold ({', '.join(broken)}): vcot would "
            "lose data on this storage unnoticed"
        )
    if refused:
        raise SettingsError(
            f"{settings.uri}: the storage refuses {len(refused)} of {len(found)} checks ({', '.join(refused)}); vcot "
            "needs these requests. Correct the rights of the keys, or use another storage"
        )


if __name__ == "__main__":
    launch(ProbeSettings, run)
