import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from affnorm_zoo.config.schema import RunConfig
from affnorm_zoo.errors import UsageError

T = TypeVar("T")


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files and ``section.key=value`` overrides, in this order, onto the defaults.

    Raises:
        UsageError: a file is missing or not YAML, a key is unknown (the message names the nearest known one), or a
            value has the wrong type or lies outside its range.
    """
    merged = OmegaConf.structured(RunConfig)
    OmegaConf.set_readonly(merged, False)
    for section in merged:
        OmegaConf.set_readonly(merged[section], False)
    for file in files:
        merged = _merge(merged, read_yaml(Path(file)), str(file))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UsageError(f"an override must read section.key=value, got {override!r}")
        merged = _merge(merged, OmegaConf.from_dotlist([override]), f"override {override!r}")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(_first_line(error)) from error
    assert isinstance(config, RunConfig)
    return config


def read_yaml(path: Path) -> DictConfig:
    """Read a config file that holds sections or keys.

    Raises:
        UsageError: it is missing (the message names the nearest one) or not YAML.
    """
    if not path.is_file():
        near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*.yaml")), n=1, cutoff=0.3)
        raise UsageError(f"config file {path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        loaded = OmegaConf.load(path)
    except YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise UsageError(f"{path} must hold keys, such as 'train:', got a {type(loaded).__name__}")
    return loaded


def to_schema(schema: type[T], origin: Path, *parts: DictConfig) -> T:
    """Merge what was read from ``origin`` onto the defaults of a dataclass other than a run's.

    Raises:
        UsageError: a key is unknown, or a value is missing, has the wrong type or lies outside its range.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *parts))
    except OmegaConfBaseException as error:
        raise UsageError(f"{origin}: {_first_line(error)}") from error
    assert isinstance(config, schema)
    return config


def config_to_yaml(config: RunConfig) -> str:
    """Write out every value of ``config``, so that reading it back gives the same config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Every value of ``config`` by its dotted name; what is not a scalar as text."""
    flat: dict[str, bool | int | float | str] = {}

    def add(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)

    add(asdict(config), "")
    return flat


def _merge(base: DictConfig, extra: DictConfig, origin: str) -> DictConfig:
    for key in _leaves(extra):
        _check_key(key, origin)
    try:
        merged = OmegaConf.merge(base, extra)
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        raise UsageError(f"{origin}: {f'{full_key}: ' if full_key else ''}{_first_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _check_key(key: str, origin: str) -> None:
    """Raise unless the dotted ``key`` exists in the schema, or lies below one of its free-form mappings."""
    known: Any = RunConfig
    for part in key.split("."):
        if not is_dataclass(known):
            return  # a leaf; what lies below it is omegaconf's to check, or free
        names = {f.name: f.default_factory if is_dataclass(f.default_factory) else f.type for f in fields(known)}
        if part not in names:
            near = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.0)
            raise UsageError(f"{origin}: unknown key {key!r}; did you mean {near[0]!r}?")
        known = names[part]
    if is_dataclass(known):
        example = f"{key}.{fields(known)[0].name}"
        raise UsageError(f"{origin}: section {key!r} holds keys such as {example!r} and takes no value itself")


def _all_keys() -> list[str]:
    return [f"{section.name}.{f.name}" for section in fields(RunConfig) for f in fields(section.default_factory)]


def _leaves(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for key in node:
        value = node._get_node(key)
        name = f"{prefix}{key!s}"
        if isinstance(value, DictConfig) and not value._is_none() and len(value):
            yield from _leaves(value, name + ".")
        else:
            yield name


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
