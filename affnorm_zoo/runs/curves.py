import json
from pathlib import Path

from affnorm_zoo.evaluation.tasks import Metric


def plot_curves(metrics: Path, target: Path, score: Metric) -> bool:
    """Draw loss, learning rate and score over the updates of a run, as a PNG.

    Returns:
        Whether matplotlib is installed; without it nothing is drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    updates = [record for record in records if record["kind"] == "update"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    loss, rate, scores = figure.subplots(1, 3)
    loss.plot([r["update"] for r in updates], [r["loss"] for r in updates], lw=0.7, label="training")
    for weights in ("val", "ema"):
        found = [r for r in epochs if weights in r]
        if found:
            at = [r["update"] for r in found]
            loss.plot(at, [r[weights]["loss"] for r in found], label=weights)
            scores.plot(at, [r[weights][score.key] for r in found], label=f"{weights} {score.name}")
    rate.plot([r["update"] for r in updates], [r["lr"] for r in updates])
    for axes, name in ((loss, "loss"), (rate, "learning rate"), (scores, score.name)):
        axes.set_xlabel("update")
        axes.set_ylabel(name)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    temporary = target.with_name(f".{target.name}")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(target)
    return True
