"""Write the page of recipes and the README's table from the result files of sweeps."""

from pathlib import Path
from typing import Any

from timm.utils import natural_key

from affnorm_zoo.evidence.statistics import difference
from affnorm_zoo.registry import get_normalizer, list_normalizers
from affnorm_zoo.runs.files import write_text
from affnorm_zoo.studies.forest import Effect, draw_forest
from affnorm_zoo.studies.sweep import Aim, SweepConfig, load_sweep
from affnorm_zoo.studies.sweep_report import attention_table, final_results, gap, sample_of, sweep_table

_HEAD = """\
# Recipes

`scripts/recipes.py` writes this page from the result files of single runs. `scripts/sweep.py` makes these runs.

## Verdict

{verdict}

![tuned methods]({methods})

| comparison | target | measured | verdict |
|---|---|---|---|
{aims}

What one change does to a method; nothing is tuned in these ablations:

![ablations]({ablations})

## How it was measured

- Within a table every method has the same data, epochs, augmentation and updates.
- Every method is tuned over the same hyperparameter settings: one run per setting, scored on validation images that are
  held out from the training set.
- The final runs have other seeds, train on all training images and are scored once on the test set.
- Accuracies are top-1 in per cent: the mean ± the standard deviation over runs. p is from Welch's test.
- A run that diverges counts as 0. No run is dropped.
"""
_SECTION = """
## {title}

{data}: {num_train_images} training and {num_images} test images, {epochs}, {updates} updates, in {arithmetic}.

{table}
{attention}{remark}To repeat it: `python scripts/sweep.py {file} data.path=PATH`. The result files are in
[{folder}]({folder}). {hardware}.
"""
_ATTENTION = """\
The factor of attention's mixed values and of its logits, median over attentions and runs, with its standard deviation
over its mean ([divergence.md](divergence.md#attention)):

{table}
"""
_ARITHMETIC = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # keyed by accelerate's mixed_precision
_KINDS = {1: "ahead", 0: "not significantly different", -1: "behind"}  # keyed by an estimate's sign
_COLOURS = {_KINDS[1]: "#3c8d53", _KINDS[0]: "#777777", _KINDS[-1]: "#d1495b"}
_BEGIN, _END = "<!-- results: scripts/recipes.py -->\n", "<!-- end of results -->\n"


def write_recipes(configs: Path, results: Path, page: Path, readme: Path) -> None:
    """Write the page of all sweeps that have results, its figures, and the README's table of those with ``in_readme``.

    Args:
        configs: folder of the sweeps' YAML files.
        results: folder with ``NAME/results/*.json`` for each ``configs/NAME.yaml``; gets the figures.
        page: the Markdown file to write.
        readme: the README; only what stands between its marks changes.
    """
    aims, sections, short = [], [], []
    effects: dict[bool, dict[str, list[Effect]]] = {True: {}, False: {}}  # keyed by whether the sweep is tuned
    for file in sorted(configs.glob("*.yaml"), key=lambda file: natural_key(file.stem)):
        sweep, folder = load_sweep(file), results / file.stem
        finals = {arm: final_results(sweep, arm, folder) for arm in sweep.arms}
        if not any(finals.values()):
            continue
        aims += [_judge(sweep, aim, finals) for aim in sweep.aims]
        effects[sweep.is_tuned][sweep.title] = _effects(sweep, finals)
        sections.append(_section(sweep, file, folder.relative_to(page.parent), folder, finals))
        short += _short_rows(sweep, finals) if sweep.in_readme else []
    figures = {"methods": results / "methods.png", "ablations": results / "ablations.png"}
    for figure, groups in zip(figures.values(), effects.values(), strict=True):
        draw_forest(groups, _COLOURS, figure, "difference in top-1, points, with 95 % interval")
    head = _HEAD.format(
        verdict=_verdict([word for _, word in aims], [effect for found in effects[True].values() for effect in found]),
        aims="\n".join(f"| {row} | {word} |" for row, word in aims),
        **{name: figure.relative_to(page.parent).as_posix() for name, figure in figures.items()},
    )
    write_text(page, head + "".join(sections))
    before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = ["| network and data | standard norm | ours | difference | runs |", "|---|---|---|---|---|", *short]
    write_text(readme, before + _BEGIN + "\n".join(table) + "\n" + _END + after)


