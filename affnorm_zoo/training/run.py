import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.data import Normalize, ShardedBatches, eval_loader, open_source, train_loader
from affnorm_zoo.data import resolve_preprocessing as resolve
from affnorm_zoo.evaluation import evaluate
from affnorm_zoo.training import run_folder, setup
from affnorm_zoo.training.loop import Trainer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.json"
METRICS_FILE = "metrics.jsonl"


def train(config: RunConfig, output: Path) -> dict[str, Any]:
    """Train a model and leave its weights, resolved config, metrics and report in ``output``.

    Everything that can be wrong with the config, the data or the folder is said before the first step, and before
    the folder is made. The folder then holds ``config.yaml``, ``metrics.jsonl`` (one line an epoch), and at the end
    ``model.safetensors`` and ``report.json``.

    Returns:
        The report, on every process.

    Raises:
        UsageError: something that the caller can put right.
        NonFiniteError: the training diverged.
    """
    accelerator = setup.build_accelerator(config.runtime)
    source = open_source(config.data)
    micro = setup.resolve_micro_batch(config.train, accelerator.num_processes, len(source.train))
    set_seed(config.train.seed)
    bare_model = setup.build_model(config.model, len(source.class_names), source.in_chans)
    preprocessing = resolve(config.data, source, bare_model.pretrained_cfg)
    optimizer = setup.build_optimizer(config.optim, bare_model)
    run_folder.check_run_folder(output)  # by every process, so that none waits for one that has stopped
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(output / CONFIG_FILE, config_to_yaml(config))

    model, optimizer = accelerator.prepare(setup.prepare_model(config.runtime, bare_model), optimizer)
    batches = ShardedBatches(
        len(source.train),
        config.train.global_batch_size,
        micro,
        accelerator.process_index,
        accelerator.num_processes,
        config.train.seed,
    )
    micro_batches = config.train.global_batch_size // (micro * accelerator.num_processes)
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        schedule=setup.build_schedule(config.optim, optimizer, config.train.epochs, len(batches) // micro_batches),
        loss=nn.CrossEntropyLoss(label_smoothing=config.optim.label_smoothing),
        normalize=Normalize(preprocessing, accelerator.device),
        micro_batches=micro_batches,
        clip_grad=config.optim.clip_grad,
        channels_last=config.runtime.channels_last,
    )
    set_seed(config.train.seed, device_specific=True)  # dropout differs between processes, the weights do not
    train_batches = train_loader(source, config.data, batches, preprocessing)
    val_batches = eval_loader(
        source.val,
        preprocessing,
        batch_size=2 * micro,
        workers=config.data.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    start = time.perf_counter()
    last = _run_epochs(trainer, train_batches, batches, val_batches, config.train.epochs, output)
    report = {
        "model": config.model.name,
        "data": source.name,
        "class_names": list(source.class_names),
        "num_train_images": len(source.train),
        "preprocessing": dataclasses.asdict(preprocessing),
        "seed": config.train.seed,
        "epochs": config.train.epochs,
        "updates": trainer.updates,
        "parameters": sum(p.numel() for p in bare_model.parameters()),
        "val": last["val"],
        "train_loss": last["train"]["loss"],
        "seconds": time.perf_counter() - start,
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "environment": run_folder.describe_environment(),
    }
    if accelerator.is_main_process:
        weights = _plain_weights(accelerator, model)
        run_folder.write_atomically(output / WEIGHTS_FILE, lambda path: save_file(weights, path))
        run_folder.write_json(output / REPORT_FILE, report)
    accelerator.wait_for_everyone()
    return report


def _run_epochs(
    trainer: Trainer,
    train_batches: DataLoader,
    batches: ShardedBatches,
    val_batches: DataLoader,
    epochs: int,
    output: Path,
) -> dict[str, Any]:
    """Train and evaluate ``epochs`` times, log each, and return the last record."""
    accelerator = trainer.accelerator
    record: dict[str, Any] = {}
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        show = accelerator.is_main_process and sys.stderr.isatty()
        progress = tqdm(train_batches, desc=f"epoch {epoch + 1}/{epochs}", disable=not show, leave=False)
        train_metrics = trainer.train_epoch(progress)
        val_metrics = evaluate(trainer.model, val_batches, trainer.normalize, accelerator)
        record = {"epoch": epoch + 1, "updates": trainer.updates, "train": train_metrics, "val": val_metrics}
        if accelerator.is_main_process:
            run_folder.append_metrics(output / METRICS_FILE, record)
            print(_epoch_line(record, epochs), flush=True)  # noqa: T201 the run's own log
    return record


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    train, val = record["train"], record["val"]
    return (
        f"epoch {record['epoch']:>3}/{epochs}  loss {train['loss']:.4f}  grad {train['grad_norm']:.2f}  "
        f"lr {train['lr']:.2e}  {train['images_per_second']:.0f} img/s  "
        f"val loss {val['loss']:.4f}  top-1 {100 * val['top1']:.2f} %"
    )


def _plain_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, torch.Tensor]:
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in plain.state_dict().items()}
