import math
from dataclasses import fields
from typing import Any

from affnorm_zoo.errors import UsageError

_MOST = 2**31  # what 32 bits with a sign hold, as libraries below expect of sizes and times


def require(condition: bool, message: str) -> None:
    """Raise UsageError with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def require_numbers(section: str, config: Any) -> None:
    """Raise UsageError for a number of a dataclass that is not finite, or a whole one that does not fit 32 bits."""
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require(math.isfinite(number), f"{section}.{name} must be finite, got {number}")
            elif isinstance(number, int):
                require(abs(number) <= 2 * _MOST, f"{section}.{name} must be below 2³², got {number}")
                require(name == "seed" or abs(number) < _MOST, f"{section}.{name} must be below 2³¹, got {number}")
