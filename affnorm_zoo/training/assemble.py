"""A config and processes to the parts of a run, checked, with nothing written yet."""

from collections.abc import Iterable
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import set_seed

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
from affnorm_zoo.training import setup
from affnorm_zoo.training.deepspeed import configure_deepspeed, is_deepspeed
from affnorm_zoo.training.ema import build_ema
from affnorm_zoo.training.loop import Trainer
from affnorm_zoo.training.plan import count_flops
from affnorm_zoo.training.processes import shards_weights
from affnorm_zoo.training.state import Progress, RunState


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that a run works with."""

    source: Source
    preprocessing: Preprocessing
    trainer: Trainer
    val_loader: Iterable
    loading: str  # where the training images come from
    micro_batch_size: int
    forward_flops: int  # an image
    parameters: int


def assemble(config: RunConfig, accelerator: Accelerator, resume: str = "none") -> Parts:
    """Open the data, then build everything else for them.

    Raises:
        UsageError: something that the caller can put right.
    """
    data, device = config.data, accelerator.device
    source = open_source(data)
    micro = setup.resolve_micro_batch(config.train, accelerator.num_processes, source.num_train)
    if data.mixes and micro % 2:
        raise UsageError(f"data.mixup and data.cutmix pair images: the micro-batch must be even, got {micro}")
    set_seed(config.train.seed)
    bare_model = setup.build_model(
        config.model, len(source.class_names), source.in_chans, pretrained=config.model.pretrained
    ).to(device)
    preprocessing = resolve_preprocessing(data, source, bare_model.pretrained_cfg)
    flops = count_flops(bare_model, preprocessing.input_size)
    parameters = sum(p.numel() for p in bare_model.parameters())
    bare_model = setup.synchronize_batch_norm(config.runtime, bare_model, device, accelerator.num_processes)
    prepared = setup.prepare_model(config.runtime, bare_model)
    optimizer = setup.build_optimizer(config.optim, bare_model, config.train.global_batch_size)
    if is_deepspeed(accelerator):
        configure_deepspeed(accelerator, config, micro, resume)
    sharded = shards_weights(accelerator)
    ema = None if sharded else build_ema(config.model, bare_model, sharded)
    model, optimizer = accelerator.prepare(prepared, optimizer)
    if sharded:
        bare_model = accelerator.unwrap_model(model, keep_torch_compile=False)
        ema = build_ema(config.model, bare_model, sharded)
    batches = _build_batches(config, source, micro, accelerator)
    uses_norm = config.optim.clip_mode == "norm"
    trainer = Trainer(
        accelerator=accelerator,
        state=RunState(accelerator, model, bare_model, optimizer, ema, Progress()),
        schedule=setup.build_schedule(config.optim, optimizer, config.train.epochs, batches.num_updates),
        loss=setup.build_loss(config.optim, data.mixes),
        normalize=Normalize(preprocessing, device),
        augment=BatchAugment(data, len(source.class_names), config.optim.label_smoothing, device),
        batches=batches,
        loader=train_loader(source, data, batches, preprocessing, device),
        seed=config.train.seed,
        clip_norm=config.optim.clip_grad if uses_norm else None,
        clip=setup.build_clip(config.optim, bare_model),
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


def _build_batches(
    config: RunConfig, source: Source, micro: int, accelerator: Accelerator
) -> ShardedBatches | StreamedBatches:
    """Which images an update takes, and how many updates make an epoch."""
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
        raise UsageError("data.repeats and data.drop_last=false need images with numbers, which a stream has not")
    if not config.data.workers:
        raise UsageError("WebDataset shards are shuffled in the workers: set data.workers to at least 1")
    return StreamedBatches(source.train, size, micro, world, config.data.workers, seed)
