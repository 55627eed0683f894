"""Images by their path in the dataset: size and digest, each read once.

Rows repeat images, and reading them is what a conversion spends its time on. So what is known of an image is
remembered (a bounded number of them), and only the header is decoded, unless the end of the file looks wrong, or a
copy of the image is wanted (ingest.py).
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vcot import uris
from vcot.datasets.image_index import ImageIndex
from vcot.datasets.ingest import Ingest
from vcot.datasets.inputs import Refused
from vcot.errors import InputError, SettingsError, UsageError
from vcot.records import Folder, Image, Reason
from vcot.storage import Changed, Entry, NotFound, Store, confirmed, join, state_of
from vcot.storage import images as reading
from vcot.storage.archive import Archive, Chunks, NoFile, find, indexed, opened, read_index
from vcot.storage.images import ImageError

TOPS = ("cot_image_data", "cot")
"""What the folder of VisCoT's sets is called in its archive, and in its rows. People have the images below either, or
without it, and so do rows that others made of VisCoT's.
"""
_Found = Image | tuple[str, reading.Reason, str]
"""Or what makes an ImageError."""
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|/")


class NotAtHand(Exception):
    """Nobody has looked at this image yet, and the asker does not want to wait."""


class DatasetImages:
    """Looks images up; share it between threads.

    Args:
        images_uri: the folder that paths are below; None where a dataset gives whole URIs only.
        made_uri: where images go that a source draws or unpacks itself.
        max_pixels, max_side: what is larger is refused before it is decoded, in pixels.
        budget: pixels of the copies that later stages read; None: they read the images where they are.
        remember: how many images are kept in mind (about 1 kB each).
        index: where all are noted that were looked at, and others may have been.
    """

    def __init__(
        self, store: Store, images_uri: str | None, made_uri: str, *, max_pixels: int = reading.MAX_PIXELS,
        max_side: int = 20_000, budget: int | None = None, remember: int = 4_000, index: ImageIndex | None = None,
    ) -> None:  # fmt: skip
        self._store, self._images_uri, self._made_uri = store, images_uri, made_uri
        self._max_pixels, self._max_side, self._keep_in_mind = max_pixels, max_side, remember
        copies_uri = join(made_uri, "copies")
        self._ingest = None if budget is None else Ingest(store, copies_uri, budget, max_pixels=max_pixels)
        self._index = index
        self._archive: Archive | None = None
        self._folders: Sequence[str] = ()
        self._unlisted: Sequence[str] = ()
        self._known: OrderedDict[str, Image | Future[_Found]] = OrderedDict()
        self._lock = threading.Lock()
        self._waits = True

    def at_hand(self) -> DatasetImages:
        """The same, for who does not want to wait: raises NotAtHand of an image that nobody has looked at yet."""
        hasty = copy.copy(self)  # what is known, both know
        hasty._waits = False
        return hasty

    def in_place(self) -> DatasetImages:
        """The same without copies, for who wants to know sizes and digests alone."""
        if self._ingest is None:
            return self
        plain = copy.copy(self)
        plain._ingest, plain._known = None, OrderedDict()
        return plain

    def below(self, folders: Sequence[str], archive: Archive | None = None) -> DatasetImages:
        """The same: paths are below one of these folders of the images' folder, or of an archive: the first that has
        them.
        """

        def has(folder: str) -> bool:
            if archive is not None:
                return archive.has_folder(folder)
            return next(self._store.list(join(self._images_uri or "", folder)), None) is not None

        there = copy.copy(self)
        there._archive, there._known = archive, OrderedDict()
        there._folders = [folder for folder in folders if not folder or has(folder)]
        if archive is None and (self._images_uri or "").startswith("s3://"):  # where a list may be empty by mistake
            there._unlisted = [folder for folder in folders if folder not in there._folders]
        return there

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what it looks up itself it remembers itself, and the index is shared."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock(), "_known": OrderedDict()}

    def listed(self) -> Iterator[Entry]:
        """Every object that a path can lead to, as storage has it now."""
        if self._archive is not None:
            return self._archive.listed()
        return iter(()) if self._images_uri is None else self._store.list(self._images_uri)

    def find(self, path: str) -> Image:
        """The image at a path below the images' folder, or at a URI.

        Raises:
            ImageError: it cannot be used; `reason` says why.
            SettingsError: a path, and no folder to look in.
        """
        known = self._known.get(path) or self._begun(path)
        if isinstance(known, Image):
            return known
        if not self._waits and not known.done():
            raise NotAtHand(path)
        found = known.result()
        if isinstance(found, Image):
            return found
        raise ImageError(*found)

    def _begun(self, path: str) -> Image | Future[_Found]:
        """What is in the index, or what this thread finds out, also for those that come meanwhile and wait."""
        uris = self._uris(path)
        with self._lock:
            if (known := self._known.get(path)) is not None:
                return known
            image = self._indexed(uris[0])
            if image is None and not self._waits:
                raise NotAtHand(path)
            found: Image | Future[_Found] = image or Future()
            self._known[path] = found
            if len(self._known) > self._keep_in_mind:
                self._known.popitem(last=False)
        if isinstance(found, Image):
            return found
        try:
            image = self._known[path] = self._look_at_one_of(uris)
            found.set_result(image)
        except ImageError as error:
            # Not the error itself: it holds every frame that it has passed, with the bytes of the image.
            name, _, detail = str(error).partition(": ")
            found.set_result((name, error.reason, detail))
        except BaseException as error:
            self._known.pop(path, None)
            found.set_exception(error)
        return found

    def _indexed(self, uri: str) -> Image | None:
        """What is known of it already; None also where that is not enough, or where earlier runs allowed more."""
        image = None if self._index is None else self._index.get(uri)
        if image is None or image.width * image.height > self._max_pixels:
            return None
        if max(image.width, image.height) > self._max_side or (self._ingest is not None and image.stored is None):
            return None
        return image.model_copy(update={"stored": None}) if self._ingest is None and image.stored else image

    def keep(self, name: str, data: bytes) -> Image:
        """Stores an image that a source made (drawn, or unpacked from a row) and gives it as a record."""
        if not self._waits:
            raise NotAtHand(name)
        uri = join(self._made_uri, name)
        image = self._validated(uri, data, ours=True)
        self._store.write(uri, data)
        return image

    def of(self, said: Any) -> Image:
        """The image of a row: `{"bytes": …, "path": …}` (Parquet of the hub), bytes, a data URL, or a path or URI.

        Raises:
            Refused: the row has none, or it is written in another way.
            ImageError: it cannot be used.
        """
        said = _unpacked(said)
        if not there(said):
            raise Refused(Reason.NO_IMAGE, "the row has no image")
        if isinstance(said, bytes):
            return self.keep(hashlib.sha256(said).hexdigest(), said)
        if not isinstance(said, str):
            raise Refused(Reason.WRONG_SHAPE, f"an image is a path, a URI or bytes; got {said!r:.60}")
        return self.of(decoded(said.partition(",")[2])) if said.startswith("data:") else self.find(said)

    def print_of(self, uri: str, sha256: str) -> bytes | None:
        """What an image looks like (near_duplicates.py); None: it shows nothing.

        Raises:
            Changed: it is gone, or another one than had this digest.
            ImageError: its data are damaged, whatever its header says.
        """
        from vcot.datasets import near_duplicates  # numpy, which --check need not wait for

        known = None if self._index is None else self._index.print_of(uri, sha256)
        if known is None:
            data, _ = confirmed(uri, lambda: self._read_recorded(uri, sha256))
            try:
                grey = reading.small(data, uri, near_duplicates.SEEN, max_pixels=self._max_pixels)
            except ImageError:
                reading.decode(data, uri, max_pixels=self._max_pixels)  # which says what every later stage would say
                return None
            known = near_duplicates.fingerprint(grey) or b""
            if self._index is not None:
                self._index.note_print(uri, sha256, known)
        return known or None

    def _uris(self, path: str) -> Sequence[str]:
        """Where an image may lie, likeliest first; one place where rows or an archive's index say which."""
        if (parts := uris.pieces(path)) or _ABSOLUTE.match(path):
            for place in [part.uri for part in parts] or [path]:
                try:
                    uris.split(place)
                except UsageError as error:
                    raise ImageError(path, "unsupported-format", str(error)) from None
                # Rows do not choose which buckets and files are read, where somebody has said in which folder images
                # are.
                if self._images_uri is not None and not _is_below(self._images_uri, place):
                    raise ImageError(
                        path, "missing", f"it lies outside --images-uri {self._images_uri}, and only without that do "
                        "rows say themselves where images are"
                    )  # fmt: skip
            return [path]
        if self._archive is not None:
            missing = []
            for place in self._places(path):
                try:
                    return [self._archive.uri(place)]
                except NoFile as error:
                    raise ImageError(path, "unsupported-format", str(error)) from None
                except NotFound as error:
                    missing.append(str(error))
            raise ImageError(path, "missing", "; ".join(missing))
        if self._images_uri is None:
            raise SettingsError(f"--images-uri is missing: rows name their images by paths such as {path!r:.80}")
        try:
            return [join(self._images_uri, place) for place in self._places(path)]
        except InputError as error:
            raise ImageError(path, "missing", str(error)) from None

    def _places(self, path: str) -> Sequence[str]:
        """A path as it may be written in this folder or archive, with and without what stands on top of it here."""
        if not self._folders:
            return [path]
        bare = without_top(path)
        top = path.removesuffix(f"/{bare}")
        folders = [*([top] if top in self._folders else []), *self._folders, *self._unlisted]
        return list(dict.fromkeys(f"{folder}/{bare}" if folder else bare for folder in folders))

    def _read(self, uri: str) -> tuple[bytes, str]:
        """The bytes, and the state of what holds them."""
        most = reading.MAX_BYTES + 1
        if self._archive is not None and self._archive.holds(uri):
            return self._archive.read(uri, most), self._archive.state(uri)
        with self._store.open_read(uri) as source:
            return source.read(most), state_of(source)

    def _read_recorded(self, uri: str, sha256: str) -> tuple[bytes, str]:
        """Read an image and compare its digest with the recorded one. Raises Changed: it is missing or differs."""
        try:
            data, state = self._read(uri)
        except NotFound:
            raise _changed(uri) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _changed(uri)
        return data, state

    def _look_at_one_of(self, uris: Sequence[str]) -> Image:
        def attempt() -> Image:
            missing: list[str] = []
            for uri in uris:
                if missing and (known := self._indexed(uri)) is not None:
                    return known
                try:
                    return self._look(uri)
                except NotFound as error:
                    missing.append(str(error))
            raise NotFound("; ".join(missing))

        try:
            return confirmed(uris[0], attempt)
        except NotFound as error:
            raise ImageError(uris[0], "missing", str(error).removeprefix(f"{uris[0]}: ")) from None

    def _look(self, uri: str) -> Image:
        """Read an image and check it.

        Raises:
            NotFound: There is no such image.
            Changed: The image changed since the run began. This is not a fault of the row.
            ImageError: The image or its URI cannot be used.
        """
        before = None if self._index is None else self._index.get(uri)
        try:
            # Which side of the split an image is on was decided by what it showed then.
            data, state = self._read(uri) if before is None else self._read_recorded(uri, before.sha256)
        except (Changed, NotFound):
            raise
        except (InputError, UsageError, ValueError) as error:  # a row that names no place at all
            if before is not None:
                raise _changed(uri) from None
            raise ImageError(uri, "missing", str(error).removeprefix(f"{uri}: ")) from None
        image = self._validated(uri, data)
        if self._index is not None:
            self._index.put(image, len(data), state)
        return image

    def _validated(self, uri: str, data: bytes, *, ours: bool = False) -> Image:
        """`ours`: it lies in our own folder, so that a copy is worth its room only where it is smaller."""
        if len(data) > reading.MAX_BYTES:
            raise ImageError(uri, "too-large", f"more than {reading.MAX_BYTES >> 20} MiB")
        width, height = reading.probe(data, uri, max_pixels=self._max_pixels)
        if max(width, height) > self._max_side:
            raise ImageError(uri, "too-large", f"{width} x {height} pixels; at most {self._max_side:,} a side are read")
        if self._ingest is not None and (not ours or width * height > self._ingest.budget):
            return self._ingest.take(uri, data, (width, height))
        if not _ends_as_it_should(data):
            reading.decode(data, uri, max_pixels=self._max_pixels)
        return Image(uri=uri, width=width, height=height, sha256=hashlib.sha256(data).hexdigest())


