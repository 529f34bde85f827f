"""The results of a sweep as a Markdown table."""

from pathlib import Path
from statistics import mean, median
from typing import Any

from affnorm_zoo.evidence.statistics import Sample, difference
from affnorm_zoo.studies.sweep import SweepConfig, final_trials, read_result, tuning_trials


def sweep_table(sweep: SweepConfig, folder: Path) -> str:
    """Per arm: mean ± standard deviation of one run, and the difference to the baseline with Welch's p value.

    Arms without runs say "not run". The mean training loss of the last epoch follows if all runs recorded it. If the
    sweep is tuned, the best setting follows, and the number of tuning runs and of those that diverged.
    """
    samples = {arm: final_results(sweep, arm, folder) for arm in sweep.arms}
    base = sample_of(samples[sweep.baseline])
    rows = [["method", "top-1, %", "n", "difference to the baseline"]]
    for arm, results in samples.items():
        if not results:
            rows.append([arm, "not run", "0", ""])
            continue
        sample = sample_of(results)
        against = "baseline" if arm == sweep.baseline else gap(sample, base) if base.values else "baseline not run"
        rows.append([arm, str(sample), str(len(results)), against])
    ended = {arm: [result for result in results if not result["diverged"]] for arm, results in samples.items()}
    if any(ended.values()) and all("train_loss" in result for results in ended.values() for result in results):
        rows[0].append("training loss")
        for row, results in zip(rows[1:], ended.values(), strict=True):
            row.append(f"{mean(result['train_loss'] for result in results):.3f}" if results else "")
    if sweep.is_tuned:
        rows[0] += ["setting", "tuning runs, diverged"]
        for row, results in zip(rows[1:], samples.values(), strict=True):
            row += [_setting(results), _tuning(sweep, row[0], folder)]
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def _setting(results: list[dict[str, Any]]) -> str:
    point = results[0]["point"] if results else {}
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.items())


def _tuning(sweep: SweepConfig, arm: str, folder: Path) -> str:
    tuned = [result for trial in tuning_trials(sweep) if trial.arm == arm and (result := read_result(folder, trial))]
    return f"{len(tuned)}, {sum(result['diverged'] for result in tuned)}"


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
    return f"{points} (p = {difference(sample, base).p:.2g})" if enough else f"{points} (one run)"


def attention_table(samples: dict[str, list[dict[str, Any]]]) -> str:
    """The factors of attention before and after training, by arm; empty if no run has measured them.

    A cell has the mean factor and its standard deviation over mean, both as the median over attentions and runs.
    """
    measured = {
        arm: found for arm, runs in samples.items() if (found := [r["attention"] for r in runs if "attention" in r])
    }
    if not measured:
        return ""
    kinds = ("mixed values", "logits")
    rows = [["attention", *(f"{kind}, {when}" for kind in kinds for when in ("untrained", "trained"))]]
    for arm, found in measured.items():
        rows.append([arm, *(_factor(found, kind, when) for kind in kinds for when in ("first", "last"))])
    return _table(rows)


def _factor(found: list[dict[str, Any]], kind: str, when: str) -> str:
    rows = [row for run in found for row in run[when] if row["kind"] == kind]
    return f"{median(row['factor'] for row in rows):.3g} (cv {median(row['cv'] or 0.0 for row in rows):.2g})"
