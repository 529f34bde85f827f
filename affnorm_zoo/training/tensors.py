"""Nested state, as optimisers keep it, to JSON beside safetensors and back: nothing to unpickle."""

from typing import Any

import torch
from torch import Tensor

_MARK = "__tensor__"
_INTEGER_KEYS = "__integer_keys__"


def split_tensors(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Divide dicts and lists of tensors, numbers, strings and None into what JSON holds and the tensors, by path.

    Raises:
        TypeError: something in it is none of these.
    """
    if isinstance(tree, Tensor):
        return {_MARK: name}, {name: tree.detach().cpu().contiguous()}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree, {}
    if isinstance(tree, dict):
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
    if isinstance(tree, list | tuple):
        parts = [split_tensors(value, f"{name}.{number}") for number, value in enumerate(tree)]
        merged = {key: tensor for _, tensors in parts for key, tensor in tensors.items()}
        return [part for part, _ in parts], merged
    raise TypeError(f"{name or 'the state'} holds a {type(tree).__name__}, which cannot be saved")


def join_tensors(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo :func:`split_tensors`; tuples come back as lists."""
    if isinstance(plain, dict):
        if _MARK in plain:
            return tensors[plain[_MARK]]
        has_integer_keys = plain.get(_INTEGER_KEYS, False)
        return {
            int(key) if has_integer_keys else key: join_tensors(value, tensors)
            for key, value in plain.items()
            if key != _INTEGER_KEYS
        }
    if isinstance(plain, list):
        return [join_tensors(value, tensors) for value in plain]
    return plain


def to_plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU whose tensors share no memory, as safetensors wants it."""
    return {name: torch.empty_like(tensor, device="cpu").copy_(tensor.detach()) for name, tensor in state.items()}
