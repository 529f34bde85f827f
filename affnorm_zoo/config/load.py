import copy
import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from affnorm_zoo.config.paths import is_file, is_folder
from affnorm_zoo.config.schema import RunConfig
from affnorm_zoo.config.text import dump, hint_of, is_text, parse, without_none, wrong_kind
from affnorm_zoo.errors import UsageError

T = TypeVar("T")


def load_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files and ``section.key=value`` overrides, in this order, onto the defaults.

    What an override gives a text field is taken as it stands, whatever it means in YAML; only ``null`` unsets it.

    Raises:
        UsageError: a file is missing or not YAML, a key is unknown (the message names the nearest known one), or a
            value has the wrong type or lies outside its range.
    """
    merged = copy.deepcopy(_defaults())
    for file in files:
        _merge(merged, read_yaml(Path(file), RunConfig), str(file))
    for override in overrides:
        _merge(merged, _read_override(override), f"override {override!r}")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(_first_line(error)) from error
    assert isinstance(config, RunConfig)
    return config


@cache
def _defaults() -> DictConfig:
    """The defaults of every config; whoever merges into them copies them first."""
    defaults = OmegaConf.structured(RunConfig)
    OmegaConf.set_readonly(defaults, False)
    for section in defaults:
        OmegaConf.set_readonly(defaults[section], False)
    return defaults


def is_override(item: str) -> bool:
    """Whether a word of a command line is ``section.key=value``, and not a path that happens to hold a ``=``."""
    return re.match(r"[^/\\=]*=", item) is not None and not os.path.exists(item)  # noqa: PTH110 it may be too long


def read_yaml(path: Path, schema: type) -> dict[str, Any]:
    """Read a config file that holds the sections or keys of a dataclass.

    Raises:
        UsageError: it is missing (the message names the nearest one), a folder, not UTF-8 or not YAML.
    """
    if is_folder(path):
        raise UsageError(f"config file {path} is a folder: give a YAML file, or section.key=value")
    if not is_file(path):
        near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*.yaml")), n=1, cutoff=0.3)
        raise UsageError(f"config file {path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        loaded = parse(path.read_text(encoding="utf-8-sig"), schema)
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {path} must be UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise UsageError(f"{path} must hold keys, such as 'train:', got a {type(loaded).__name__}")
    return loaded or {}


def to_schema(schema: type[T], origin: Path, *parts: dict[str, Any]) -> T:
    """Merge what was read from ``origin`` onto the defaults of a dataclass other than a run's.

    Raises:
        UsageError: a key is unknown, or a value is missing, has the wrong type or lies outside its range.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), *map(_literal, parts)))
    except UsageError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UsageError(f"{origin}: {_first_line(error)}") from error
    assert isinstance(config, schema)
    return config


def config_to_yaml(config: RunConfig) -> str:
    """Write out every value of ``config``, so that reading it back gives the same config."""
    return dump(asdict(config))


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


def _read_override(override: str) -> dict[str, Any]:
    """``section.key=value`` as a tree."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"an override must read section.key=value, got {override!r}")
    hint = hint_of(RunConfig, key)
    is_optional = hint is not without_none(hint)
    if not text:
        raise UsageError(f"override {override!r} has no value" + (f"; {key}=null unsets it" if is_optional else ""))
    tree: Any
    if is_text(hint):
        tree = None if text == "null" and is_optional else text
    else:
        try:
            tree = parse(text, hint)
        except YAMLError as error:
            raise UsageError(f"override {override!r} is not valid YAML: {' '.join(str(error).split())}") from error
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def _merge(merged: DictConfig, extra: dict[str, Any], origin: str) -> None:
    """Merge ``extra`` into ``merged``. After an error ``merged`` may hold a part of ``extra``."""
    for key, value in _leaves(extra):
        _check_key(key, origin)
        if reason := wrong_kind(value, hint_of(RunConfig, key)):
            raise UsageError(f"{origin}: {key}: {reason}")
    try:
        merged.merge_with(_literal(extra))
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        raise UsageError(f"{origin}: {f'{full_key}: ' if full_key else ''}{_first_line(error)}") from error
    except (TypeError, ValueError, RecursionError) as error:  # a list for a mapping, or what lies within itself
        raise UsageError(f"{origin}: {', '.join(key for key, _ in _leaves(extra))}: {_first_line(error)}") from error


def _literal(tree: Any) -> Any:
    """Let no text be taken for an interpolation of omegaconf, which would begin with ``${``."""
    if isinstance(tree, dict):
        return {key: _literal(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_literal(value) for value in tree]
    # omegaconf halves backslashes before an interpolation, and takes one of them for an escape
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


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
    return [f"{section}.{name}" for section, values in asdict(RunConfig()).items() for name in values]


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
