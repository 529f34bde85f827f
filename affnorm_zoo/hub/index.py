"""The models of this package that have published weights, and the table of all."""

from fnmatch import fnmatch

import timm
import torch

from affnorm_zoo.hub.card import HUB_TAG
from affnorm_zoo.hub.client import hub_client
from affnorm_zoo.hub.errors import hub_errors
from affnorm_zoo.models import zoo_models
from affnorm_zoo.training.plan import count_flops

_HEAD = """\
# Models

Written by `affnorm-zoo list --table`. Parameters and multiply-adds are those of the untrained model at its own size.
Weights appear here once they are published.

| model | parameters, M | GMACs | pixels | weights |
|---|---|---|---|---|
"""


def list_pretrained(pattern: str = "*", namespace: str | None = None, token: str | None = None) -> list[str]:
    """Names of models with weights.

    Args:
        pattern: shell-style wildcards, on the name without the namespace.
        namespace: a user or organisation of the Hub; None: what comes with this package.
        token: of the Hub, for private repositories.

    Returns:
        Without a namespace the names, tags included, that ``timm.create_model(..., pretrained=True)`` loads; with one
        its repositories that this package has published, for :func:`affnorm_zoo.load`.

    Raises:
        HubError: the Hub cannot be asked.
    """
    if namespace is not None:
        with hub_client(token) as api, hub_errors(f"listing the models of {namespace}"):
            found = [info.id for info in api.list_models(author=namespace, filter=HUB_TAG)]
        return sorted(name for name in found if fnmatch(name.partition("/")[2], pattern))
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
