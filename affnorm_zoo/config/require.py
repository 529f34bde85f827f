import json
import math
from dataclasses import fields
from typing import Any

from affnorm_zoo.errors import UsageError

_MOST = 2**31  # what 32 bits with a sign hold, as libraries below expect of sizes and times


def require(condition: bool, message: str) -> None:
    """Raise UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def require_use(is_used: bool, section: str, config: Any, name: str, needed: str) -> None:
    """Raise UsageError for a value that was set, to other than its default, and that nothing uses."""
    value = getattr(config, name)
    require(is_used or value == getattr(type(config), name), f"{section}.{name}={value} needs {needed}")


def require_values(section: str, config: Any) -> None:
    """Raise UsageError for a value of a dataclass that no field could use, or that could not be written down.

    These are numbers that are not finite, whole ones that do not fit 32 bits, and text that is not Unicode.
    """
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        require(is_unicode(value), f"{section}.{name} must be Unicode, got {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require(math.isfinite(number), f"{section}.{name} must be finite, got {number}")
            elif isinstance(number, int):
                require(abs(number) <= 2 * _MOST, f"{section}.{name} must be below 2³², got {number}")
                require(name == "seed" or abs(number) < _MOST, f"{section}.{name} must be below 2³¹, got {number}")


def is_unicode(value: Any) -> bool:
    """Whether text, alone or within a list or mapping, can be written as UTF-8; a name of a file may not be."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
