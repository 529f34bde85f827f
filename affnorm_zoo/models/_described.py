"""What a model says of itself to timm's exports, kept true when its layers change."""

from typing import Any

from torch import nn

from affnorm_zoo.factory import bound_layers
from affnorm_zoo.registry import get_normalizer


class Described(nn.Module):
    """A model whose ``pretrained_cfg`` names the architecture that it is now.

    After :func:`timm.utils.reparameterize_model` that is another one, with fewer parameters; what timm then exports
    under the old name could not be loaded.
    """

    normalizer: str
    __jit_unused_properties__ = ["pretrained_cfg"]  # noqa: RUF012 TorchScript wants a list

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the model and its weights.

        Raises:
            ValueError: some layers are reparameterized and some are not, which no architecture is.
        """
        if "described" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no pretrained_cfg yet")
        successor = get_normalizer(self.normalizer).reparameterized
        if successor:
            self._rename(successor)
        return self.described

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self.described = cfg

    def _rename(self, successor: str) -> None:
        plain = [layer.is_plain() for layer in bound_layers(self)]
        if not any(plain):
            return
        if not all(plain):
            raise ValueError(
                f"{sum(plain)} of {len(plain)} layers are reparameterized, which no architecture is: "
                "do it to all, by timm.utils.reparameterize_model"
            )
        stem = self.described["architecture"].removesuffix(f"_{self.normalizer}")
        self.described["architecture"] = f"{stem}_{successor}"
        self.normalizer = successor
