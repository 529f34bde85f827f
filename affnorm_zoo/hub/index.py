"""The models of this package that have published weights, and the table of all."""

import timm
import torch

from affnorm_zoo.models import zoo_models
from affnorm_zoo.training.plan import count_flops

_HEAD = """\
# Models

Written by `affnorm-zoo list --table`. Parameters and multiply-adds are those of the untrained model at its own size.
Weights appear here once they are published.

| model | parameters, M | GMACs | pixels | weights |
|---|---|---|---|---|
"""


def list_pretrained(pattern: str = "*") -> list[str]:
    """Names, tags included, of this package's models that ``timm.create_model(..., pretrained=True)`` can load."""
    ours = set(zoo_models())
    return [name for name in timm.list_models(pattern, pretrained=True) if name.split(".")[0] in ours]


def model_table() -> str:
    """A page with one row a model."""
    weights = list_pretrained()
    rows = []
    for name in zoo_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        parameters = sum(p.numel() for p in model.parameters())
        published = ", ".join(tag for tag in weights if tag.split(".")[0] == name) or "none"
        rows.append(
            f"| `{name}` | {parameters / 1e6:.2f} | {count_flops(model, size) / 2e9:.2f} | {size[-1]} | {published} |\n"
        )
    return _HEAD + "".join(rows)
