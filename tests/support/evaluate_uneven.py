"""Measure one model on validation sets of many sizes; for several processes. Prints JSON from the first."""

import json
import sys

import timm
import torch
from accelerate import Accelerator

import affnorm_zoo  # noqa: F401
from affnorm_zoo.data import Digits, Normalize, Preprocessing, eval_loader
from affnorm_zoo.evaluation import MULTILABEL, evaluate

accelerator = Accelerator(cpu=True)
preprocessing = Preprocessing(input_size=(1, 8, 8), mean=(0.3,), std=(0.4,), crop_pct=1.0, interpolation="bicubic")
torch.manual_seed(0)
shown = torch.randint(2, (10, 10)).float()  # the classes that a digit stands for
shown[:, 0] = 1
model = timm.create_model("resnet20_cifar_batchnorm", in_chans=1)
results = []
for size in (1, 2, 3, 7, 12, 13):
    digits = Digits("val")
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    digits.images, digits.labels = digits.images[:size], digits.labels[:size]
    loader = eval_loader(digits, preprocessing, batch_size=3, **share)
    results.append(evaluate(model, loader, Normalize(preprocessing, accelerator.device), accelerator))
    several = ((images, shown[labels]) for images, labels in loader)
    normalize = Normalize(preprocessing, accelerator.device)
    results[-1]["several"] = evaluate(model, several, normalize, accelerator, task=MULTILABEL)
stopped = evaluate(model, loader, Normalize(preprocessing, accelerator.device), accelerator,
                   lambda: accelerator.process_index == accelerator.num_processes - 1)  # fmt: skip
assert stopped is None
if accelerator.is_main_process:
    sys.stdout.write(json.dumps(results) + "\n")
accelerator.wait_for_everyone()
accelerator.end_training()
