"""Real storage for tests: a folder, moto's S3 server, a real MinIO. Fixtures for all rooms (see conftest.py):

    def test_…(any_place): …        three times, once for each kind
    def test_…(moto_place): …       the fast default where S3 matters
    def test_…(faulty_place): …     moto behind a proxy that answers wrongly (tests/fakes/faults.py)
    def test_…(minio_place): …      where keys, checksums or restarts matter; skipped, with the reason, without MinIO

A place is the URI of a prefix that nobody else uses; the AWS_* variables are set for the test.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.faults import FaultProxy, fault_proxy
from tools.s3server import NoMinio, S3Server, make_bucket, minio_binary, running_s3

__all__ = [
    "FaultyPlace", "any_place", "faulty_place", "folder_place", "minio_place", "minio_server", "moto_place",
    "moto_server", "no_aws",
]  # fmt: skip

BUCKET = "vcot"


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    try:
        minio_binary()  # built once on this machine, two minutes
    except NoMinio as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI tests against a real MinIO: {error}")
        pytest.skip(f"no MinIO: {error}")
    folder = tmp_path_factory.mktemp("minio")
    with running_s3(folder / "data", folder / "log", BUCKET) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_whole(self: S3Response) -> Any:
        """It looks for If-None-Match and then writes; another of its threads may come between, as in no real server."""
        with one_at_a_time:
            return put(self)

    S3Response.put_object = put_whole
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    make_bucket(endpoint, "any", "any", BUCKET)
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }
    yield S3Server(environment, endpoint, "moto", os.getpid())
    server.stop()


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own AWS, and no questions to a cloud's metadata address."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def folder_place(tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri()


@pytest.fixture
def moto_place(moto_server: S3Server, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> str:
    return _place(moto_server, monkeypatch)


@pytest.fixture
def minio_place(minio_server: S3Server, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> str:
    return _place(minio_server, monkeypatch)


@dataclass(frozen=True)
class FaultyPlace:
    """uri: of a prefix of its own. proxy: what its requests pass through."""

    uri: str
    proxy: FaultProxy


@pytest.fixture
def faulty_place(moto_server: S3Server, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyPlace]:
    with fault_proxy(moto_server.endpoint) as proxy:
        uri = _place(moto_server, monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
        yield FaultyPlace(uri, proxy)


@pytest.fixture(params=["folder", "moto", "minio"])
def any_place(request: pytest.FixtureRequest) -> str:
    place: str = request.getfixturevalue(f"{request.param}_place")
    return place


def _place(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/test-{uuid.uuid4().hex}"
