"""The geometry of a convolution, which others may edit in place, and find by the class ``nn.Conv2d``."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from affnorm_zoo.functional.patch_norm import split_padding
from affnorm_zoo.layers._bound import BoundLayer

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
# the one function that is given a stand-in, and all that its code may name
_EDITOR = ("segmentation_models_pytorch.encoders._utils", "replace_strides_with_dilation")
_EDITS = {
    "modules", "isinstance", "nn", "Conv2d", "kernel_size", "stride", "dilation", "padding",
    "hasattr", "static_padding", "Identity",
}  # fmt: skip
_WALKS = (nn.Module.modules.__code__, nn.Module.named_modules.__code__)  # between that function and a layer


class EditedInPlace(BoundLayer):
    """A convolution that heeds a change of its stride, padding, dilation and padding mode at the next call."""

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """As every module's, but for one function of another package, which is given :class:`_AsConv2d`."""
        is_edited = _comes_from_editor(sys._getframe(1))
        for name, module in super().named_modules(*args, **kwargs):
            yield name, _AsConv2d(module) if is_edited and module is self else module

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute; a change of the geometry is checked and takes effect at the next call."""
        if name not in GEOMETRY or not hasattr(self, "conv_padding"):
            super().__setattr__(name, value)
            return
        before = getattr(self, name)
        is_pair = name != "padding_mode" and not isinstance(value, str)
        super().__setattr__(name, _pair(value) if is_pair else value)
        try:
            self._split_padding()
        except ValueError:
            super().__setattr__(name, before)
            raise

    def _split_padding(self) -> None:
        """Divide the padding into the part that ``pad`` adds and the part that the convolution can add itself."""
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {self.padding_mode!r}")
        self.pads, self.conv_padding = split_padding(self.padding, self.kernel_size, self.stride, self.dilation)
        self.pad_mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if self.padding_mode != "zeros":
            rows, columns = self.conv_padding
            left, right, top, bottom = self.pads
            self.pads, self.conv_padding = (left + columns, right + columns, top + rows, bottom + rows), (0, 0)

    def adds_padding(self) -> bool:
        """Whether :meth:`pad` does anything."""
        return max(self.pads) > 0

    def pad(self, x: Tensor) -> Tensor:
        """Add the part of the padding that the convolution cannot: a mode other than zeros, or uneven sides."""
        if self.adds_padding():
            return F.pad(x, self.pads, self.pad_mode)
        return x


class _AsConv2d:
    """Stands for a layer, whose geometry it reads and sets; ``isinstance`` takes it for a :class:`torch.nn.Conv2d`.

    Segmentation-models-pytorch dilates a backbone by setting stride, dilation and padding of each module that is a
    ``nn.Conv2d``. Our layers obey such edits, but must not be of that class (see :class:`BoundLayer`). The function
    would pass them over without a word, and it takes no list of classes and calls nothing of ours but
    ``named_modules``. So the layer looks at who asks, and hands out this object.

    Nothing else gets it: the asking function must have that name in that module, call torch's own ``modules`` or
    ``named_modules`` directly, and use no name beyond those of reading and setting geometry. A later version of it
    that does more passes the layers over again. Code that keeps the object can only set geometry with it.
    """

    def __init__(self, layer: nn.Module) -> None:
        object.__setattr__(self, "_layer", layer)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return nn.Conv2d

    def __getattr__(self, name: str) -> Any:
        if name not in GEOMETRY:
            raise AttributeError(f"what stands for a layer has its geometry only, and no {name!r}")
        return getattr(object.__getattribute__(self, "_layer"), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in GEOMETRY:
            raise AttributeError(f"what stands for a layer takes a change of its geometry only, not of {name!r}")
        setattr(object.__getattribute__(self, "_layer"), name, value)


def _comes_from_editor(frame: FrameType | None) -> bool:
    """Whether modules are asked for by the one function that :class:`_AsConv2d` is for."""
    while frame is not None and frame.f_code in _WALKS:
        frame = frame.f_back
    if frame is None or (frame.f_globals.get("__name__"), frame.f_code.co_name) != _EDITOR:
        return False
    return set(frame.f_code.co_names) <= _EDITS and not frame.f_code.co_freevars
