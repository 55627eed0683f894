"""One declaration, two ways in: flags and environment.

A stage declares its settings once, as a class; from it come the flags (``--image-budget``), the
variables (``VCOT_TOKENIZE_IMAGE_BUDGET``), the help text, the checks and ``settings.json``.
Flags beat the environment. Variables of another stage are not this stage's business; an unknown
name under the stage's own or the common prefix is refused with the nearest known one.

A part of a stage that users choose by name (a dataset, a strategy, a reward, a method) declares its own options in its
own file, and a table names all parts; the stage offers the table, and no option is written down a second time:

    class CocoOptions(Options):                                   # vcot/datasets/coco.py
        absent: int = setting(1, "coco: questions about things that are not there", ge=0)

    @offers("source", DATASETS)                                   # name → something with `about`, `example`, `options`
    class ConvertSettings(Settings):                              # jobs/convert.py
        source: str | None = setting(None, "what kind of dataset the input is")

    options = DATASETS[settings.source].options.from_settings(settings)      # a CocoOptions

From that come the choices of --source, the options' flags and variables, a section of the help for each part, and the
refusal of options that the chosen part does not have. `source: CommaSeparated` would let users choose several parts.
Parts that share an option inherit it from one class. Options that are always looked at need no table: their class is
a base of the stage's settings.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from vcot import uris
from vcot.errors import SettingsError, UsageError

PREFIX = "VCOT_"
STAGES = ("convert", "distill", "tokenize", "train", "evaluate")

#: In it an Indexed Job of Kubernetes tells each of its pods which one it is.
INDEX = "JOB_COMPLETION_INDEX"

#: A list in one flag or variable: ``a,b,c``; after a flag ``a b c`` as well.
CommaSeparated = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda v: tuple(p.strip() for p in v.split(",") if p.strip()) if isinstance(v, str) else v),
]

Device = Literal["auto", "cuda", "cpu"]
DEVICE = (
    "where models run; auto: cuda wherever a GPU or its driver can be seen, else cpu. A GPU that cannot be used is an "
    "error (exit code 78), never a slow run on the processor"
)
OLDEST_DRIVER = 580
"""Of NVIDIA's drivers for Linux, for CUDA 13, which the pinned torch is built for (NVIDIA's table of CUDA
compatibility); a test holds the two together."""


def setting(
    default: Any = ...,
    description: str = "",
    *,
    unit: str | None = None,
    common: bool = False,
    shapes_result: bool = True,
    also: str | None = None,
    existing_folder: bool = False,
    **limits: Any,
) -> Any:
    """One setting of a stage.

    `unit` is shown in the help. `common` settings are shared by all stages (``VCOT_<NAME>``). `also`: a second name of
    its flag. `shapes_result=False` marks what may differ between two runs on one prefix (how a stage runs, not what
    it makes); everything else must agree. `existing_folder`: ``--check`` refuses a local folder that does not exist.
    `limits` are pydantic's (``gt``, ``le``, …).
    """
    extra: dict[str, Any] = {"unit": unit, "common": common, "shapes_result": shapes_result, "also": also}
    extra |= {"existing_folder": True} if existing_folder else {}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Group(NamedTuple):
    """Settings that stand together in the help, under a title, with what is said of them all."""

    title: str
    names: tuple[str, ...]
    about: str = ""


def extra_of(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class Options(BaseModel):
    """What may be set of one part of a stage; made from users' settings or, in tests, from values.

    A value is checked by its type, several together by `faults`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_settings(cls, settings: BaseModel) -> Self:
        """Those among the settings of a stage that offers this part."""
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    def faults(self) -> Iterator[str]:
        """What is wrong between settings that are each right, a line each, called as flags are."""
        yield from ()


class Offered(Protocol):
    """A part that users choose: what it is, the flags of an example, and its options."""

    @property
    def about(self) -> str: ...
    @property
    def example(self) -> str: ...
    @property
    def options(self) -> type[Options]: ...


class _Environment(EnvSettingsSource):
    """Reads each field from its own variable, common or the stage's."""

    def _extract_field_info(self, field: FieldInfo, field_name: str, *_: Any) -> list[tuple[str, str, bool]]:
        return [(field_name, variable(self.settings_cls, field_name).lower(), False)]

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        return value  # our own types read their text form themselves

    def __call__(self) -> dict[str, Any]:
        """Where shards are made, the index of the pod among its Job's stands for VCOT_SHARD; elsewhere it is none."""
        found = super().__call__()
        part = self.current_state.get("part", found.get("part"))
        index = os.environ.get(INDEX)
        return {"shard": index} | found if part == "shards" and index else found


