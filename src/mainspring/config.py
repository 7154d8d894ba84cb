"""Configuration: `mainspring.toml` (policy) and settings, in one order: argument, environment, file, default.

This is the only module that reads the environment. Policy is one file, reviewed like code; it never holds secrets, only
references to them (``{ env = "NAME" }``).
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mainspring import policy
from mainspring.errors import ConfigError, InvalidInput, NotFound, near
from mainspring.records.base import Duration, Record, check_name, seconds, to_json
from mainspring.records.data import CheckRule
from mainspring.records.loop import DeployPolicy, ModelPolicy, RetrainPolicy
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.pipelines import ExecutorName
from mainspring.records.reading import Reading

FILE = "mainspring.toml"
HOME = ".mainspring"


class ProjectSection(Record, frozen=True):
    """``[project]``."""

    name: str = "default"


class Secret(Record, frozen=True):
    """A reference to a secret: the name of the environment variable that holds it."""

    env: str


class S3Section(Record, frozen=True):
    """``[storage.s3]``: how to reach the object store, when ``objects`` is ``s3://...``.

    Without a key, the usual ``AWS_*`` variables and the machine's role are used.
    """

    endpoint: str | None = None
    """``https://host:port`` of a store other than AWS."""
    region: str | None = None
    path_style: bool = True
    """``https://host/bucket/key``; false: ``https://bucket.host/key``."""
    allow_http: bool = False
    """Objects and signatures may travel unencrypted. Only for a store on this machine or a closed network."""
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None


class StorageSection(Record, frozen=True):
    """``[storage]``: ``database`` is ``sqlite`` or ``postgresql://...``; ``objects`` is ``local`` or ``s3://bucket/prefix``."""

    database: str = "sqlite"
    objects: str = "local"
    s3: S3Section = S3Section()
    clock: str = "system"
    """``system``, or ``manual``: policy time moves only when it is set (simulations, replays)."""


class ServerSection(Record, frozen=True):
    """``[server]``: the control plane."""

    host: str = "127.0.0.1"
    port: int = 8700
    hosts: list[str] = []
    """Further exact host names it answers for."""
    projects: list[str] = []
    """Directories of other projects of this workspace, whose policy the server follows."""


class ServingSection(Record, frozen=True):
    """``[serving]``: the inference server."""

    host: str = "127.0.0.1"
    port: int = 8710


class PipelinesSection(Record, frozen=True):
    """``[pipelines]``: where the steps of this project's runs are executed."""

    executor: ExecutorName = "local"
    """``local``: in processes of the runner's machine. ``worker``: by whichever ``python -m mainspring.pipelines.worker`` takes them."""
    workers: int | None = None
    """How many steps of a run are under way at once; by default two, or one on a single core."""


class DataPolicy(Record, frozen=True):
    """``[data.<dataset>]``: where it comes from, how it is read, and what must hold before a version becomes visible."""

    source: str | None = None
    reading: Reading = Reading()
    checks: list[CheckRule] = []


class Config(Record, frozen=True):
    """The whole of ``mainspring.toml``."""

    project: ProjectSection = ProjectSection()
    storage: StorageSection = StorageSection()
    server: ServerSection = ServerSection()
    serving: ServingSection = ServingSection()
    pipelines: PipelinesSection = PipelinesSection()
    data: dict[str, DataPolicy] = {}
    model: dict[str, ModelPolicy] = {}
    deploy: dict[str, DeployPolicy] = {}
    monitor: dict[str, MonitorPolicy] = {}
    retrain: dict[str, RetrainPolicy] = {}
    """Filled from ``[monitor.<deployment>]``: the file declares reactions in the same section as monitoring."""


@dataclass(frozen=True)
class Settings:
    """The settings of a process: the project directory, its private home, and a server's address if one is named."""

    root: Path
    home: Path
    config: Config
    origins: dict[str, str]
    """For each setting that is not a default: ``argument``, ``environment`` or ``file``."""
    url: str | None = None
    token: str | None = None
    project: str | None = None
    """The project that ``MAINSPRING_PROJECT`` names; None: the one of ``config``."""
    policy: bool = True
    """Whether ``config`` is the policy of the project. False: this process has no ``mainspring.toml`` of it."""


