"""train.py with a fault planted on one process: FAULT says which, FAULTY_RANK where."""

import os

from affnorm_zoo.cli import train as command
from affnorm_zoo.data import Digits
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import assemble

HERE = os.environ["RANK"] == os.environ["FAULTY_RANK"]


def refuse(*_):
    raise UsageError("this process has no such file")


def die(dataset, index):
    os._exit(3)


if HERE and os.environ["FAULT"] == "data":
    assemble.open_source = refuse
if HERE and os.environ["FAULT"].endswith("worker"):
    original, num_images = Digits.__getitem__, 360 if "validation" in os.environ["FAULT"] else 1437
    Digits.__getitem__ = lambda dataset, index: (die if len(dataset) == num_images else original)(dataset, index)
if os.environ["FAULT"] == "export":
    command.export_run = refuse
command.train()
