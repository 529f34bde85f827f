"""Build and check all parts of a run from its config. Nothing is written yet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from affnorm_zoo.config import RunConfig
from affnorm_zoo.data import (
    BatchAugment,
    Normalize,
    Preprocessing,
    ShardedBatches,
    Source,
    StreamedBatches,
    describe_loading,
    open_source,
    resolve_preprocessing,
    train_loader,
    val_loader,
)
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import TASKS, Task, check_classifier, match_labels
from affnorm_zoo.evaluation.flops import count_flops
from affnorm_zoo.runs.folder import RunFolder
from affnorm_zoo.runs.model import build_model, reorder_classifier
from affnorm_zoo.training import builders
from affnorm_zoo.training.deepspeed import configure_deepspeed, is_deepspeed
from affnorm_zoo.training.distill import DistillationLoss, Teacher
from affnorm_zoo.training.ema import build_ema
from affnorm_zoo.training.loop import Trainer
from affnorm_zoo.training.processes import shards_weights
from affnorm_zoo.training.state import Progress, RunState


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All parts of a run."""

    source: Source
    preprocessing: Preprocessing
    trainer: Trainer
    val_loader: Iterable
    loading: str  # one line: where the training images come from
    micro_batch_size: int
    forward_flops: int  # per image
    parameters: int


@dataclass(frozen=True)
class Run:
    """A run that can begin: its config, its folder and its parts."""

    config: RunConfig
    folder: RunFolder
    parts: Parts

    @property
    def trainer(self) -> Trainer:
        return self.parts.trainer

    @property
    def task(self) -> Task:
        return TASKS[self.config.data.task]

    @property
    def accelerator(self) -> Accelerator:
        return self.trainer.accelerator

    @property
    def progress(self) -> Progress:
        return self.trainer.state.progress

    def write_state(self, state: str, **details: Any) -> None:
        """Record the run's state and its position, on the main process."""
        if self.accelerator.is_main_process:
            at = self.progress
            self.folder.write_state(state, epoch=at.epoch, update=at.updates, window=at.windows, **details)


def assemble(config: RunConfig, accelerator: Accelerator, resume: str = "none") -> Parts:
    """Open the data, then build everything else for them.

    Raises:
        UsageError: an error that the caller can fix.
    """
    data, device = config.data, accelerator.device
    source = open_source(data)
    micro = builders.resolve_micro_batch(config.train, accelerator.num_processes, source.num_train)
    if data.mixes and micro % 2:
        raise UsageError(f"data.mixup and data.cutmix pair images: the micro-batch must be even, got {micro}")
    set_seed(config.train.seed)
    bare_model = _build_model(config, source).to(device)
    preprocessing = resolve_preprocessing(data, source, _sized_cfg(config, bare_model))
    check_classifier(config.model.name, bare_model, preprocessing.input_size, len(source.class_names))
    batches = _build_batches(config, source, micro, accelerator)
    builders.check_training_batch(config.model.name, bare_model, preprocessing.input_size, batches.smallest_batch)
    flops = count_flops(bare_model, preprocessing.input_size)
    parameters = sum(p.numel() for p in bare_model.parameters())
    bare_model = builders.synchronize_batch_norm(config.runtime, bare_model, device, accelerator.num_processes)
    prepared = builders.prepare_model(config.runtime, bare_model)
    optimizer = builders.build_optimizer(config.optim, bare_model, config.train.global_batch_size)
    if is_deepspeed(accelerator):
        configure_deepspeed(accelerator, config, micro, resume)
    sharded = shards_weights(accelerator)
    ema = None if sharded else build_ema(config.model, bare_model, sharded)
    model, optimizer = accelerator.prepare(prepared, optimizer)
    if sharded:
        bare_model = accelerator.unwrap_model(model, keep_torch_compile=False)
        ema = build_ema(config.model, bare_model, sharded)
    teacher = None
    if config.train.distill_from is not None:
        teacher = Teacher(config.train.distill_from, source, preprocessing, data.labels_by_position, device)
    multilabel = data.task == "multilabel"
    uses_norm = config.optim.clip_mode == "norm"
    trainer = Trainer(
        accelerator=accelerator,
        state=RunState(accelerator, model, bare_model, optimizer, ema, Progress()),
        schedule=builders.build_schedule(config.optim, optimizer, config.train.epochs, batches.num_updates),
        loss=DistillationLoss(config.train) if teacher else builders.build_loss(config.optim, data.mixes, multilabel),
        teacher=teacher,
        normalize=Normalize(preprocessing, device),
        augment=BatchAugment(data, len(source.class_names), config.optim.label_smoothing, device),
        batches=batches,
        loader=train_loader(source, data, batches, preprocessing, device),
        seed=config.train.seed,
        clip_norm=config.optim.clip_grad if uses_norm else None,
        clip=builders.build_clip(config.optim, bare_model),
        channels_last=config.runtime.channels_last,
        replays_graphs=config.runtime.replays_graphs,
        skip_non_finite=config.train.non_finite == "skip",
        max_skips=config.train.max_skips,
    )
    return Parts(
        source=source,
        preprocessing=preprocessing,
        trainer=trainer,
        val_loader=val_loader(
            source,
            data,
            preprocessing,
            device,
            batch_size=2 * micro,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        ),
        loading=describe_loading(source, data, trainer.loader),
        micro_batch_size=micro,
        forward_flops=flops,
        parameters=parameters,
    )


def _build_model(config: RunConfig, source: Source) -> nn.Module:
    """The model, pretrained if the config asks for it, with its classes in the order of the data's."""
    num_classes = len(source.class_names)
    pretrained = config.model.pretrained or config.model.weights is not None
    model = build_model(config.model, num_classes, source.in_chans, pretrained=pretrained)
    cfg: Any = model.pretrained_cfg
    if pretrained and cfg.get("num_classes") == num_classes:  # otherwise its classifier is untrained
        outputs = match_labels(config.model.name, model, source, config.data.labels_by_position)
        if outputs is not None:
            reorder_classifier(model, outputs)
    return model


def _sized_cfg(config: RunConfig, model: nn.Module) -> dict[str, Any]:
    """The model's pretrained_cfg, with the image size of ``model.kwargs`` if given."""
    cfg: Any = model.pretrained_cfg
    size = config.model.kwargs.get("img_size")
    if size is None:
        return cfg
    return {**cfg, "input_size": (cfg["input_size"][0], *(size if isinstance(size, list) else [size] * 2))}


def _build_batches(
    config: RunConfig, source: Source, micro: int, accelerator: Accelerator
) -> ShardedBatches | StreamedBatches:
    """Which images each update takes, and how many updates an epoch has."""
    size, seed, world = config.train.global_batch_size, config.train.seed, accelerator.num_processes
    if not source.is_stream:
        return ShardedBatches(
            source.num_train,
            size,
            micro,
            accelerator.process_index,
            world,
            seed,
            config.data.repeats,
            config.data.drop_last,
        )
    if config.data.repeats > 1 or not config.data.drop_last:
        raise UsageError("data.repeats and data.drop_last=false need an indexable dataset; a WebDataset stream is not")
    if not config.data.workers:
        raise UsageError("WebDataset shards are shuffled in the workers: set data.workers to at least 1")
    return StreamedBatches(source.train, size, micro, world, config.data.workers, seed)
