import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from affnorm_zoo.config import load_config
from affnorm_zoo.data import Preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub.card import write_card
from affnorm_zoo.training import setup
from affnorm_zoo.training.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    EMA_WEIGHTS_FILE,
    REPORT_FILE,
    WEIGHTS_FILE,
    read_json,
)

EXPORT_FOLDER = "export"
BENCHMARK_FILE = "benchmark.json"  # of scripts/benchmark.py measure, if it was asked to write here


def export_run(run: Path) -> Path:
    """Make of a finished run a folder that ``timm.create_model("local-dir:...", pretrained=True)`` loads.

    It holds ``model.safetensors``, ``config.json`` and the model card ``README.md`` with the run's curves. It is built
    beside its place, loaded back and compared with the run's model, logit by logit, before it is moved there. The
    weights are the averaged ones, if the run has kept an average.

    Returns:
        The folder, ``run/export``.

    Raises:
        UsageError: the run is not finished.
    """
    missing = [name for name in (CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE) if not (run / name).is_file()]
    if missing:
        raise UsageError(f"{run} is not a finished run: it has no {' and no '.join(missing)}")
    config = load_config([run / CONFIG_FILE])
    report = json.loads((run / REPORT_FILE).read_text(encoding="utf-8"))
    weights_file = WEIGHTS_FILE
    if "ema" in report:
        weights_file, report["val"] = EMA_WEIGHTS_FILE, report["ema"]
    preprocessing = Preprocessing(**report["preprocessing"])
    class_names = tuple(report["class_names"])
    in_chans = preprocessing.input_size[0]
    model = setup.build_model(config.model, len(class_names), in_chans)
    model.load_state_dict(load_file(run / weights_file))
    setup.describe_preprocessing(model, preprocessing, class_names)

    temporary = run / f".{EXPORT_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_for_hf(
        model,
        temporary,
        model_config={"label_names": list(class_names)},
        model_args=dict(config.model.kwargs, in_chans=in_chans),
        safe_serialization=True,
    )
    has_curves = (run / CURVES_FILE).is_file()
    if has_curves:
        shutil.copy(run / CURVES_FILE, temporary / CURVES_FILE)
    benchmark = read_json(run / BENCHMARK_FILE)
    write_card(temporary / "README.md", config, report, benchmark=benchmark, has_curves=has_curves)
    _check_reload(model, temporary, preprocessing.input_size)
    target = run / EXPORT_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


@torch.no_grad()
def _check_reload(model: Any, folder: Path, input_size: tuple[int, ...]) -> None:
    x = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    reloaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    difference = (model.eval()(x) - reloaded.eval()(x)).abs().max().item()
    if difference != 0.0:
        raise RuntimeError(f"the export does not reproduce the run: logits differ by {difference:.3g}")