def there(said: Any) -> bool:
    """Whether a row has anything at all in the place of its image."""
    return _unpacked(said) not in (None, "", b"")


def _unpacked(said: Any) -> Any:
    return said.get("bytes") or said.get("path") if isinstance(said, dict) else said


def decoded(said: str) -> bytes:
    """Raises Refused: it is no base64."""
    try:
        return base64.b64decode(said, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.IMAGE_NOT_AN_IMAGE, f"an image that is not base64: {error}; {said[:40]!r}") from None


def without_top(path: str) -> str:
    """What stands below `cot/` or `cot_image_data/` in a path; all of it where it begins otherwise."""
    top, _, rest = path.partition("/")
    return rest if top in TOPS and rest else path


def _is_below(folder: str, place: str) -> bool:
    """Or the folder itself, which may be one file: an archive."""
    folder, place = (
        os.path.abspath(path) if not scheme or scheme == "file" else uri  # noqa: PTH100 (a text, not a file)
        for uri in (folder, place)
        for scheme, path in (uris.split(uri),)
    )
    return ".." not in place.split("/") and f"{place}/".startswith(f"{folder.rstrip('/')}/")


def _changed(uri: str) -> Changed:
    return Changed(f"{uri} has changed since this stage first looked at it; use another run name")


def _ends_as_it_should(data: bytes) -> bool:
    """Whether the last bytes are those that close a file of this format. If not, only decoding can tell.

    A few microseconds instead of the milliseconds of a decoder; the tokenize stage decodes every image anyway.
    """
    if data.startswith(b"\xff\xd8"):  # JPEG: end of image
        return data.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG"):  # the IEND chunk and its checksum
        return data[-8:-4] == b"IEND"
    if data.startswith(b"GIF8"):
        return data.endswith(b";")
    if data.startswith(b"RIFF"):  # WebP says how long it is
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


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

    def attempt() -> Archive | None:
        if (chunks := find(folder.store, images_uri)) is None:
            return None
        return _archive_of(chunks, folder, scratch, index_uri=index_uri, look=look, name=name)

    return confirmed(images_uri, attempt)


def _archive_of(
    chunks: Chunks, folder: Folder, scratch: Path, *, index_uri: str | None, look: bool, name: str
) -> Archive:
    uri = join(folder.uri, name)
    if look and (folder.store.stat(uri) is None or not folder.has_begun()):  # a failed attempt may have named another
        made = indexed(chunks, index_uri or join(folder.uri, "archive"), scratch)
        data = made.model_dump_json(indent=1).encode() + b"\n"
        if not folder.store.write_once(uri, data) and not folder.has_begun():  # asked twice: a 404 may be out of date
            folder.store.write(uri, data)
    advice = f"delete {folder.uri} and run again"
    try:
        index = confirmed(uri, lambda: read_index(folder.store, uri, advice))
    except NotFound:
        raise NotFound(f"{uri} is missing: --part prepare comes before --part shards") from None
    here = scratch / Path(name).stem
    here.mkdir(exist_ok=True)
    return opened(chunks, index, here)