def _section(sweep: SweepConfig, file: Path, link: Path, folder: Path, finals: dict[str, list[dict[str, Any]]]) -> str:
    runs = [run for results in finals.values() for run in results]
    facts = _facts(runs)
    environment = {name: _values(runs, name) for name in ("device", "cpu_count", "torch", "timm")}
    return _SECTION.format(
        title=sweep.title,
        data=facts["note"] or facts["data"],
        arithmetic=_ARITHMETIC[facts["precision"]],
        epochs=f"{facts['epochs']} epoch{'s' * (facts['epochs'] != 1)}",
        **{name: f"{facts[name]:,}" for name in ("num_train_images", "num_images", "updates")},
        table=sweep_table(sweep, folder),
        attention=_ATTENTION.format(table=attention) if (attention := attention_table(finals)) else "",
        remark=f"{sweep.remark.strip()}\n\n" if sweep.remark else "",
        file=file.as_posix(),
        folder=link.as_posix(),
        hardware="Hardware: {device}, {cpu_count} cores; torch {torch}, timm {timm}".format(**environment),
    )


def _values(runs: list[dict[str, Any]], name: str) -> str:
    """All values of one environment entry: the runs of a table may come from several machines."""
    return " and ".join(sorted({str(run["environment"][name]) for run in runs}, key=natural_key))


def _facts(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts that all finished runs of a table share.

    Raises:
        ValueError: the runs differ in one of them.
    """
    ended = [run for run in runs if not run["diverged"]]
    names = ("data", "note", "num_train_images", "num_images", "epochs", "updates", "precision")
    for name in names:
        found = {run[name] for run in ended}
        if len(found) > 1:
            raise ValueError(f"runs of one table differ in {name}: {found}")
    return {name: ended[0][name] for name in names}


def _judge(sweep: SweepConfig, aim: Aim, finals: dict[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """Target and measured value, as cells of a row, and the verdict."""
    label = f"{sweep.title}: {aim.arm} - {aim.over}"
    ours, theirs = finals[aim.arm], finals[aim.over]
    if not ours or not theirs:
        return f"{label} | ≥ {aim.points:+.1f} | not run", "open"
    found = 100 * (sample_of(ours).mean - sample_of(theirs).mean)
    made = min(len(ours), len(theirs))
    if made < sweep.seeds:
        verdict = f"open, {made} of {sweep.seeds} runs"
    else:
        verdict = "met" if found >= aim.points else f"missed by {aim.points - found:.2f} points"
    return f"{label} | ≥ {aim.points:+.1f} | {gap(sample_of(ours), sample_of(theirs))}", verdict


def _effects(sweep: SweepConfig, finals: dict[str, list[dict[str, Any]]]) -> list[Effect]:
    """Each method's difference to the baseline, where both have several runs."""
    base = sample_of(finals[sweep.baseline])
    others = {arm: sample_of(runs) for arm, runs in finals.items() if arm != sweep.baseline}
    found = {
        f"{arm} - {sweep.baseline}": difference(sample, base).in_points()
        for arm, sample in others.items()
        if min(len(sample.values), len(base.values)) > 1
    }
    return [Effect.of(label, estimate, _KINDS[estimate.sign]) for label, estimate in found.items()]


def _verdict(words: list[str], tuned: list[Effect]) -> str:
    met, missed = words.count("met"), sum(word.startswith("missed") for word in words)
    kinds = [effect.kind for effect in tuned if not _is_standard(effect.label)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _COLOURS)
    return (
        f"- Targets: {met} met, {missed} missed, {len(words) - met - missed} open.\n"
        f"- Divergence-free methods against the standard norm of their table (Welch, 5 %): {counts}."
    )


def _is_standard(label: str) -> bool:
    """Whether a method is another norm that the zoo has for comparison."""
    return any(
        label.startswith(f"{name} ") and not (spec.conv or spec.linear)
        for name, spec in ((name, get_normalizer(name)) for name in list_normalizers())
    )


def _short_rows(sweep: SweepConfig, finals: dict[str, list[dict[str, Any]]]) -> list[str]:
    ours, base = finals[sweep.in_readme], finals[sweep.baseline]
    if not ours or not base:
        return []
    cells = [f"`{arm}` {sample_of(runs)}" for arm, runs in ((sweep.baseline, base), (sweep.in_readme, ours))]
    runs = f"{len(base)} + {len(ours)}"
    return [f"| {sweep.title} | {cells[0]} | {cells[1]} | {gap(sample_of(ours), sample_of(base))} | {runs} |"]
