"""A finished run as the files of a repository: export, golden tensors, the run's records and a manifest."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.constants import CONFIG_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from affnorm_zoo._version import __version__
from affnorm_zoo.config import config_to_yaml
from affnorm_zoo.evaluation import task_of_weights
from affnorm_zoo.hub.errors import HubError
from affnorm_zoo.hub.export import export_run, public_config, score_of
from affnorm_zoo.models import MANIFEST_FILE
from affnorm_zoo.runs.files import sha256_of
from affnorm_zoo.runs.layout import CONFIG_FILE, METRICS_FILE, RELEASE_FOLDER, REPORT_FILE
from affnorm_zoo.runs.record import read_config

GOLDEN_FILE = "golden.safetensors"
_NUM_GOLDEN = 2


def build_release(run: Path, seeds: Sequence[Path] = (), load_as: str | None = None) -> Path:
    """Collect and check the files to publish in ``run/release``.

    It holds the export (``model.safetensors``, ``config.json``, ``README.md``, ``.eval_results``),
    ``golden.safetensors`` (an input, its logits and features), the run's config, metrics, report and figures, and
    ``manifest.json`` with the size and sha256 of each. Building it again gives the same bytes, so that a published
    release is recognised.

    Args:
        run: a finished run folder.
        seeds, load_as: as in :func:`affnorm_zoo.hub.export.export_run`.

    Returns:
        The folder.

    Raises:
        UsageError: a run is not finished, or ``seeds`` differ in more than their seed.
        HubError: the card is not valid.
    """
    export, folder = export_run(run, seeds, load_as), run / RELEASE_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(export, folder)
    for name in (METRICS_FILE, REPORT_FILE):
        shutil.copy(run / name, folder / name)
    (folder / CONFIG_FILE).write_text(config_to_yaml(public_config(read_config(run))), encoding="utf-8")
    save_file(golden_tensors(load_folder(folder)), folder / GOLDEN_FILE)
    check_card(folder / "README.md")
    write_manifest(folder, scores=[score_of(path) for path in (run, *seeds)])
    return folder


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write ``manifest.json``: size and sha256 of every file of the folder, and ``facts``."""
    files = {name: describe_file(path) for name, path in list_files(folder).items() if name != MANIFEST_FILE}
    architecture = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["architecture"]
    manifest = {"architecture": architecture.partition(".")[0], "affnorm-zoo": __version__, **facts, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def list_files(folder: Path) -> dict[str, Path]:
    """The files of a release by their paths within it, in order."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def load_folder(folder: Path, **kwargs: Any) -> nn.Module:
    """Build the model that a folder with config.json and model.safetensors describes; no other file of it is read."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


@torch.no_grad()
def golden_tensors(model: nn.Module, x: Tensor | None = None) -> dict[str, Tensor]:
    """An input of the model's size, (2, C, H, W), with its logits and pooled features, in evaluation mode."""
    model = model.eval()
    if x is None:
        cfg: Any = model.pretrained_cfg
        x = torch.randn(_NUM_GOLDEN, *cfg["input_size"], generator=torch.Generator().manual_seed(0))
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    return {"input": x, "logits": model(x).contiguous(), "features": features.contiguous()}


def check_golden(model: nn.Module, path: Path) -> None:
    """Compare a model with the golden tensors that were published with it.

    Raises:
        HubError: an output differs by more than float32 rounding.
    """
    golden = load_file(path)
    found = golden_tensors(model, golden["input"])
    for name in ("features", "logits"):
        scale = golden[name].abs().max()
        error = (found[name] - golden[name]).abs().max()
        if not error <= 1e-4 * scale:  # hundreds of float32 ulps: other devices and libraries sum in another order
            raise HubError(f"the loaded model's {name} differ from the published ones by {error:.3g}, of {scale:.3g}")


def check_card(path: Path) -> None:
    """Check that the card's metadata are complete.

    Raises:
        HubError: they are not, or their first result is not that of the report beside it.
    """
    card = ModelCard.load(path)
    report, described = (json.loads((path.parent / name).read_text("utf-8")) for name in (REPORT_FILE, CONFIG_NAME))
    # weights of an earlier version have a run's config that lacks settings, so the weights' own words say the task
    score = report["ema" if "ema" in report else "val"][task_of_weights(described["pretrained_cfg"]).score.key]
    if card.data.library_name != "timm" or card.data.license is None or not card.data.eval_results:
        raise HubError(f"{path} must name the library timm, a licence and a result")
    result = card.data.eval_results[0]
    if result.metric_value != score:
        raise HubError(f"{path} says {result.metric_name} {result.metric_value}, the report {score}")


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
