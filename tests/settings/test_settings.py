"""Flags, variables and their faults, as a person meets them."""

import importlib
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from vcot.errors import SettingsError
from vcot.settings import CommaSeparated, Settings, setting
from vcot.stage import launch


class Bake(Settings):
    """Bakes a cake."""

    stage: ClassVar[str] = "bake"

    degrees: float = setting(180, "heat of the oven", unit="°C", gt=0, le=300)
    layers: int = setting(description="how many layers")
    fruits: CommaSeparated = setting((), "what goes on top")
    icing: bool = setting(False, "whether it is iced")
    recipes_uri: CommaSeparated = setting((), "where recipes are")
    photo_uri: str | None = setting(None, "where its image goes")
    helpers: int = setting(1, "people in the kitchen", shapes_result=False)
    shape: Literal["round", "square"] | None = setting(None, "of the tin", shapes_result=False)


@pytest.fixture(autouse=True)
def _no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("VCOT_"):
            monkeypatch.delenv(name)


def load(*argv: str) -> Bake:
    return Bake.load(argv)[0]


GIVEN = ("--run-uri", "/runs/a", "--layers", "2")


def test_flags_beat_variables_which_beat_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_BAKE_DEGREES", "200")
    monkeypatch.setenv("VCOT_BAKE_HELPERS", "3")
    monkeypatch.setenv("VCOT_BAKE_FRUITS", "plum,fig")
    monkeypatch.setenv("VCOT_RUN_URI", "s3://b/runs/x")  # common, so without a stage
    settings = load("--layers", "2", "--degrees", "210")
    assert (settings.run_uri, settings.run_name) == ("s3://b/runs/x", "x")
    assert settings.helpers == 3
    assert settings.fingerprint() == {
        "degrees": 210.0, "layers": 2, "fruits": ["plum", "fig"], "icing": False, "recipes_uri": [], "photo_uri": None,
    }  # fmt: skip
    assert load("--layers", "2", "--fruits", "apple, pear").fruits == ("apple", "pear")


def test_all_faults_are_told_together_a_line_each_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_BAKE_HELPERS", "many")
    monkeypatch.setenv("VCOT_BAKE_DEGRES", "1")
    monkeypatch.setenv("VCOT_RUN_URL", "s3://b/r")
    with pytest.raises(SettingsError) as caught:
        load("--run-uri", "/r", "--degrees", "900", "--icng")
    lines = str(caught.value).splitlines()
    assert lines[0] == "--icng: no such flag; did you mean --icing?"
    assert "VCOT_BAKE_DEGRES: no such setting; did you mean VCOT_BAKE_DEGREES?" in lines
    assert "VCOT_RUN_URL: no such setting; did you mean VCOT_RUN_URI?" in lines
    assert "--degrees=900: input should be less than or equal to 300" in lines
    assert any(line.startswith("VCOT_BAKE_HELPERS=many: ") for line in lines)
    assert any(line.startswith("--layers (or VCOT_BAKE_LAYERS) is missing") for line in lines)
    assert len(lines) == 6


