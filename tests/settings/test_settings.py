"""Flags, variables and their faults, as a person meets them."""

from typing import ClassVar, Literal

import pytest

from vcot.errors import SettingsError
from vcot.settings import CommaSeparated, Settings, setting


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
    settings = load(*GIVEN, "--degrees", "210")
    assert (settings.degrees, settings.helpers, settings.icing) == (210.0, 3, False)


def test_a_list_is_written_with_commas_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(*GIVEN, "--fruits", "apple, pear").fruits == ("apple", "pear")
    monkeypatch.setenv("VCOT_BAKE_FRUITS", "plum,fig")
    assert load(*GIVEN).fruits == ("plum", "fig")


def test_common_settings_have_no_stage_in_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_RUN_URI", "s3://b/runs/x")
    settings = load("--layers", "1")
    assert (settings.run_uri, settings.run_name) == ("s3://b/runs/x", "x")


def test_all_faults_are_told_together_a_line_each_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_BAKE_HELPERS", "many")
    monkeypatch.setenv("VCOT_BAKE_DEGRES", "1")
    with pytest.raises(SettingsError) as caught:
        load("--run-uri", "/r", "--degrees", "900", "--icng")
    lines = str(caught.value).splitlines()
    assert lines[0] == "--icng: no such flag; did you mean --icing?"
    assert "VCOT_BAKE_DEGRES: no such setting; did you mean VCOT_BAKE_DEGREES?" in lines
    assert "--degrees=900: input should be less than or equal to 300" in lines
    assert any(line.startswith("VCOT_BAKE_HELPERS=many: ") for line in lines)
    assert any(line.startswith("--layers (or VCOT_BAKE_LAYERS) is missing") for line in lines)
    assert len(lines) == 5


def test_an_unknown_common_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCOT_RUN_URL", "s3://b/r")
    with pytest.raises(SettingsError, match="VCOT_RUN_URL: no such setting; did you mean VCOT_RUN_URI"):
        load(*GIVEN)


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


def test_what_shapes_the_result_leaves_out_how_it_is_run() -> None:
    assert load(*GIVEN).fingerprint() == {
        "degrees": 180, "layers": 2, "fruits": [], "icing": False, "recipes_uri": [], "photo_uri": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (("--run-uri", "gs://b/r"), "--run-uri=gs://b/r: gs:// is not supported; s3://bucket/key, file:///path and "),
        (("--photo-uri", "https://h/x"), "--photo-uri=https://h/x: https:// is not supported; s3://bucket/key, "),
        (("--photo-uri", "s3:/b/x"), "--photo-uri=s3:/b/x: two slashes are missing"),
        (("--photo-uri", "s3://"), "--photo-uri=s3://: it names no bucket"),
        (("--photo-uri", "file://x"), "--photo-uri=file://x: a file URI has three slashes"),
        (("--recipes-uri", "a.json,gs://b/x"), "--recipes-uri=a.json,gs://b/x: gs://b/x: gs:// is not supported"),
    ],
)  # fmt: skip
def test_a_place_that_storage_cannot_speak_is_a_wrong_setting(written: tuple[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(*GIVEN, *written)
    assert str(caught.value).startswith(says)
    assert len(str(caught.value).splitlines()) == 1


def test_places_in_buckets_folders_and_paths_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = "s3://b/x,s3://b,file:///x,/x,x/y,./x,a b:c"
    assert load(*GIVEN, "--recipes-uri", spoken).recipes_uri == tuple(spoken.split(","))
    monkeypatch.setenv("VCOT_BAKE_PHOTO_URI", "ftp://x")
    with pytest.raises(SettingsError, match="VCOT_BAKE_PHOTO_URI=ftp://x: ftp:// is not supported"):
        load(*GIVEN)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (("--run-uri", "s3://AKIA:hunter2@b/r"), "--run-uri=s3://***@b/r: it holds credentials"),
        (("--run-uri", "s3://AKIA:hun/ter2+x@b/r"), "--run-uri=s3://***@b/r: it holds credentials"),
        (("--run-uri", "s3://hunter2@b/r"), "--run-uri=s3://***@b/r: it holds credentials"),
        (("--photo-uri", "http://me:hun@ter2@h/x"), "--photo-uri=http://***@h/x: it holds credentials"),
        (("--recipes-uri", "a.json,s3://A:hunter2@b/x"), "--recipes-uri=a.json,s3://***@b/x: it holds credentials"),
        (("--fruits", "https://h/x?a=1&api_key=hunter2"), "--fruits=https://h/x?a=1&api_key=***: it holds"),
        (("--photo-uri", "s3://b/x?X-Amz-Credential=hunter2/s3&X-Amz-Signature=hunter2"),
         "--photo-uri=s3://b/x?X-Amz-Credential=***&X-Amz-Signature=***: it holds credentials"),
    ],
)  # fmt: skip
def test_credentials_in_a_setting_are_refused_and_not_repeated(written: tuple[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(*GIVEN, *written)
    assert str(caught.value).startswith(says)
    assert caught.value.exit_code == 78
    for part in ("hunter2", "hun", "ter2"):
        assert part not in str(caught.value)
    values = dict(zip(("run_uri", "layers"), ("/runs/a", "2"), strict=True))
    with pytest.raises(SettingsError, match="it holds credentials") as caught:
        Bake.of(values | {written[0][2:].replace("-", "_"): written[1]})
    assert "hunter2" not in str(caught.value)


def test_a_credential_is_hidden_whatever_else_is_wrong() -> None:
    with pytest.raises(SettingsError) as caught:
        load(*GIVEN, "--shape", "http://me:hunter2@h/x", "--degrees", "http://me:hunter2@h/x")
    assert len(str(caught.value).splitlines()) == 2
    assert "hunter2" not in str(caught.value)


def test_what_only_looks_like_credentials_is_a_setting() -> None:
    names = (
        "s3://b/a:b@2x.png,s3://arn:aws:s3:us-east-1:1:accesspoint/n/a@2x.png,/data/me:x@y,s3://b/what?key,"
        "s3://b/a@b/c,a?token=x"
    )
    assert load(*GIVEN, "--recipes-uri", names).recipes_uri == tuple(names.split(","))
    assert load(*GIVEN, "--fruits", "http://h:8000/x@y").fruits == ("http://h:8000/x@y",)