def load(root: Path | str | None = None, *, url: str | None = None) -> Settings:
    """Read the project at ``root`` (default: the nearest directory upwards with a ``mainspring.toml``, else here)."""
    origins: dict[str, str] = {}
    place = _find_root(root, origins)
    file = place / FILE
    config = parse(file.read_bytes(), place=str(file)) if file.exists() else Config()
    if file.exists():
        origins["config"] = "file"
    config = msgspec.structs.replace(config, storage=_override_storage(config.storage, origins))
    home = os.environ.get("MAINSPRING_HOME")
    if home:
        origins["home"] = "environment"
    if url is not None:
        origins["url"] = "argument"
    elif os.environ.get("MAINSPRING_URL"):
        url, origins["url"] = os.environ["MAINSPRING_URL"], "environment"
    project = os.environ.get("MAINSPRING_PROJECT") or None
    if project is not None:
        check_name(project, what="project")
        origins["project"] = "environment"
    return Settings(
        root=place,
        home=Path(home) if home else place / HOME,
        config=config,
        origins=origins,
        url=url,
        project=project,
        token=os.environ.get("MAINSPRING_TOKEN"),
    )


def served(settings: Settings) -> list[Settings]:
    """The settings of the projects in ``[server] projects``, each with the policy of its own file, all in this workspace.

    Raises :class:`ConfigError` for a directory without a policy, a project named twice, and storage that is not this workspace's.
    """
    others: list[Settings] = []
    names = {settings.config.project.name}
    for written in settings.config.server.projects:
        root = (settings.root / written).resolve()
        place = f"[server] projects, {written!r}"
        if not (root / FILE).is_file():
            raise ConfigError(f"there is no {FILE}", value=str(root), place=place)
        config = parse((root / FILE).read_bytes(), place=str(root / FILE))
        config = msgspec.structs.replace(config, storage=_override_storage(config.storage, {}))
        if config.project.name in names:
            raise ConfigError("two directories have one project", value=config.project.name, place=place)
        if config.storage != settings.config.storage:
            raise ConfigError(
                "this project keeps its data elsewhere",
                value=config.project.name,
                place=place,
                next_step="Write the same [storage] there as here: one server serves the projects of one workspace.",
            )
        names.add(config.project.name)
        others.append(Settings(root=root, home=settings.home, config=config, origins={"config": "file"}))
    return others


def without_policy(settings: Settings, project: str) -> Settings:
    """The settings of a project of this workspace whose ``mainspring.toml`` this process does not have."""
    config = Config(project=ProjectSection(name=project), storage=settings.config.storage)
    return Settings(root=settings.root, home=settings.home, config=config, origins={}, policy=False)


