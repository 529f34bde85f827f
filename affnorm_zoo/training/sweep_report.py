"""What a sweep found, as a table."""

from pathlib import Path
from typing import Any

from affnorm_zoo.evaluation.statistics import Sample, welch
from affnorm_zoo.training.sweep import SweepConfig, final_trials, read_result, tuning_trials


def sweep_table(sweep: SweepConfig, folder: Path) -> str:
    """Mean ± deviation of one run of every arm, and its difference to the baseline with Welch's p value.

    Arms that have not run say so; tuning points that diverged are counted.
    """
    samples = {arm: _finals(sweep, arm, folder) for arm in sweep.arms}
    base = _sample(samples[sweep.baseline])
    lines = ["| arm | top-1, % | n | difference to the baseline | at | tuning runs, diverged |", "|---" * 6 + "|"]
    for arm, results in samples.items():
        tuned = [
            result for trial in tuning_trials(sweep) if trial.arm == arm and (result := read_result(folder, trial))
        ]
        tuning = f"{len(tuned)}, {sum(result['diverged'] for result in tuned)}"
        if not results:
            lines.append(f"| {arm} | not run | 0 | | | {tuning} |")
            continue
        sample = _sample(results)
        difference = "baseline" if arm == sweep.baseline else _difference(sample, base)
        point = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in results[0]["point"].items())
        lines.append(f"| {arm} | {sample} | {len(results)} | {difference} | {point} | {tuning} |")
    return "\n".join(lines) + "\n"


def _finals(sweep: SweepConfig, arm: str, folder: Path) -> list[dict[str, Any]]:
    return [result for trial in final_trials(sweep, arm, folder) if (result := read_result(folder, trial))]


def _sample(results: list[dict[str, Any]]) -> Sample:
    return Sample(tuple(result["top1"] for result in results))


def _difference(sample: Sample, base: Sample) -> str:
    if not base.values:
        return "baseline not run"
    gap = f"{100 * (sample.mean - base.mean):+.2f} points"
    enough = min(len(sample.values), len(base.values)) > 1
    return f"{gap} (p = {welch(sample, base):.2g})" if enough else f"{gap} (one run)"
