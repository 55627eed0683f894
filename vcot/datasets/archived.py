"""Images in an archive that nobody unpacks: its index is made in the part prepare, and holds for all of a run."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vcot.errors import InputError
from vcot.records import Folder
from vcot.storage import NotFound, join
from vcot.storage.archive import Archive, Index, find, indexed, opened


def archive_at(
    images_uri: str, folder: Folder, scratch: Path, *, index_uri: str | None, look: bool, name: str
) -> Archive | None:
    """The archive at `images_uri`, or None where that is a folder of images.

    Args:
        index_uri: where indices are kept, below a name for the state of the chunks; default: in the stage's folder.
        look: make the index if there is none yet.
        name: under which the stage's folder says which index this run goes by.

    Raises:
        InputError: no whole tar file; another one than when this run began; not indexed yet, and `look` is false.
    """
    chunks = find(folder.store, images_uri)
    if chunks is None:
        return None
    uri = join(folder.uri, name)
    if look and folder.store.stat(uri) is None:
        made = indexed(chunks, index_uri or join(folder.uri, "archive"), scratch)
        folder.store.write_once(uri, made.model_dump_json(indent=1).encode() + b"\n")
    try:
        index = Index.model_validate_json(folder.store.read(uri))
    except NotFound:
        raise InputError(f"{uri} is missing: --part prepare comes before --part shards") from None
    except ValidationError as error:
        raise InputError(f"{uri} is damaged: {error.errors()[0]['msg']}; delete {folder.uri} and run again") from None
    here = scratch / Path(name).stem
    here.mkdir(exist_ok=True)
    return opened(chunks, index, here)
