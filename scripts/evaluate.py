"""Measure models: scripts/evaluate.py MODEL [section.key=value ...].

MODEL is an export folder, local-dir:PATH, hf-hub:ORG/NAME or a timm name with weights. Without data.path the images
are the embedded digits.
"""

import argparse
import json
import sys

from affnorm_zoo.config import load_config
from affnorm_zoo.data import Normalize, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import evaluate, load_model
from affnorm_zoo.training.setup import build_accelerator


def main() -> int:
    """Evaluate on the validation split and print the metrics as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*", help="such as data.path=PATH data.val_split=test")
    parser.add_argument("--batch-size", type=int, default=128, help="images a process")
    args = parser.parse_args()
    try:
        config = load_config(overrides=args.overrides)
        accelerator = build_accelerator(config.runtime)
        source = open_source(config.data)
        model = load_model(args.model)
        check_fit(model, source)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    preprocessing = resolve_preprocessing(config.data, source, model.pretrained_cfg)
    loader = eval_loader(
        source.val,
        preprocessing,
        batch_size=args.batch_size,
        workers=config.data.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    metrics = evaluate(model.to(accelerator.device), loader, Normalize(preprocessing, accelerator.device), accelerator)
    if accelerator.is_main_process:
        print(json.dumps({"model": args.model, "data": source.name, **metrics}))
    return 0


def check_fit(model, source) -> None:
    """Raise UsageError unless the model's classes and channels are the data's."""
    if model.num_classes != len(source.class_names):
        raise UsageError(f"the model has {model.num_classes} classes, but {source.name} has {len(source.class_names)}")
    in_chans = model.pretrained_cfg["input_size"][0]
    if in_chans != source.in_chans:
        raise UsageError(f"the model takes {in_chans} channels, but the images of {source.name} have {source.in_chans}")


if __name__ == "__main__":
    sys.exit(main())
