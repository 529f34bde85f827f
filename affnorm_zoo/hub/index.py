"""The models of this package that have published weights, and the table of all."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import natural_key

from affnorm_zoo.evaluation.flops import count_flops
from affnorm_zoo.evidence.statistics import Sample
from affnorm_zoo.hub.card import HUB_TAG
from affnorm_zoo.hub.client import hub_client
from affnorm_zoo.hub.errors import hub_errors
from affnorm_zoo.models import MANIFEST_FILE, WEIGHTS_FOLDER, zoo_models
from affnorm_zoo.registry import list_normalizers
from affnorm_zoo.runs.layout import WEIGHTS_FILE

_WEIGHTS = """\
# Models

Written by `affnorm-zoo list --table`.

## Weights

These come with the package: `timm.create_model(NAME, pretrained=True)`.

- The stored file is the median of a recipe's runs, which differ in their seed. The table has its own accuracy, in
  float32, and the mean ± standard deviation of these runs.
- Card, config and report are in `affnorm_zoo/weights/NAME`. `manifest.json` there has the sha256 of every file.

| name | top-1, % | runs: mean ± standard deviation (n) | data | bytes |
|---|---|---|---|---|
"""
_ARCHITECTURES = """
## Architectures

Names are `<architecture>_<normaliser>`. Each architecture is timm's of that name, except the small ones for 32 px:
these are ours.

| file | architectures | normalisers |
|---|---|---|
"""
_SIZES = """
## Sizes

Parameters and multiply-adds of each model at its default image size.

| model | parameters, M | GMACs | pixels | weights |
|---|---|---|---|---|
"""


def list_pretrained(pattern: str = "*", namespace: str | None = None, token: str | None = None) -> list[str]:
    """Names of models with weights.

    Args:
        pattern: shell-style wildcards, on the name without the namespace.
        namespace: a user or organisation of the Hub; None: the weights that come with this package.
        token: of the Hub, for private repositories.

    Returns:
        Without a namespace the names, tags included, that ``timm.create_model(..., pretrained=True)`` loads; with one
        its repositories that this package has published, for :func:`affnorm_zoo.load`.

    Raises:
        HubError: the Hub cannot be reached.
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
    tables = (_WEIGHTS, map(_weights_row, bundled()), _ARCHITECTURES, _architecture_rows(), _SIZES, _size_rows())
    return "".join(line for table in tables for line in table)


def _weights_row(manifest: dict[str, Any]) -> str:
    found, file = manifest["evaluation"], manifest["files"][WEIGHTS_FILE]
    sample = Sample(tuple(manifest["scores"]))
    cells = (
        f"`{found['model']}`",
        f"{100 * found['top1']:.2f}",
        f"{sample} ({len(sample.values)})",
        f"{found['num_images']} images of {found['data']}{f' ({note})' if (note := manifest['note']) else ''}",
        f"{file['bytes']:,}",
    )
    return f"| {' | '.join(cells)} |\n"


def _architecture_rows() -> Iterator[str]:
    """Architectures that have the same normalisers share a row."""
    names: dict[tuple[str, str], list[str]] = {}  # (module, architecture) -> normalisers
    for model in zoo_models():
        norm = max((norm for norm in list_normalizers() if model.endswith(f"_{norm}")), key=len)
        module = timm.model_entrypoint(model).__module__.rpartition(".")[2]
        names.setdefault((module, model.removesuffix(f"_{norm}")), []).append(norm)
    rows: dict[tuple[str, ...], list[str]] = {}
    for (module, architecture), norms in sorted(names.items(), key=lambda item: (item[0][0], natural_key(item[0][1]))):
        rows.setdefault((module, *norms), []).append(architecture)
    for (module, *norms), architectures in rows.items():
        cells = (", ".join(f"`{name}`" for name in cell) for cell in (architectures, norms))
        yield f"| `models/{module}.py` | {' | '.join(cells)} |\n"


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
