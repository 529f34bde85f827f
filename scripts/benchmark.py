"""Time networks side by side and write docs/performance.md: scripts/benchmark.py measure | report.

scripts/benchmark.py measure --output docs/benchmarks/cpu.json
scripts/benchmark.py measure --device cuda --batch-size 256 --dtype bfloat16 --output docs/benchmarks/gpu.json
scripts/benchmark.py report
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import affnorm_zoo  # noqa: F401 registers the models
from affnorm_zoo.evaluation.benchmark import Bench, environment
from affnorm_zoo.evaluation.benchmark_report import write_report
from affnorm_zoo.evaluation.kernel_check import check_kernels

CONTENDERS = {
    "resnet50": ["batchnorm", "patchnorm", "patchnorm_ws", "groupnorm", "none"],
    "resnet18": ["batchnorm", "patchnorm", "patchnorm_ws", "groupnorm", "none"],
    "vit_small_patch16_224": ["layernorm", "affinelike", "normlike", "rmsnorm"],
}


def main() -> int:
    """Measure into a JSON file, or turn the JSON files into tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    measure.add_argument("--models", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    measure.add_argument("--batch-size", type=int, default=8)
    measure.add_argument("--img-size", type=int, default=224)
    measure.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    measure.add_argument("--rounds", type=int, default=15)
    measure.add_argument("--no-compile", action="store_true", help="leave out what takes minutes to compile")
    measure.add_argument("--output", type=Path, required=True)
    report = commands.add_parser("report")
    report.add_argument("--folder", type=Path, default=Path("docs/benchmarks"))
    report.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    if args.command == "report":
        write_report(args.folder, args.page)
        return 0

    device = torch.device(args.device)
    results = {"command": " ".join(sys.argv), "environment": environment(device), "rows": [], "kernels": []}
    if device.type == "cuda":
        results["kernels"] = check_kernels()
    for name in args.models:
        bench = Bench(name, args.batch_size, args.img_size, device, getattr(torch, args.dtype), args.rounds)
        contenders = CONTENDERS[name]
        for compiled in (False,) if args.no_compile else (False, True):
            chosen = contenders[:2] if compiled else contenders  # a compilation takes a minute
            for rows in (bench.train(chosen, compiled), bench.infer(chosen, compiled)):
                results["rows"] += rows
                for row in rows:
                    print(json.dumps(row), flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
