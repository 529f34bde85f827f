"""Convert nested state, such as an optimiser's, to JSON plus safetensors and back, without pickles."""

from typing import Any

import torch
from torch import Tensor

_TENSOR, _DTYPE, _TUPLE, _INTEGER_KEYS = "__tensor__", "__dtype__", "__tuple__", "__integer_keys__"


def split_tensors(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split dicts, lists and tuples of tensors, numbers, strings, dtypes and None into JSON and tensors by path.

    Raises:
        TypeError: ``tree`` contains another type.
    """
    if isinstance(tree, Tensor):
        return {_TENSOR: name}, to_plain({name: tree})
    if isinstance(tree, torch.dtype):
        return {_DTYPE: str(tree).removeprefix("torch.")}, {}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree, {}
    if isinstance(tree, tuple):
        plain, tensors = split_tensors(list(tree), name)
        return {_TUPLE: plain}, tensors
    if isinstance(tree, list):
        parts = [split_tensors(value, f"{name}.{number}") for number, value in enumerate(tree)]
        return [part for part, _ in parts], {key: tensor for _, found in parts for key, tensor in found.items()}
    if isinstance(tree, dict):
        return _split_dict(tree, name)
    raise TypeError(f"{name or 'the state'} has type {type(tree).__name__}, which cannot be saved")


def _split_dict(tree: dict, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if tree and all(isinstance(key, int) for key in tree):
        plain[_INTEGER_KEYS] = True
    elif not all(isinstance(key, str) for key in tree):
        raise TypeError(f"the keys of {name or 'the state'} must be all strings or all integers: {list(tree)[:3]}")
    for key, value in tree.items():
        plain[str(key)], found = split_tensors(value, f"{name}.{key}" if name else str(key))
        tensors.update(found)
    return plain, tensors


def join_tensors(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo :func:`split_tensors`."""
    if isinstance(plain, list):
        return [join_tensors(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return tensors[plain[_TENSOR]]
    if _DTYPE in plain:
        return getattr(torch, plain[_DTYPE])
    if _TUPLE in plain:
        return tuple(join_tensors(plain[_TUPLE], tensors))
    key_type = int if _INTEGER_KEYS in plain else str
    return {key_type(key): join_tensors(value, tensors) for key, value in plain.items() if key != _INTEGER_KEYS}


def to_plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU with contiguous tensors that share no memory, as safetensors requires."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in state.items()
    }
