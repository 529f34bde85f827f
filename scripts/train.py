"""Train one model: accelerate launch scripts/train.py [CONFIG.yaml ...] [section.key=value ...] --output runs/NAME.

Without a config it trains a small PatchNorm network on handwritten digits that come with the installation.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from accelerate import PartialState

from affnorm_zoo.config import load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub import export_run
from affnorm_zoo.training import NonFiniteError, train


def main() -> int:
    """Train, export, print where the result lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="YAML files, later ones win, and overrides such as optim.lr=0.2")
    parser.add_argument("--output", type=Path, help="run folder, new or empty; default: runs/DATE-TIME")
    args = parser.parse_args()
    output = args.output or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    files = [item for item in args.config if "=" not in item]
    overrides = [item for item in args.config if "=" in item]
    try:
        report = train(load_config(files, overrides), output)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"training diverged: {error}; try a lower optim.lr or a longer optim.warmup_epochs", file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        export = export_run(output)
        print(f"top-1 {100 * report['val']['top1']:.2f} % of {report['val']['num_images']} held-out images")
        print(f'timm.create_model("local-dir:{export}", pretrained=True)')
    return 0


if __name__ == "__main__":
    sys.exit(main())
