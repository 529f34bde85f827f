"""The models of this package that have published weights, and the table of all."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch

from affnorm_zoo.evaluation.flops import count_flops
from affnorm_zoo.evidence.statistics import Sample
from affnorm_zoo.hub.card import HUB_TAG
from affnorm_zoo.hub.client import hub_client
from affnorm_zoo.hub.errors import hub_errors
from affnorm_zoo.models import MANIFEST_FILE, WEIGHTS_FOLDER, zoo_models
from affnorm_zoo.runs.layout import WEIGHTS_FILE

_WEIGHTS = """\
# Models

Written by `affnorm-zoo list --table`.

## Weights

These travel with the package: `timm.create_model(NAME, pretrained=True)`. The accuracy is that of the stored file, in
float32; beside it stand mean and deviation of the recipe's runs, which differ in their seed, and of which the median
one is stored. Card, config and report lie in the file's folder.

| name | top-1, % | runs: mean ± deviation (n) | data | bytes | sha256 | where |
|---|---|---|---|---|---|---|
"""
_SIZES = """
## Sizes

Parameters and multiply-adds of each model at its own size.

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


def bundled(folder: Path = WEIGHTS_FOLDER) -> list[dict]:
    """The manifests of the package's weights, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))]


def model_table() -> str:
    """The page of all models and all weights."""
    return _WEIGHTS + "".join(map(_weights_row, bundled())) + _SIZES + "".join(_size_rows())


def _weights_row(manifest: dict[str, Any]) -> str:
    found, file = manifest["evaluation"], manifest["files"][WEIGHTS_FILE]
    sample = Sample(tuple(manifest["scores"]))
    cells = (
        f"`{found['model']}`",
        f"{100 * found['top1']:.2f}",
        f"{sample} ({len(sample.values)})",
        f"{found['num_images']} images of {found['data']}{f' ({note})' if (note := manifest['note']) else ''}",
        f"{file['bytes']:,}",
        f"`{file['sha256']}`",
        f"`affnorm_zoo/weights/{found['model']}`",
    )
    return f"| {' | '.join(cells)} |\n"


def _size_rows() -> Iterator[str]:
    weights = list_pretrained()
    for name in zoo_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        size = model.pretrained_cfg["input_size"]
        parameters = sum(p.numel() for p in model.parameters())
        published = ", ".join(tag for tag in weights if tag.split(".")[0] == name) or "none"
        macs = count_flops(model, size) / 2
        yield f"| `{name}` | {parameters / 1e6:.2f} | {macs / 1e9:.2f} | {size[-1]} | {published} |\n"
