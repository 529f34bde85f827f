"""The results of a sweep as a Markdown table."""

from pathlib import Path
from typing import Any

from affnorm_zoo.evidence.statistics import Sample, welch
from affnorm_zoo.studies.sweep import SweepConfig, final_trials, read_result, tuning_trials


def sweep_table(sweep: SweepConfig, folder: Path) -> str:
    """Per arm: mean ± standard deviation of one run, and the difference to the baseline with Welch's p value.

    Arms without runs say "not run". The last column counts the tuning runs and those that diverged.
    """
    samples = {arm: final_results(sweep, arm, folder) for arm in sweep.arms}
    base = sample_of(samples[sweep.baseline])
    lines = [
        "| method | top-1, % | n | difference to the baseline | setting | tuning runs, diverged |",
        "|---" * 6 + "|",
    ]
    for arm, results in samples.items():
        tuned = [
            result for trial in tuning_trials(sweep) if trial.arm == arm and (result := read_result(folder, trial))
        ]
        tuning = f"{len(tuned)}, {sum(result['diverged'] for result in tuned)}"
        if not results:
            lines.append(f"| {arm} | not run | 0 | | | {tuning} |")
            continue
        sample = sample_of(results)
        difference = "baseline" if arm == sweep.baseline else gap(sample, base) if base.values else "baseline not run"
        point = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in results[0]["point"].items())
        lines.append(f"| {arm} | {sample} | {len(results)} | {difference} | {point} | {tuning} |")
    return "\n".join(lines) + "\n"


def final_results(sweep: SweepConfig, arm: str, folder: Path) -> list[dict[str, Any]]:
    """The results so far of an arm's final runs."""
    return [result for trial in final_trials(sweep, arm, folder) if (result := read_result(folder, trial))]


def sample_of(results: list[dict[str, Any]]) -> Sample:
    """The top-1 accuracies of results."""
    return Sample(tuple(result["top1"] for result in results))


def gap(sample: Sample, base: Sample) -> str:
    """The difference of two means in points, with Welch's p value if both have several runs."""
    points = f"{100 * (sample.mean - base.mean):+.2f} points"
    enough = min(len(sample.values), len(base.values)) > 1
    return f"{points} (p = {welch(sample, base):.2g})" if enough else f"{points} (one run)"
