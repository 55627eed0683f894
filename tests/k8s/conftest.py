"""Every overlay with every component, rendered once per process; nobody changes what is shared."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.k8s.kustomize import OVERLAYS, VARIANTS, Manifest, edited, render, variant


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Manifest]]:
    """The objects of a variant, by its name (see VARIANTS)."""
    return lambda name: render(variant(tmp_path_factory.getbasetemp() / "variants", name))


@pytest.fixture(scope="session")
def everything(rendered: Callable[[str], list[Manifest]]) -> list[tuple[str, list[Manifest]]]:
    """Each variant and its objects."""
    return [(name, rendered(name)) for name in VARIANTS]


@pytest.fixture(scope="session")
def gpu() -> list[Manifest]:
    return render(OVERLAYS / "gpu")


@pytest.fixture
def with_components(tmp_path: Path) -> Callable[[Iterable[str]], list[Manifest]]:
    """Overlay gpu with these components in its list, in this order."""
    return lambda components: render(edited(tmp_path / "-".join(components), [*components]))
