"""The images: what is shipped is what was tested, a stage is started without a shell, nothing of a registry is in."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.M))


def test_images_hold_the_versions_that_the_tests_ran_with() -> None:
    tested, data, gpu = pins("dev"), pins("data"), pins("gpu")
    assert gpu.items() <= tested.items()
    assert data.items() <= gpu.items()
    assert "torch" in gpu
    assert "torch" not in data
    for needed in ("boto3", "kubernetes", "openai", "pyarrow"):
        assert needed in data


def test_every_requirement_has_its_hash() -> None:
    for name in ("data", "gpu"):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert len(re.findall(r"^\S+==\S+ \\\n    --hash=sha256:", text, re.M)) == len(pins(name))
        assert "://" not in text


def test_python_is_what_the_project_asks_for() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    base = re.search(r"^ARG BASE=python:(\d+\.\d+)-slim$", DOCKERFILE, re.M)
    assert base is not None, "an ordinary name, and no registry"
    assert wanted.startswith(f">={base[1]}")


def test_both_images_start_a_module_as_an_ordinary_user() -> None:
    targets = DOCKERFILE.split("\nFROM ")
    for name in ("data", "gpu"):
        (stage,) = [text for text in targets if re.match(rf"\S+ AS {name}\n", text)]
        assert 'ENTRYPOINT ["python", "-m"]' in stage, "a shell would keep SIGTERM to itself"
        assert "USER 10001:10001" in stage
        assert f'org.opencontainers.image.title="vcot-{name}"' in stage
        assert "--from=code" in stage, "code is a layer of its own, above all libraries"


def test_only_what_an_image_needs_is_sent_to_its_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {"jobs", "vcot", "requirements"}
