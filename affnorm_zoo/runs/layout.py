"""The names of the files and folders that a run's folder may hold."""

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
STATE_FILE = "run_state.json"
METRICS_FILE = "metrics.jsonl"
WEIGHTS_FILE = "model.safetensors"
EMA_WEIGHTS_FILE = "ema.safetensors"
REPORT_FILE = "report.json"
CURVES_FILE = "curves.png"
DIVERGENCE_FILE = "divergence.png"
LOCK_FILE = "run.lock"
BAD_IMAGES_FILE = "bad_images.txt"  # number and name of each; exists only if there are any
BENCHMARK_FILE = "benchmark.json"  # of scripts/benchmark.py measure, if it was asked to write here
EXPORT_FOLDER = "export"  # what timm loads
RELEASE_FOLDER = "release"  # what is published
CHECKPOINTS_FOLDER = "checkpoints"

# of one checkpoint, beside both files of weights
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
BEST_LINK = "best"  # beside the checkpoints
