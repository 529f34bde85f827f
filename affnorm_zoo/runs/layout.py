"""What the folder of a run holds: the name of each file, said once."""

WEIGHTS_FILE = "model.safetensors"
EMA_WEIGHTS_FILE = "ema.safetensors"
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
STATE_FILE = "run_state.json"
REPORT_FILE = "report.json"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
DIVERGENCE_FILE = "divergence.png"
LOCK_FILE = "run.lock"
BAD_IMAGES_FILE = "bad_images.txt"  # number and name of each; exists only if there are any
CHECKPOINTS = "checkpoints"
