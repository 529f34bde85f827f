from dataclasses import replace

import torch

from affnorm_zoo.config import RunConfig
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.training import run_log
from affnorm_zoo.training.assemble import assemble
from affnorm_zoo.training.cost import Cost
from affnorm_zoo.training.processes import build_accelerator


def dry_run(config: RunConfig) -> Cost:
    """Check everything, take one step, and return the run's cost. Nothing is written.

    Raises:
        UsageError: an error that the caller can fix.
        NonFiniteError: the first gradient is non-finite.
    """
    run_log.check_trackers(config.runtime.trackers)
    accelerator = build_accelerator(config.runtime)
    parts = assemble(replace(config, data=replace(config.data, cache=False)), accelerator)
    trainer, state = parts.trainer, parts.trainer.state
    next(trainer.windows())
    trainer.drain()
    x = torch.zeros(parts.micro_batch_size, *parts.preprocessing.input_size, device=accelerator.device)
    with accelerator.autocast():
        activations = saved_bytes(state.bare_model, x)
    weights = [*state.bare_model.parameters(), *state.bare_model.buffers()]
    moments = [
        value for values in state.optimizer.state.values() for value in values.values() if torch.is_tensor(value)
    ]
    gradients_and_average = sum(p.nbytes for p in state.bare_model.parameters()) * (2 if state.ema else 1)
    return Cost(
        preprocessing=parts.preprocessing,
        parameters=parts.parameters,
        forward_flops=parts.forward_flops,
        updates_per_epoch=trainer.batches.num_updates,
        total_updates=config.train.epochs * trainer.batches.num_updates,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=parts.micro_batch_size,
        micro_batches=trainer.batches.num_micro_batches(0),
        num_processes=accelerator.num_processes,
        learning_rate=config.optim.learning_rate(config.train.global_batch_size),
        weight_bytes=sum(t.nbytes for t in (*weights, *moments)) + gradients_and_average,
        activation_bytes=activations,
    )
