"""Deployments get the newest promotion: the real client against the stub of an API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_subjects import change_marker, earn, pointers
from tests.fakes.apiserver import ApiServer
from tests.fakes.cluster import a_cluster
from vcot.errors import InputError
from vcot.pipeline.client import ClusterClient, connect
from vcot.pipeline.rollout import PROMOTION, roll_out
from vcot.stage import Stop
from vcot.storage import Store

BOTH = ("model", "page")


def put(server: ApiServer) -> None:
    for name in BOTH:
        template = {"metadata": {"labels": {"app": name}}, "spec": {}}
        server.cluster.put("Deployment", {"metadata": {"name": name}, "spec": {"replicas": 1, "template": template}})


def up(server: ApiServer, name: str, **counts: int) -> None:
    """As a rollout that is over leaves it."""
    one = {"observedGeneration": 9} | {f"{what}eplicas": 1 for what in ("r", "updatedR", "availableR")} | counts
    server.cluster.objects["Deployment", name]["status"] = one


def served(api: ClusterClient, name: str = "model") -> Any:
    template = (api.get("Deployment", name) or {})["spec"]["template"]["metadata"]
    assert template["labels"] == {"app": name}
    return template.get("annotations", {}).get(PROMOTION)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(a_cluster()) as server:
        put(server)
        yield server


@pytest.fixture
def api(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterClient:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    return connect("vcot", server.cluster.clock, Stop())


def test_a_new_promotion_is_rolled_out_once_the_page_behind_the_model(
    server: ApiServer, api: ClusterClient, folder_place: str
) -> None:
    line = pointers(folder_place)
    with pytest.raises(InputError, match="no model was promoted yet"):
        roll_out(Store(), api, line, BOTH)
    for run in ("one", "two"):
        pointer, before = earn(folder_place, run), served(api, "page")
        up(server, "model", updatedReplicas=0)
        assert roll_out(Store(), api, line, BOTH) == ["model"]
        for counts in ({"updatedReplicas": 0}, {"replicas": 2}, {"availableReplicas": 0}):
            up(server, "model", **counts)
            assert roll_out(Store(), api, line, BOTH) == []
            assert (served(api, "model"), served(api, "page")) == (pointer.uri, before)
        up(server, "model")
        assert roll_out(Store(), api, line, BOTH) == ["page"]
        assert served(api, "model") == served(api, "page") == pointer.uri
        up(server, "page")
        assert roll_out(Store(), api, line, BOTH) == []


def test_a_named_promotion_stays_and_a_model_that_changed_is_not_rolled_out(
    api: ClusterClient, folder_place: str
) -> None:
    one = earn(folder_place, "one")
    two = earn(folder_place, "two")
    assert roll_out(Store(), api, one.uri, BOTH) == []
    assert served(api) is None
    change_marker(two.promotion.train_uri)
    with pytest.raises(InputError, match=r"is not what .*0000000002\.json promoted"):
        roll_out(Store(), api, pointers(folder_place), BOTH)
    earn(folder_place, "three", "second")
    with pytest.raises(InputError, match="there is no Deployment other in namespace vcot"):
        roll_out(Store(), api, pointers(folder_place, "second"), ("other",))