def test_help_explains_each_setting_with_unit_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Bake.load(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "heat of the oven [°C] (default: 180; VCOT_BAKE_DEGREES)" in text
    assert "--shape round|square" in text
    assert "of the tin (VCOT_BAKE_SHAPE)" in text
    assert "Bakes a cake." in text


def test_settings_of_given_values_alone_do_not_look_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_BAKE_DEGREES", "200")
    settings = Bake.of({"run_uri": "/r", "layers": 2, "fruits": ["plum", "fig"]})
    assert isinstance(settings, Bake)
    assert (settings.degrees, settings.fruits) == (180, ("plum", "fig"))
    assert load(*GIVEN).degrees == 200
    with pytest.raises(SettingsError) as caught:
        Bake.of({"run_uri": "/r", "degrees": 900, "icng": 1})
    assert str(caught.value).splitlines() == [
        "--degrees=900: input should be less than or equal to 300",
        "--layers (or VCOT_BAKE_LAYERS) is missing: how many layers",
        "--icng: no such setting; did you mean --icing?",
    ]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("run-uri", "gs://b/r", "gs:// is not supported; s3://bucket/key, file:///path and "),
        ("photo-uri", "https://h/x", "https:// is not supported; s3://bucket/key, "),
        ("photo-uri", "s3:/b/x", "two slashes are missing"), ("photo-uri", "s3://", "it names no bucket"),
        ("photo-uri", "file://x", "a file URI has three slashes"),
        ("recipes-uri", "a.json,gs://b/x", "gs://b/x: gs:// is not supported"),
    ],
)  # fmt: skip
def test_a_place_that_storage_cannot_speak_is_a_wrong_setting(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(*GIVEN, f"--{name}", value)
    assert str(caught.value).startswith(f"--{name}={value}: {says}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("run-uri", "s3://AKIA:hunter2@b/r", "s3://***@b/r"), ("run-uri", "s3://AKIA:hun/ter2+x@b/r", "s3://***@b/r"),
        ("run-uri", "s3://hunter2@b/r", "s3://***@b/r"), ("photo-uri", "http://me:hun@ter2@h/x", "http://***@h/x"),
        ("recipes-uri", "a.json,s3://A:hunter2@b/x", "a.json,s3://***@b/x"),
        ("fruits", "https://h/x?a=1&api_key=hunter2", "https://h/x?a=1&api_key=***"),
        ("photo-uri", "s3://b/x?X-Amz-Credential=hunter2/s3&X-Amz-Signature=hunter2",
         "s3://b/x?X-Amz-Credential=***&X-Amz-Signature=***"),
    ],
)  # fmt: skip
def test_credentials_in_a_setting_are_refused_and_not_repeated(name: str, value: str, shown: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(*GIVEN, f"--{name}", value)
    assert str(caught.value).startswith(f"--{name}={shown}: it holds credentials")
    assert caught.value.exit_code == 78
    with pytest.raises(SettingsError, match="it holds credentials") as again:
        Bake.of({"run_uri": "/runs/a", "layers": "2"} | {name.replace("-", "_"): value})
    with pytest.raises(SettingsError) as wrong:
        load(*GIVEN, "--shape", value.replace("s3:", "http:"))  # hidden whatever else is wrong
    for part in ("hunter2", "hun", "ter2"):
        assert part not in f"{caught.value} {again.value} {wrong.value}"


def test_what_only_looks_like_credentials_is_a_setting() -> None:
    names = (
        "s3://b/a:b@2x.png,s3://arn:aws:s3:us-east-1:1:accesspoint/n/a@2x.png,/data/me:x@y,s3://b/what?key,"
        "s3://b/a@b/c,a?token=x,s3://b,file:///x,x/y,./x,a b:c"
    )
    assert load(*GIVEN, "--recipes-uri", names).recipes_uri == tuple(names.split(","))
    assert load(*GIVEN, "--fruits", "http://h:8000/x@y").fruits == ("http://h:8000/x@y",)


@pytest.mark.parametrize("stage", ["tokenize", "train", "evaluate", "publish", "serve"])
def test_check_names_a_base_folder_that_is_missing(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"jobs.{stage}")
    kind = next(v for v in vars(module).values() if getattr(v, "stage", None) == stage)
    more = {"serve": ["--subject", "/r/train"], "publish": ["--train-uri", "/r/train"]}

    def check(base: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            launch(kind, lambda _: None, [*more.get(stage, ["--run-uri", "/r"]), "--base-uri", base, "--check"])
        return int(str(ended.value.code)), capsys.readouterr().err

    (tmp_path / "a file").write_text("")
    for wrong in (tmp_path / "nowhere", tmp_path / "a file"):
        for uri in (str(wrong), f"file://{wrong}"):
            assert check(uri) == (78, f"{stage}: --base-uri={uri}: there is no such folder\n")
    for right in (str(tmp_path), f"file://{tmp_path}", "s3://vcot/models/base"):  # storage is not asked
        assert check(right) == (0, "")
