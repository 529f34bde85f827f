"""Run a timm-style script with the zoo's models registered: python -m affnorm_zoo.run SCRIPT [ARGUMENTS ...].

This is for timm's own train.py, validate.py, benchmark.py or onnx_export.py, which otherwise do not know the zoo's
models. With several processes: accelerate launch -m affnorm_zoo.run SCRIPT ..., or torchrun -m likewise.
"""

import runpy
import sys
from pathlib import Path

import affnorm_zoo.models  # noqa: F401 registers the models


def main() -> None:
    """Hand the command line to the script, as if it had been called by its path."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        given = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        sys.exit(f"usage: python -m affnorm_zoo.run SCRIPT [ARGUMENTS ...]; SCRIPT must be a file, got {given}")
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