def object_options(settings: Settings) -> dict[str, str]:
    """How to reach the object store: what ``open_objects`` takes as ``options``, with secrets resolved.

    Raises :class:`ConfigError` for a secret that is not in the environment, and for ``http://`` without ``allow_http``.
    """
    if not settings.config.storage.objects.startswith("s3://"):
        return {}
    s3 = settings.config.storage.s3
    if s3.endpoint is not None and not s3.endpoint.startswith("https://"):
        if not s3.endpoint.startswith("http://"):
            raise ConfigError("not an endpoint", value=s3.endpoint, place="[storage.s3] endpoint")
        if not s3.allow_http:
            raise ConfigError(
                "objects would be sent unencrypted",
                value=s3.endpoint,
                place="[storage.s3] endpoint",
                next_step="Use https://, or write allow_http = true (MAINSPRING_S3_ALLOW_HTTP=true).",
            )
    options = {
        "path_style": "true" if s3.path_style else "false",
        "allow_http": "true" if s3.allow_http else "false",
    }
    options |= {k: v for k, v in (("endpoint", s3.endpoint), ("region", s3.region)) if v is not None}
    for name in _SECRETS:
        reference: Secret | None = getattr(s3, name)
        if reference is not None:
            options[name] = _resolve_secret(reference, place=f"[storage.s3] {name}")
    return options


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process for this project: that of this process without the token, and MAINSPRING_HOME."""
    inherited = {k: v for k, v in os.environ.items() if k != "MAINSPRING_TOKEN"}
    return inherited | {"MAINSPRING_HOME": str(settings.home)}


def parse(text: bytes, *, place: str = FILE) -> Config:
    """``mainspring.toml`` as typed policy; raises :class:`ConfigError` with the line or the key that is wrong."""
    try:
        raw = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8", place=f"{place}, byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"not valid TOML: {error}",
            place=place,
            next_step="Complete or correct that line; nothing was started.",
        ) from None
    _split_monitor(raw, place)
    _check_secrets(raw, place)
    _check_keys(raw, Config, "", place)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"wrong value: {error}", place=place) from None
    _check_names(config, place)
    _check_settings(config, place)
    policy.check(
        models=config.model,
        deployments=config.deploy,
        monitors=config.monitor,
        retrains=config.retrain,
        rules={name: list(data.checks) for name, data in config.data.items()},
        place=place,
    )
    return config


def digest(value: object) -> str:
    """The digest of a piece of policy, recorded with every decision made under it."""
    import blake3

    return blake3.blake3(to_json(value)).hexdigest()


def _find_root(root: Path | str | None, origins: dict[str, str]) -> Path:
    if root is not None:
        origins["root"] = "argument"
        place = Path(root).absolute()
        if not place.is_dir():
            raise NotFound("no such project directory", value=str(place))
        return place
    variable = os.environ.get("MAINSPRING_ROOT")
    if variable:
        origins["root"] = "environment"
        return Path(variable).absolute()
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / FILE).exists()), here)


def _override_storage(storage: StorageSection, origins: dict[str, str]) -> StorageSection:
    """The section, with the values that the environment overrides."""
    changes: dict[str, Any] = {}
    for name in ("database", "objects"):
        if value := os.environ.get(f"MAINSPRING_{name.upper()}"):
            changes[name], origins[f"storage.{name}"] = value, "environment"
    s3: dict[str, Any] = {}
    for name in ("endpoint", "region"):
        if value := os.environ.get(f"MAINSPRING_S3_{name.upper()}"):
            s3[name], origins[f"storage.s3.{name}"] = value, "environment"
    for name in ("path_style", "allow_http"):
        variable = f"MAINSPRING_S3_{name.upper()}"
        if value := os.environ.get(variable):
            if value not in {"true", "false"}:
                raise ConfigError("write true or false", value=value, place=variable)
            s3[name], origins[f"storage.s3.{name}"] = value == "true", "environment"
    if s3:
        changes["s3"] = msgspec.structs.replace(storage.s3, **s3)
    return msgspec.structs.replace(storage, **changes) if changes else storage


def _resolve_secret(reference: Secret, *, place: str) -> str:
    value = os.environ.get(reference.env)
    if not value:
        raise ConfigError(
            "the environment variable is not set",
            value=reference.env,
            place=place,
            next_step="Set it where this process starts.",
        )
    return value


_SECRETS = ("access_key_id", "secret_access_key", "session_token")


def _check_secrets(raw: dict[str, Any], place: str) -> None:
    """The file goes into version control, so it holds no secret. The message does not repeat it."""
    storage = raw.get("storage")
    if not isinstance(storage, dict):
        return
    s3 = storage.get("s3")
    for name in _SECRETS:
        if isinstance(s3, dict) and isinstance(s3.get(name), str):
            raise ConfigError(
                "the file contains a secret",
                place=f"{place}, [storage.s3] {name}",
                next_step=f'Write {name} = {{ env = "NAME" }} and set that variable; make a new key, this one is known.',
            )
    database = storage.get("database")
    if isinstance(database, str) and _has_password(database):
        raise ConfigError(
            "the file contains a password",
            place=f"{place}, [storage] database",
            next_step="Leave it out and set PGPASSWORD (or PGPASSFILE), or set MAINSPRING_DATABASE; change the password.",
        )


def _has_password(url: str) -> bool:
    from urllib.parse import parse_qsl, urlsplit

    try:
        parts = urlsplit(url)
        return parts.password is not None or any(k == "password" for k, _ in parse_qsl(parts.query))
    except ValueError:  # not a URL: opening the database reports it
        return "@" in url


def _split_monitor(raw: dict[str, Any], place: str) -> None:
    """Split ``[monitor.x]`` into monitoring and reactions; each record takes its own keys."""
    if "retrain" in raw:
        raise ConfigError(
            "there is no section [retrain]",
            place=place,
            next_step="Write retrain_on, cooldown, ... in [monitor.<deployment>].",
        )
    reactions = set(RetrainPolicy.__struct_fields__)
    monitors = raw.get("monitor")
    if not isinstance(monitors, dict):
        return
    raw["retrain"] = {}
    for name, table in monitors.items():
        if isinstance(table, dict):
            raw["retrain"][name] = {k: table.pop(k) for k in list(table) if k in reactions}
    if not raw["retrain"]:
        del raw["retrain"]


def _check_settings(config: Config, place: str) -> None:
    clocks = ("system", "manual")
    if config.storage.clock not in clocks:
        raise ConfigError(
            "no such clock",
            value=config.storage.clock,
            place=f"{place}, storage.clock",
            next_step=near(config.storage.clock, clocks, what="clock"),
        )
    workers = config.pipelines.workers
    if workers is not None and not 1 <= workers <= 1000:
        raise ConfigError(
            "not a number of steps at once",
            value=workers,
            place=f"{place}, pipelines.workers",
            next_step="Write 1 to 1000.",
        )
    for name, section in (("server", config.server), ("serving", config.serving)):
        if not 0 <= section.port <= 65535:
            raise ConfigError(
                "not a port", value=section.port, place=f"{place}, {name}.port", next_step="Write 1 to 65535."
            )


def _path_in_file(path: str) -> str:
    """A path as it is written in the file: reactions are in the section ``[monitor]``."""
    return f"monitor.{path.removeprefix('retrain.')}" if path.startswith("retrain.") else path


def _check_value(value: Any, kind: Any, path: str, place: str) -> None:
    """Check a single value: for one of a few words the error names near ones; durations are parsed; others by type."""
    import types
    import typing

    kinds = typing.get_args(kind) if typing.get_origin(kind) in {typing.Union, types.UnionType} else (kind,)
    words = [a for k in kinds if typing.get_origin(k) is typing.Literal for a in typing.get_args(k)]
    where = f"{place}, {path}"
    if words and isinstance(value, str) and value not in words:
        raise ConfigError("unknown word", value=value, place=where, next_step=near(value, words, what="word"))
    if Duration in kinds and isinstance(value, str):
        try:
            seconds(value)
        except InvalidInput as error:
            raise ConfigError(error.message, value=value, place=where, next_step=error.next_step) from None
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"wrong value: {error}", value=value, place=where) from None


def _check_keys(value: Any, kind: Any, path: str, place: str) -> None:
    """Refuse unknown keys and name the nearest known one, which msgspec's own message does not."""
    import types
    import typing

    if typing.get_origin(kind) in {typing.Union, types.UnionType} and isinstance(value, dict):
        tagged = [a for a in typing.get_args(kind) if isinstance(a, type) and issubclass(a, Record)]
        _check_keys(value, _choose_record(value, tagged, path, place), path, place)
    elif typing.get_origin(kind) is dict and isinstance(value, dict):
        for key, item in value.items():
            _check_keys(item, typing.get_args(kind)[1], f"{path}.{key}" if path else key, place)
    elif typing.get_origin(kind) is list and isinstance(value, list):
        for number, item in enumerate(value):
            _check_keys(item, typing.get_args(kind)[0], f"{path}[{number}]", place)
    elif isinstance(kind, type) and issubclass(kind, Record) and isinstance(value, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        known = set(kind.__struct_fields__)
        tag = kind.__struct_config__.tag_field
        for key, item in value.items():
            if key not in known and key != tag:
                shown = known - {"retrain"} | (
                    set(RetrainPolicy.__struct_fields__) if kind is MonitorPolicy else set()
                )
                raise ConfigError(
                    "unknown key",
                    value=key,
                    place=f"{place}, [{_path_in_file(path)}]" if path else place,
                    next_step=near(key, shown, what="key"),
                )
            _check_keys(item, hints.get(key), f"{path}.{key}" if path else key, place)
        missing = [f.name for f in msgspec.structs.fields(kind) if f.required and f.name not in value]
        if missing:
            raise ConfigError(
                f"{missing[0]!r} is missing", place=f"{place}, {_path_in_file(path)}", next_step="Add it."
            )
    elif kind is not None:
        _check_value(value, kind, _path_in_file(path), place)


def _choose_record(
    value: dict[str, Any], kinds: list[type[Record]], path: str, place: str
) -> type[Record] | None:
    """The record type of a table among several, by its tag; for a misspelt tag the error names near ones."""
    tags = {str(k.__struct_config__.tag): k for k in kinds if k.__struct_config__.tag is not None}
    field = next((k.__struct_config__.tag_field for k in kinds), None)
    if not tags or field is None:
        return kinds[0] if len(kinds) == 1 else None
    tag = value.get(field)
    if tag not in tags:
        raise ConfigError(
            f"unknown {field}" if tag is not None else f"{field!r} is missing",
            value=tag,
            place=f"{place}, [{path}]",
            next_step=near(str(tag or ""), tags, what=field),
        )
    return tags[str(tag)]


def _check_names(config: Config, place: str) -> None:
    check_name(config.project.name, what="project")
    for section, names in (
        ("data", config.data),
        ("model", config.model),
        ("deploy", config.deploy),
        ("monitor", config.monitor),
    ):
        for name in names:
            check_name(name, what=section)
    for name, deploy in config.deploy.items():
        if deploy.model not in config.model:
            raise ConfigError(
                "a deployment names a model that is not declared",
                value=deploy.model,
                place=f"{place}, [deploy.{name}]",
                next_step=near(deploy.model, config.model, what="[model.*]"),
            )
    for name in config.monitor:
        if name not in config.deploy:
            raise ConfigError(
                "a monitor names a deployment that is not declared",
                value=name,
                place=f"{place}, [monitor.{name}]",
                next_step=near(name, config.deploy, what="[deploy.*]"),
            )
    for name, model in config.model.items():
        if (
            not re.fullmatch(r"[\w./-]+\.py:\w+", model.pipeline)
            or ".." in model.pipeline
            or model.pipeline.startswith("/")
        ):
            raise ConfigError(
                "a pipeline is named 'file.py:function'",
                value=model.pipeline,
                place=f"{place}, [model.{name}]",
                next_step="For example 'pipelines/train.py:train'.",
            )
