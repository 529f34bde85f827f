"""The state of a run: everything it needs to resume as if it had never stopped."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import is_sharded
from affnorm_zoo.runs.layout import EMA_WEIGHTS_FILE, OPTIMIZER_FILE, PROGRESS_FILE, WEIGHTS_FILE
from affnorm_zoo.runs.record import check_fields
from affnorm_zoo.runs.tensors import join_tensors, split_tensors, to_plain
from affnorm_zoo.training.ema import ModelEma, ShardEma


@dataclass
class Progress:
    """The position of a run, always between two updates.

    ``epoch`` is the current epoch, ``window`` the number of its finished windows (attempts at an update). ``windows``
    counts them over all epochs. ``updates`` counts those whose gradient was finite and changed the weights. Random
    numbers need no state: they are functions of the seed and the position.
    """

    epoch: int = 0
    window: int = 0
    windows: int = 0
    updates: int = 0
    samples: int = 0
    skips: int = 0  # windows in a row with a non-finite gradient
    loss_sum: float = 0.0  # over the windows of the epoch that have been read and were finite
    num_losses: int = 0  # the number of these windows
    best: dict[str, Any] = field(default_factory=dict)  # metric, value, epoch, checkpoint
    evaluated: dict[str, Any] = field(default_factory=dict)  # the last epoch's record


@dataclass
class RunState:
    """The parts of a run that change, with methods to save and load them.

    Weights are saved as a plain timm model's, without wrappers. A checkpoint therefore does not depend on the number
    of processes or on compilation. There are no pickles: tensors are safetensors, the rest is JSON.
    """

    accelerator: Accelerator
    model: nn.Module  # as prepared by accelerate
    bare_model: nn.Module
    optimizer: Optimizer
    ema: ModelEma | ShardEma | None
    progress: Progress

    def gather(self) -> dict[str, Any]:
        """Copy everything to the CPU; every process must call it, and only the main one gets the result.

        Raises:
            UsageError: the optimiser's state cannot be saved.
        """
        try:
            optimizer, tensors = split_tensors(self._optimizer_state())
        except TypeError as error:
            raise UsageError(f"this optim.name cannot be checkpointed: {error}; choose another optimiser") from error
        state = {
            WEIGHTS_FILE: self.model_weights(),
            OPTIMIZER_FILE: tensors,
            PROGRESS_FILE: {"progress": asdict(self.progress), "optimizer": optimizer, "scaler": self._scaler_state()},
        }
        if self.ema is not None:
            state[EMA_WEIGHTS_FILE] = self.ema_weights()
        return state

    def model_weights(self) -> dict[str, Tensor]:
        """The full model's state dict on the CPU; every process must call it."""
        return to_plain(_unshard(self.bare_model.state_dict()))

    def ema_weights(self) -> dict[str, Tensor]:
        """The same for the moving average."""
        assert self.ema is not None
        return to_plain(_unshard(self.ema.state_dict()))

    def load(self, folder: Path) -> None:
        """Load a verified checkpoint; every process must call it and have access to the folder.

        Raises:
            FormatError: a field of its state is missing or unknown.
        """
        path = folder / PROGRESS_FILE
        record = json.loads(path.read_text(encoding="utf-8"))
        check_fields(record, ("progress", "optimizer", "scaler"), path)
        check_fields(record["progress"], [field.name for field in fields(Progress)], path)
        self._load_model(load_file(folder / WEIGHTS_FILE))
        self._load_optimizer(join_tensors(record["optimizer"], load_file(folder / OPTIMIZER_FILE)))
        if self.ema is not None:
            self.ema.load_state_dict(_reshard(load_file(folder / EMA_WEIGHTS_FILE), self.ema.state_dict()))
        if self.accelerator.scaler is not None and record["scaler"]:
            self.accelerator.scaler.load_state_dict(record["scaler"])
        for name, value in record["progress"].items():
            setattr(self.progress, name, value)

    def _optimizer_state(self) -> dict[str, Any]:
        if is_sharded(self.model):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            return get_optimizer_state_dict(self.model, unwrap_optimizer(self.optimizer), options=options)
        return unwrap_optimizer(self.optimizer).state_dict()

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        if is_sharded(self.model):
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model, unwrap_optimizer(self.optimizer), state, options=options)
        else:
            unwrap_optimizer(self.optimizer).load_state_dict(state)

    def _load_model(self, state: dict[str, Any]) -> None:
        if is_sharded(self.model):
            set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True))
        else:
            self.bare_model.load_state_dict(state)

    def _scaler_state(self) -> dict[str, Any]:
        return {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write the result of :meth:`RunState.gather` into an existing folder."""
    for name, content in state.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        else:
            save_file(content, folder / name)


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _unshard(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


@torch.no_grad()
def _reshard(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    sharded = {}
    for name, value in state.items():
        target = like[name]
        if isinstance(target, DTensor):
            value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
        sharded[name] = value
    return sharded
