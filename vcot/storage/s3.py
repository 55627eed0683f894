"""S3 and what speaks like it (MinIO, Ceph, moto). The only file that knows boto3.

Set up by the standard variables alone: AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_CA_BUNDLE, AWS_MAX_ATTEMPTS, AWS_RETRY_MODE, … or a workload identity.

Only what every server does alike is used: single-part PutObject with `If-None-Match: *`, multipart uploads, ranges,
listing and DeleteObject. Not used: If-Match on writes, rename, and ETags as anything but "the same object as before".

boto3 itself retries requests, sends and fetches large files in parallel parts, and aborts uploads that fail. Ours are
the stream that goes on where a connection broke (smart_open's does not notice that the object was replaced meanwhile)
and the words for what went wrong.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import Boto3Error, RetriesExceededError
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as botocore_errors
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import S3DownloadFailedError
from urllib3.exceptions import HTTPError

from vcot import logging
from vcot.errors import InputError, SettingsError, TemporaryError, UsageError, VcotError
from vcot.stage import stop
from vcot.storage.local import CHUNK, Changed, Entry, LocalFile, NotFound

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART = 16 << 20  # bytes of one part of a large object: 10,000 of them (S3's limit) are 156 GiB

# How long to be patient. A refused connection fails in about 6 s (nine tries, waits of 0.05 s doubling); an endpoint
# that answers nothing, not even a refusal, in about 40: no try begins later than CEILING after the first.
_TRIES, _CONNECT_TIMEOUT, _READ_TIMEOUT, _CEILING = 9, 5, 20, 25.0
_STREAM_TRIES = 3  # reconnections without a single new byte, in the middle of a download
_CONFLICT_TRIES = 6  # answers "409, somebody is writing that just now" to a write-once

# What servers answer, by what can be done about it.
_NO_ROOM = "XMinioStorageFull XMinioAdminBucketQuotaExceeded QuotaExceeded InsufficientStorage 507"
_BUSY = (
    "RequestTimeout RequestTimeoutException SlowDown TooManyRequests TooManyRequestsException Throttling "
    "ThrottlingException RequestLimitExceeded BandwidthLimitExceeded OperationAborted BadDigest "
    "XAmzContentSHA256Mismatch IncompleteBody IDPCommunicationError 429 "
    "NoSuchUpload"  # somebody cleaned up while we were writing
)
_BAD_NAME = (
    "KeyTooLongError XMinioInvalidObjectName XMinioInvalidResourceName InvalidURI EntityTooLarge InvalidObjectState "
    "XMinioParentIsObject XMinioObjectExistsAsDirectory"
)
_KEYS = {
    "InvalidAccessKeyId": "does not know this access key; check AWS_ACCESS_KEY_ID",
    "InvalidClientTokenId": "does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "refuses the secret key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "says that the keys have expired; get new ones",
    "ExpiredTokenException": "says that the keys have expired; get new ones",
    "InvalidToken": "refuses the session token; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "says that this machine's clock is wrong; set it",
    "AccessDenied": "denies access; these keys need list and get on inputs, list, get and put on runs",
    "AccessDeniedException": "denies access; check the role of this workload identity",
    "AllAccessDisabled": "has disabled all access to it",
    "AccountProblem": "has a problem with the account of these keys",
    "InvalidIdentityToken": "refuses the identity token of this workload",
    # where the answer had no body with a code
    "403": "refuses the keys or denies access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights",
    "Forbidden": "refuses the keys or denies access; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights",
}
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
# botocore passes on what urllib3 raises while the body of an error answer is read.
_BOTO_ERRORS = (BotoCoreError, ClientError, Boto3Error, S3DownloadFailedError, ResponseParserError, HTTPError)


class S3Object:
    """An object by bucket and key. See Store for what the verbs promise."""

    def __init__(self, uri: str, bucket: str, key: str) -> None:
        self.uri = uri
        self.bucket = bucket
        self.key = key

    def read(self) -> bytes:
        with self.open_read() as source:
            return source.read()

    def read_range(self, start: int, length: int, of: Entry | None = None) -> bytes:
        with self.open_read(of, start, length) as source:
            return source.read(length)

    @contextmanager
    def open_read(self, of: Entry | None = None, start: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
        with io.BufferedReader(_Download(self, start, length, of), CHUNK) as source:
            yield cast(BinaryIO, source)

    @contextmanager
    def open_write(self) -> Iterator[BinaryIO]:
        with tempfile.TemporaryDirectory(prefix="upload-") as scratch:
            path = Path(scratch) / "object"
            with LocalFile(self.uri, str(path)).open_write() as target:
                yield target
            self.upload(path)

    def write(self, data: bytes) -> None:
        with self.plain_words():
            self.client.put_object(Bucket=self.bucket, Key=self.key, Body=data)

    def write_once(self, data: bytes) -> bool:
        for attempt in range(_CONFLICT_TRIES):
            try:
                with self.plain_words(pass_on=("PreconditionFailed", "412", "ConditionalRequestConflict", "409")):
                    self.client.put_object(Bucket=self.bucket, Key=self.key, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    # A first try may have been written and its answer lost; the second then finds our own bytes.
                    retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
                    return retried and self.read() == data
                time.sleep(random.uniform(0.05, 0.1) * 2**attempt)  # the other writer may still fail: ask again
        if self.stat() is not None:
            return False
        raise TemporaryError(
            f"{self.uri}: {_CONFLICT_TRIES} times somebody else was just writing it, yet it is not there"
        )

    def delete(self) -> None:
        with self.plain_words():
            self.client.delete_object(Bucket=self.bucket, Key=self.key)

    def upload(self, path: Path, left: Callable[[int], None] | None = None) -> None:
        with LocalFile(str(path), str(path)).open_read() as file:
            size = os.fstat(file.fileno()).st_size
        try:
            self.client.upload_file(str(path), self.bucket, self.key, Config=_transfer(), Callback=left)
        except _BOTO_ERRORS as error:
            # When the answer to the last request was lost, its second try finds no upload but the finished object.
            finished = self.stat() if _code(_cause(error)) == "NoSuchUpload" else None
            if finished is None or finished.size != size:
                raise self.explain(error) from error

    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        def told(count: int) -> None:
            stop.raise_if_requested("what was done before is kept")
            if arrived is not None:
                arrived(count)

        local = LocalFile(str(path), str(path))
        stop.raise_if_requested("what was done before is kept")
        with local.temporary() as temporary, local.plain_words(), self.plain_words():
            self.client.download_file(self.bucket, self.key, temporary, Config=_transfer(), Callback=told)
            os.replace(temporary, path)  # noqa: PTH105

    def list(self) -> Iterator[Entry]:
        prefix = self.key + "/" if self.key and not self.key.endswith("/") else self.key
        with self.plain_words():
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                if "IsTruncated" not in page:
                    raise self._not_s3()  # a web page would otherwise be taken for an empty list
                for found in page.get("Contents", ()):
                    if not found["Key"].endswith("/"):  # what consoles leave to show a "folder"
                        yield Entry(f"s3://{self.bucket}/{found['Key']}", found["Size"], found.get("ETag", ""))

    def stat(self) -> Entry | None:
        try:
            head = self.client.head_object(Bucket=self.bucket, Key=self.key)
        except _BOTO_ERRORS as error:
            if not isinstance(error, ClientError) or not 300 <= _status(error) < 500:
                raise self.explain(error) from error
            seen = _connect(self.uri).buckets_seen
            if _status(error) == 404 and self.bucket in seen:
                return None
            found = self._stat_by_get()
            seen.add(self.bucket)
            return found
        return Entry(self.uri, head["ContentLength"], head.get("ETag", ""))

    def _stat_by_get(self) -> Entry | None:
        """Get the first byte: an error of HEAD has no body, so only GET says why, and whether the bucket exists."""
        try:
            with self.plain_words(pass_on=("InvalidRange", "416")):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.key, Range="bytes=0-0")
        except NotFound:
            return None
        except ClientError as error:  # an empty object has no first byte
            return Entry(self.uri, 0, _header(error, "etag"))
        answer["Body"].close()
        size = answer.get("ContentRange", "").rpartition("/")[2] or answer["ContentLength"]
        return Entry(self.uri, int(size), answer.get("ETag", ""))

    def needs_virtual_hosts(self) -> bool:
        """Return True if virtual-host addressing reaches the bucket, and path-style addressing does not."""
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _status(error) >= 500:
                return False
        except _BOTO_ERRORS:
            return False
        else:
            return False
        with suppress(*_BOTO_ERRORS):
            _new_connection("virtual").client.head_bucket(Bucket=self.bucket)
            return True
        return False

    @property
    def client(self) -> S3Client:
        return _connect(self.uri).client

    @property
    def endpoint(self) -> str:
        return _connect(self.uri).endpoint

    @contextmanager
    def plain_words(self, pass_on: tuple[str, ...] = ()) -> Iterator[None]:
        """Turns what boto3 raises into one line about this URI. `pass_on`: answers that the caller understands."""
        try:
            yield
        except _BOTO_ERRORS as error:
            if _code(error) in pass_on:
                raise
            raise self.explain(error) from error

    def explain(self, error: Exception) -> VcotError:
        error = _cause(error)
        if isinstance(error, ClientError):
            return self._explain_answer(error)
        said = " ".join(str(error).split())
        match error:
            case botocore_errors.NoCredentialsError():
                return SettingsError(
                    f"{self.uri}: no keys for {self.endpoint}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    f"(on Kubernetes in the Secret s3-credentials), or give this workload an identity"
                )
            case botocore_errors.SSLError() if "CERTIFICATE" in said or "WRONG_VERSION" in said:
                return SettingsError(
                    f"{self.uri}: no trusted connection to {self.endpoint}; check http or https in "
                    f"AWS_ENDPOINT_URL_S3, and AWS_CA_BUNDLE ({said})"
                )
            case botocore_errors.ParamValidationError() | botocore_errors.InvalidDNSNameError():
                if "bucket name" in said:
                    return self._bad_bucket()
                return UsageError(f"{self.uri}: {said.removeprefix('Parameter validation failed: ')}")
            case botocore_errors.CredentialRetrievalError():
                return TemporaryError(
                    f"{self.uri}: the keys of this workload identity could not be had just now ({said})"
                )
            case (
                HTTPError()
                | botocore_errors.ConnectionError()
                | botocore_errors.HTTPClientError()
                | botocore_errors.IncompleteReadError()
                | botocore_errors.ChecksumError()
                | botocore_errors.FlexibleChecksumError()
            ):
                return TemporaryError(
                    f"{self.uri}: no good connection to {self.endpoint}; is the server running, and is "
                    f"AWS_ENDPOINT_URL_S3 right? ({said})"
                )
            case ResponseParserError():
                return self._not_s3()
            case _:
                return SettingsError(f"{self.uri}: {said} (settings of boto3; see the AWS_* variables)")

    def _explain_answer(self, error: ClientError) -> VcotError:
        code, status, endpoint = _code(error), _status(error), self.endpoint
        said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split()) or code
        if code == "NoSuchBucket":
            return self._no_bucket()
        if code == "InvalidBucketName":
            return self._bad_bucket()
        if code in ("NoSuchKey", "404", "NotFound"):
            return NotFound(f"{self.uri}: no such object at {endpoint}")
        if code in ("PreconditionFailed", "412", "InvalidRange", "416"):
            return Changed(f"{self.uri}: changed while it was read")
        if code in _NO_ROOM.split() or status == 507:
            return TemporaryError(f"{self.uri}: no room left on {endpoint} ({said})")
        if code in _OTHER_REGION:
            region = error.response.get("Error", {}).get("Region") or _header(error, "x-amz-bucket-region")
            advice = f"set AWS_REGION={region}" if region else "check AWS_REGION"
            return SettingsError(f"{self.uri}: {endpoint} expects another region; {advice} ({said})")
        if code in _KEYS:
            return SettingsError(f"{self.uri}: {endpoint} {_KEYS[code]} ({said})")
        if code in _BAD_NAME.split():
            return InputError(f"{self.uri}: {endpoint} cannot hold or give this object ({said})")
        if code in _BUSY.split() or (status >= 500 and code not in ("NotImplemented", "501")):
            return TemporaryError(f"{self.uri}: {endpoint} is not well just now ({code}: {said})")
        return SettingsError(f"{self.uri}: {endpoint} refuses {error.operation_name} ({code}: {said})")

    def _no_bucket(self) -> SettingsError:
        return SettingsError(
            f"{self.uri}: there is no bucket {self.bucket!r} at {self.endpoint}; make it, or correct the URI"
        )

    def _not_s3(self) -> SettingsError:
        return SettingsError(f"{self.uri}: {self.endpoint} does not answer like S3; check AWS_ENDPOINT_URL_S3")

    def _bad_bucket(self) -> UsageError:
        return UsageError(f"{self.uri}: {self.bucket!r} is no name for a bucket: 3 to 63 of a-z, 0-9, hyphens and dots")


class _Download(io.RawIOBase):
    """The bytes of one object from `start` on. Seeks, and takes a broken connection up again where it broke."""

    def __init__(self, place: S3Object, start: int, length: int | None, of: Entry | None) -> None:
        self._place = place
        self._position = start
        self._end = None if length is None else start + length  # asked for, so that a range costs a range
        self._size, self.state = (-1, "") if of is None else (of.size, of.state)  # of the whole object
        self._body: Any = None
        self._open()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"cannot seek to {position}")
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        tries = 0
        while self._position < self._size:
            try:
                if self._body is None:
                    self._open()
                got = int(self._body.readinto(buffer))
                if got == 0:
                    raise botocore_errors.IncompleteReadError(
                        actual_bytes=self._position, expected_bytes=self._end or self._size
                    )
            except (BotoCoreError, OSError) as error:
                self._drop()
                tries += 1
                if tries == _STREAM_TRIES:
                    raise self._place.explain(error) from error
                time.sleep(random.uniform(0.2, 0.4) * tries)
            else:
                self._position += got
                if self._position == self._end:  # the asked-for range is used up; more needs another request
                    self._drop()
                    self._end = None
                return got
        return 0

    def readall(self) -> bytes:  # RawIOBase's own takes 8 KiB at a time
        return b"".join(iter(lambda: self.read(CHUNK), b""))

    def close(self) -> None:
        self._drop()
        super().close()

    def _open(self) -> None:
        place, first = self._place, self._size < 0
        asked: dict[str, Any] = {}
        if self._position or self._end is not None:
            asked["Range"] = f"bytes={self._position}-" + ("" if self._end is None else str(self._end - 1))
        try:
            with place.plain_words(pass_on=("InvalidRange", "416") if first else ()):
                answer = place.client.get_object(Bucket=place.bucket, Key=place.key, **asked)
        except ClientError:  # beyond the end, as an empty slice
            self._size = self._position
            return
        except NotFound as error:
            if first:
                raise
            raise Changed(f"{place.uri}: vanished while it was read") from error
        self._body, size = answer["Body"], answer["ContentLength"]
        if asked:
            said = answer.get("ContentRange", "")
            if not said.startswith(f"bytes {self._position}-"):
                self._drop()
                raise SettingsError(f"{place.uri}: {place.endpoint} ignores ranges, which vcot needs")
            size = int(said.rpartition("/")[2])
        if first:
            self._size, self.state = size, answer.get("ETag", "")
        elif (size, answer.get("ETag", "")) != (self._size, self.state):
            self._drop()
            raise Changed(f"{place.uri}: changed while it was read")

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


@dataclass(frozen=True)
class _Connection:
    client: S3Client
    endpoint: str
    buckets_seen: set[str]


# One client for all Stores of a process: clients are thread-safe and cost 0.1 s. Not for its children, who would
# share sockets. Tests change the variables, hence the key.
_connections: dict[tuple[tuple[str, str], ...], _Connection] = {}
_lock = threading.Lock()


def _forget() -> None:
    global _lock
    _connections.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _connect(uri: str) -> _Connection:
    key = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _lock:
        if key not in _connections:
            try:
                _connections[key] = _new_connection()
            except (BotoCoreError, ValueError) as error:
                said = " ".join(str(error).split())
                raise SettingsError(f"{uri}: S3 is not set up: {said}; see the AWS_* variables") from error
        return _connections[key]


def _new_connection(addressing_style: Literal["path", "virtual"] | None = None) -> _Connection:
    core = botocore.session.get_session()
    patience_is_theirs = core.get_config_variable("max_attempts") is not None
    retries: dict[str, Any] = {} if patience_is_theirs else {"total_max_attempts": _TRIES}
    if core.get_config_variable("retry_mode") is None:
        retries["mode"] = "standard"
    session = boto3.session.Session(botocore_session=core)

    def client(**more: Any) -> S3Client:
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT, retries=cast(Any, retries),
            max_pool_connections=32, tcp_keepalive=True, **more,
        )  # fmt: skip
        return session.client("s3", config=config)

    made = client()
    parts = urlsplit(made.meta.endpoint_url)
    endpoint = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    host = parts.hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")):
        more: dict[str, Any] = {}
        # boto3 sends checksums as trailers by default, and older servers store these inside the object.
        for setting in ("request_checksum_calculation", "response_checksum_validation"):
            if f"AWS_{setting.upper()}" not in os.environ:
                more[setting] = "when_required"
        if addressing_style or "addressing_style" not in (core.get_scoped_config().get("s3") or {}):
            more["s3"] = {"addressing_style": addressing_style or "path"}
        made = client(**more)
    if not patience_is_theirs:
        _set_ceiling(made)
    credentials = session.get_credentials()
    if credentials is not None:
        # Falling back to the rights of the node without a word has surprised people: say whose keys these are.
        say = logging.get().warning if credentials.method == "iam-role" else logging.get().info
        say("S3", endpoint=endpoint, keys_from=credentials.method)
    return _Connection(made, endpoint, set())


def close_idle_connections() -> None:
    """Close pooled connections, so that the next request of each client opens one; requests under way are not hurt."""
    with _lock:
        clients = [connection.client for connection in _connections.values()]
    for client in clients:
        client.close()


def _set_ceiling(client: S3Client) -> None:
    """No further try once _CEILING seconds have passed since the first, whatever each of them waited for."""

    def begin(params: dict[str, Any], **_: Any) -> None:
        params["context"]["vcot_began"] = time.monotonic()

    def judge(request_dict: dict[str, Any], **_: Any) -> bool | None:
        began = request_dict["context"].get("vcot_began", time.monotonic())
        return False if time.monotonic() - began > _CEILING else None

    client.meta.events.register("before-call.s3", begin)
    client.meta.events.register_first("needs-retry.s3", cast(Any, judge))


def _transfer() -> TransferConfig:
    return TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=8)


def _cause(error: Exception) -> Exception:
    """What led to an error of boto3's transfers, which hide the reason in a text."""
    if isinstance(error, RetriesExceededError):
        return _cause(cast(Any, error).last_exception)
    if isinstance(error, Boto3Error | S3DownloadFailedError) and isinstance(error.__context__, _BOTO_ERRORS):
        return _cause(error.__context__)
    return error


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _header(error: ClientError, name: str) -> str:
    return str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