class Declared(Options, BaseSettings):
    """What every command has: a stage's own class, or the pipeline's, adds to it and names its `stage`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_ignore_empty=True, validate_default=False)

    stage: ClassVar[str]
    groups: ClassVar[tuple[Group, ...]] = ()
    offered: ClassVar[Mapping[str, Mapping[str, Offered]]] = {}  # setting → the parts among which it chooses (`offers`)

    log_form: Literal["auto", "lines", "json"] = setting(
        "auto", "lines for people or JSON for a log collector; auto: JSON in a pod, else lines", common=True,
        shapes_result=False,
    )  # fmt: skip
    termination_log: str | None = setting(
        None, "file for a last word in JSON: how the stage ended, and its main numbers; default: /dev/termination-log "
        "where that is (in a pod)", common=True, shapes_result=False, min_length=1,
    )  # fmt: skip

    @field_validator("*")
    @classmethod
    def _holds_no_credentials(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if isinstance(text, str) and uris.without_credentials(text) != text:
                raise ValueError(uris.CREDENTIALS)
        return value

    @field_validator("*")
    @classmethod
    def _storage_speaks_it(cls, value: Any, about: ValidationInfo) -> Any:
        """Every setting called …_uri names a place, or several."""
        if about.field_name and about.field_name.endswith("_uri"):
            places = () if value is None else (value,) if isinstance(value, str) else value
            for uri in places:
                try:
                    uris.split(uri)
                except UsageError as error:
                    raise ValueError(str(error) if len(places) == 1 else f"{uri}: {error}") from None
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if wrong := list(self.faults()):
            raise ValueError("\n".join(wrong))
        return self

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        for setting_name, parts in self.offered.items():
            chosen = self.chosen(setting_name)
            for part in chosen:
                yield from parts[part].options.from_settings(self).faults()
            for name, owners in owners_of(parts).items():
                if name in self.model_fields_set and chosen and not {*chosen} & {*owners}:
                    of = flag(setting_name)
                    yield (
                        f"{flag(name)} (or {variable(type(self), name)}): {of} {','.join(chosen)} does not look at it, "
                        f"{' or '.join(f'{of} {owner}' for owner in owners)} does; leave it out"
                    )

    def chosen(self, setting_name: str) -> tuple[str, ...]:
        """The parts that this setting names."""
        said = getattr(self, setting_name)
        return said if isinstance(said, tuple) else () if said is None else (said,)

    @property
    def run_name(self) -> str:
        """How this run is called on every line of the log."""
        raise NotImplementedError

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide what the stage makes: two runs on one prefix must agree in them."""
        values = self.model_dump(mode="json")
        return {n: values[n] for n, f in type(self).model_fields.items() if extra_of(f).get("shapes_result", True)}

    @classmethod
    def load(cls, argv: Sequence[str] = ()) -> tuple[Self, bool]:
        """Settings from flags and environment, and whether only a check was asked for.

        Raises:
            UsageError: an unknown flag or a flag without its value.
            SettingsError: a wrong or missing value, an unknown variable. All faults, a line each.
        """
        flags, check, usage = _read_flags(cls, argv)
        known = {variable(cls, name) for name in cls.model_fields}
        others = tuple(
            f"{PREFIX}{stage.upper()}_" for stage in (*STAGES, "pipeline", "serve", "demo") if stage != cls.stage
        )
        wrong = [
            f"{name}: no such setting{nearest(name, known)}"
            for name in sorted(os.environ)
            if name.startswith(PREFIX) and name not in known and not name.startswith(others)
        ]
        try:
            settings = cls(**flags)
        except ValidationError as error:
            wrong += [_fault_line(cls, fault, flags) for fault in error.errors()]
        if usage or wrong:
            told = uris.without_credentials("\n".join(usage + wrong))
            raise (SettingsError if wrong else UsageError)(told)
        return settings, check

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Settings of these values alone, whatever the environment says. Raises SettingsError: all faults, a line each,
        called as flags are."""
        try:
            settings = cls.__new__(cls)
            BaseModel.__init__(settings, **values)  # past BaseSettings, which reads the environment
        except ValidationError as error:
            lines = (_fault_line(cls, fault, values) for fault in error.errors())
            raise SettingsError(uris.without_credentials("\n".join(lines))) from None
        return settings

    def validate_files(self) -> None:
        """Check the local files and folders that settings name, for ``--check``; send no request to storage.

        Raises:
            SettingsError: one is missing or cannot be read; a line for each.
        """
        fields = type(self).model_fields
        named = {n: getattr(self, n) for n, field in fields.items() if extra_of(field).get("existing_folder")}
        places = {name: (uri, *uris.split(uri)) for name, uri in named.items() if uri is not None}
        missing = [
            f"{flag(name)}={uri}: there is no such folder"
            for name, (uri, scheme, path) in places.items()
            if scheme in ("", "file") and not Path(path).is_dir()
        ]
        if missing:
            raise SettingsError("\n".join(missing))


class Settings(Declared):
    """What every stage has."""

    run_uri: str = setting(
        description="prefix of this run, s3://bucket/runs/name or a folder; the stage writes below <run-uri>/<stage>",
        common=True,
        shapes_result=False,
        min_length=1,
    )
    part: Literal["all", "prepare", "shards", "finish", "look"] = setting(
        "all", "which part of the stage this process does; look (train, evaluate): none, but end as a whole stage "
        "would, or with exit code 4 where something is left to do", common=True, shapes_result=False,
    )  # fmt: skip
    shard: int | None = setting(
        None, f"do this shard only (with --part shards), from 0; default: {INDEX}, or every one", common=True,
        shapes_result=False, also="shard_index", ge=0,
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_shard_is_a_part(self) -> Self:
        if self.part == "look" and self.stage not in ("train", "evaluate"):
            raise ValueError(f"--part=look: {self.stage} cannot say it of itself; train and evaluate can")
        if self.shard is not None and self.part != "shards":
            raise ValueError(f"--shard={self.shard}: one shard alone needs --part shards")
        return self

    @property
    def run_name(self) -> str:
        return self.run_uri.rstrip("/").rsplit("/", 1)[-1]


S = TypeVar("S", bound=Declared)


def offers(setting_name: str, parts: Mapping[str, Offered]) -> Callable[[type[S]], type[S]]:
    """Lets users of a stage choose among parts by one of its settings (a name, or CommaSeparated for several). Raises
    TypeError: two parts declare one option, and not in the same way."""

    def assembled(cls: type[S]) -> type[S]:
        fields: dict[str, FieldInfo] = {}
        for part in parts.values():
            for name, field in part.options.model_fields.items():
                if repr(fields.setdefault(name, field)) != repr(field) or name in cls.model_fields:
                    raise TypeError(f"{part.options.__name__} declares {name}, and so does another; share a base class")
        choice = cls.model_fields[setting_name]
        declared: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
        declared[setting_name] = _one_of(choice.annotation, tuple(parts)), choice
        made = create_model(cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **declared)
        made.offered = {**cls.offered, setting_name: parts}
        sections = (_section(cls, setting_name, name, part, owners_of(parts)) for name, part in parts.items())
        after = 1 + next((n for n, group in enumerate(cls.groups) if setting_name in group.names), -1)
        made.groups = (*cls.groups[:after], *filter(None, sections), *cls.groups[after:])
        return made

    return assembled


def owners_of(parts: Mapping[str, Offered]) -> dict[str, list[str]]:
    """Option → the parts that look at it."""
    names = dict.fromkeys(name for part in parts.values() for name in part.options.model_fields)
    return {name: [part for part, offered in parts.items() if name in offered.options.model_fields] for name in names}


def _one_of(annotation: Any, names: tuple[str, ...]) -> Any:
    """The annotation with these words in place of any text."""
    if annotation is str:
        return Literal[names]
    if get_origin(annotation) is tuple:
        return tuple[Literal[names], ...]  # type: ignore[valid-type]
    return _one_of(next(each for each in get_args(annotation) if each is not type(None)), names) | None


def _section(
    cls: type[Declared], setting_name: str, name: str, part: Offered, owners: Mapping[str, list[str]]
) -> Group | None:
    """In the help; options that parts share stand with the first of them."""
    names = tuple(option for option, parts in owners.items() if parts[0] == name)
    example = f"\npython -m jobs.{cls.stage} --run-uri runs/first {flag(setting_name)} {name} {part.example}"
    about = part.about + (example if part.example else "")
    return Group(f"{flag(setting_name)} {name}", names, about) if names or about else None


def variable(cls: type[BaseSettings], field_name: str) -> str:
    """``VCOT_RUN_URI`` for what all stages share, ``VCOT_<STAGE>_<NAME>`` for a stage's own."""
    common = extra_of(cls.model_fields[field_name]).get("common", False)
    stage = "" if common else f"{getattr(cls, 'stage', '')}_".upper()
    return f"{PREFIX}{stage}{field_name.upper()}"


