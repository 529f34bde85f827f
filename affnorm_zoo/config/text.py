"""YAML text to plain values and back, with what stands in a text field taken as it is written."""

import re
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+)")
_KINDS = {
    int: "not a whole number", float: "not a number", bool: "neither true nor false", str: "not text",
    tuple: "not a list", dict: "not a mapping",
}  # fmt: skip
_REPLACED = ("int", "float", "timestamp")  # PyYAML's read 1:30 as 90 and 010 as 8, and 3e-4 as text


class _Loader(yaml.SafeLoader):
    """PyYAML's, with the numbers of YAML 1.2, no dates, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader above or YAML's older rules would take for something else."""


_kept = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in _REPLACED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = _kept
for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _whole = re.compile(f"^(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list("-+.0123456789"))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, list("-+.0123456789"))


def parse(text: str, hint: Any) -> Any:
    """Read YAML as the value of a field of this type, or of a dataclass.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _mark_text(node, hint)
        return loader.construct_document(node)
    except (ValueError, RecursionError) as error:  # what a tag such as !!int asks for, or an alias within itself
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def dump(tree: dict[str, Any]) -> str:
    """Write plain values so that :func:`parse` gives them back."""
    return yaml.dump(
        _without_tuples(tree), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


def hint_of(schema: Any, key: str) -> Any:
    """The type of a dotted key below a dataclass; Any where it is not said."""
    hint = schema
    for part in key.split("."):
        hint = get_type_hints(hint).get(part, Any) if is_dataclass(hint) else _inside(hint)
    return hint


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds text, or one of several words."""
    hint = without_none(hint)
    return hint is str or get_origin(hint) is Literal


def without_none(hint: Any) -> Any:
    """The type of an optional field when it is set."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    return hint


def wrong_kind(value: Any, hint: Any) -> str:
    """Why a value must not be converted to the type of its field, although it might be; empty if it may."""
    inner = without_none(hint)
    kind = get_origin(inner) or inner
    if kind not in _KINDS:
        return ""
    if value is None:
        return "it must have a value" if inner is hint else ""
    if kind is tuple and isinstance(value, list):
        return next(filter(None, (wrong_kind(item, _inside(inner)) for item in value)), "")
    return "" if _is_of(kind, value) else f"Value '{value}' is {_KINDS[kind]}"


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value that was read is of this type, or text that means one."""
    if isinstance(value, list | dict) or kind in (tuple, dict):
        return isinstance(value, kind)
    if isinstance(value, bool) or kind is bool:
        return kind is str or (kind is bool and isinstance(value, bool | str))
    if kind is str or not isinstance(value, str):
        return kind is not int or isinstance(value, int | str)
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _mark_text(node: yaml.Node, hint: Any) -> None:
    """Let scalars of text fields be text; null, and nothing, stay what they are."""
    hint = without_none(hint)
    if isinstance(node, yaml.MappingNode):
        types = get_type_hints(hint) if is_dataclass(hint) else {}
        for key, value in node.value:
            _mark_text(value, types.get(key.value, _inside(hint)) if isinstance(key, yaml.ScalarNode) else Any)
    elif isinstance(node, yaml.SequenceNode) and hint is not Any:
        for item in node.value:
            _mark_text(item, _inside(hint))
    elif isinstance(node, yaml.ScalarNode) and is_text(hint) and node.value not in ("", "null", "Null", "NULL"):
        node.tag = "tag:yaml.org,2002:str"


def _inside(hint: Any) -> Any:
    """The type of what lies in a list, tuple or mapping; Any for everything else."""
    arguments = [part for part in get_args(without_none(hint)) if part is not Ellipsis]
    return arguments[-1] if get_origin(without_none(hint)) in (list, tuple, dict) and arguments else Any


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list | tuple) else value
