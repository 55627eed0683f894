"""Tar files for tests, whole and in chunks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from vcot.storage import Store, join


def tar(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT, links: Mapping[str, str] | None = None) -> bytes:
    """links: name → target of symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def in_chunks(store: Store, folder: str, data: bytes, size: int, stem: str = "cot_images_") -> list[str]:
    """The URIs of the chunks."""
    uris = [join(folder, f"{stem}{number:02d}") for number in range(-(-len(data) // size))]
    for number, uri in enumerate(uris):
        store.write(uri, data[number * size : (number + 1) * size])
    return uris