def flag(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _flags(field_name: str, field: FieldInfo) -> list[str]:
    return [flag(name) for name in (field_name, extra_of(field).get("also")) if name]


def nearest(name: str, known: Iterable[str]) -> str:
    """For the end of a message about a name that is not known; "" where none of the known is like it."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _fault_line(cls: type[Declared], fault: Any, flags: Mapping[str, Any]) -> str:
    if not fault["loc"]:  # a check over several settings names them itself
        return str(fault["msg"]).removeprefix("Value error, ")
    name = str(fault["loc"][0])
    if name not in cls.model_fields:
        return f"{flag(name)}: no such setting{nearest(flag(name), [flag(n) for n in cls.model_fields])}"
    if fault["type"] == "missing":
        description = cls.model_fields[name].description
        return f"{flag(name)} (or {variable(cls, name)}) is missing: {description}"
    written = flag(name) if name in flags else variable(cls, name)
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{written}={fault['input']}: {message[0].lower()}{message[1:]}"


def _module(cls: type[Declared]) -> str:
    """As it was started: ``python -m`` calls every module __main__, and keeps its name in the spec."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if cls.__module__ == "__main__" and spec is not None else cls.__module__


def _read_flags(cls: type[Declared], argv: Sequence[str]) -> tuple[dict[str, Any], bool, list[str]]:
    required = [name for name, field in cls.model_fields.items() if field.is_required()]
    parser = argparse.ArgumentParser(
        prog=f"python -m {_module(cls)}",
        usage="%(prog)s " + "".join(f"{flag(n)} {_metavar(cls, n)} " for n in required) + "[--name value …]",
        description=(cls.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
    )
    parser.add_argument("--check", action="store_true", default=False, help="validate the settings and stop")
    for group in _all_groups(cls):
        section = parser.add_argument_group(group.title, group.about or None)
        for name in group.names:
            field, about = cls.model_fields[name], _help(cls, name)
            if bool in (field.annotation, *get_args(field.annotation)):
                section.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, help=about)
            else:
                section.add_argument(*_flags(name, field), dest=name, metavar=_metavar(cls, name), help=about)
    try:
        found, unknown = parser.parse_known_args(_joined(cls, argv))
    except argparse.ArgumentError as error:
        return {}, False, [str(error)]
    flags = vars(found)
    known = [*(name for n, field in cls.model_fields.items() for name in _flags(n, field)), "--check"]
    usage = []
    for before, word in zip(["", *unknown], unknown, strict=False):
        if word.startswith("--"):
            usage.append(f"{word.split('=')[0]}: no such flag{nearest(word.split('=')[0], known)}")
        elif not before.startswith("--"):  # else it is the unknown flag's value
            usage.append(f"{word}: nothing is expected here; settings are given as --name value")
    return flags, flags.pop("check"), usage


def _joined(cls: type[Declared], argv: Sequence[str]) -> list[str]:
    """``--compare a b`` as ``--compare a,b``, of lists alone."""
    lists = {name for n, field in cls.model_fields.items() if _is_list(field.annotation) for name in _flags(n, field)}
    joined: list[str] = []
    of = ""
    for word in argv:
        if word.startswith("-"):
            of = word.partition("=")[0]
        elif of in lists and joined[-1] != of:
            joined[-1] += f",{word}"
            continue
        joined.append(word)
    return joined


def _all_groups(cls: type[Declared]) -> list[Group]:
    """Those of the class, then its other settings, then what it shares with the other stages."""
    rest = [name for name in cls.model_fields if not any(name in group.names for group in cls.groups)]
    shared = tuple(name for name in rest if extra_of(cls.model_fields[name]).get("common"))
    own = Group("more" if cls.groups else "settings", tuple(name for name in rest if name not in shared))
    return [*cls.groups, own, Group("every stage", shared)]


_LONG = 30
"""Characters up to which choices stand where the value is written."""


def _metavar(cls: type[Declared], name: str) -> str:
    """What is written after the flag: the choices where they are short, else the kind of value."""
    annotation = cls.model_fields[name].annotation
    several = _is_list(annotation)
    if (choices := "|".join(_choices(annotation))) and len(choices) <= _LONG:
        return choices
    if choices:
        return "NAME"
    if name.endswith("_uri"):
        return "URI,…" if several else "URI"
    kinds = {annotation, *get_args(annotation)}
    return "A,B,…" if several else "N" if int in kinds else "X" if float in kinds else "TEXT"


def _is_list(annotation: Any) -> bool:
    return tuple in (annotation, get_origin(annotation))


def _help(cls: type[Declared], name: str) -> str:
    field = cls.model_fields[name]
    unit, several = extra_of(field).get("unit"), isinstance(field.default, tuple)
    told = [" | ".join(_choices(field.annotation))] if _metavar(cls, name) == "NAME" else []
    if field.is_required():
        told.append("required")
    elif field.default is not None and field.default != ():
        told.append(f"default: {','.join(map(str, field.default)) if several else field.default}")
    text = f"{field.description}{f' [{unit}]' if unit else ''} ({'; '.join([*told, variable(cls, name)])})"
    return text.replace("%", "%%")


def _choices(annotation: Any) -> list[str]:
    """What may be given, where only some words may; or nothing at all."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
