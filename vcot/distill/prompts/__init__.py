"""What a teacher is told, as files: `<name>.v<version>.md`, one for each purpose.

    chosen()["verdict"]                      the newest of the package
    chosen(["verdict=1"])                    that version of it
    chosen(["verdict=s3://b/strict.v7.md"])  a file of one's own

Name, version and every word are part of the key of a reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from vcot.distill.request import Prompt
from vcot.errors import SettingsError
from vcot.storage import NotFound, Store

_FILE = re.compile(r"(?P<name>[a-z-]+)\.v(?P<version>[0-9]+)\.md")


def chosen(choices: Sequence[str] = (), store: Store | None = None) -> dict[str, Prompt]:
    """The prompt for each purpose, by name; `choices` are "name=version" or "name=URI of a file".

    Raises SettingsError: there is no such prompt or version, or a file that is none.
    """
    found = {name: versions[max(versions)] for name, versions in packaged().items()}
    for choice in choices:
        name, _, what = choice.partition("=")
        if name not in found or not what:
            raise SettingsError(
                f"--prompts {choice}: it should be name=version or name=file, name one of {_listed(found)}"
            )
        found[name] = _version(name, int(what)) if what.isdecimal() else _own(name, what, store or Store())
    return found


def own(choices: Sequence[str]) -> list[str]:
    """The URIs among the choices."""
    return [what for choice in choices if not (what := choice.partition("=")[2]).isdecimal()]


@cache
def packaged() -> Mapping[str, Mapping[int, Prompt]]:
    """All prompts of the package: name → version → prompt."""
    prompts: dict[str, dict[int, Prompt]] = {}
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        if told := _FILE.fullmatch(file.name):
            name, version = told["name"], int(told["version"])
            prompts.setdefault(name, {})[version] = Prompt(name, version, file.read_text("utf-8").strip())
    return prompts


def _version(name: str, version: int) -> Prompt:
    versions = packaged()[name]
    if version not in versions:
        raise SettingsError(f"--prompts {name}={version}: there is version {_listed(versions)}")
    return versions[version]


def _own(name: str, uri: str, store: Store) -> Prompt:
    """A file of one's own; its version is the number that its name ends in (my.v7.md), else 0."""
    try:
        text = store.read(uri).decode().strip()
    except NotFound:
        raise SettingsError(f"--prompts {name}={uri}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"--prompts {name}={uri}: it is not UTF-8 ({error.reason})") from None
    if not text:
        raise SettingsError(f"--prompts {name}={uri}: it is empty")
    told = re.search(r"\.v([0-9]+)\.md\Z", uri)
    return Prompt(name, int(told[1]) if told else 0, text)


def _listed(names: Mapping[str, object] | Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(names)))
