"""Write the page of the paper's experiments from the run files."""

from collections.abc import Iterator
from pathlib import Path

from affnorm_zoo.studies.forest import Effect, draw_forest
from affnorm_zoo.studies.paper.claims import MIXED, NO_CLAIM, NOT_REPRODUCED, REPRODUCED, VERDICTS, Claim
from affnorm_zoo.studies.paper.config import PaperConfig, load_paper_config
from affnorm_zoo.studies.paper.execute import PACKED, Results
from affnorm_zoo.studies.paper.experiments import EXPERIMENTS
from affnorm_zoo.studies.paper.figures import draw
from affnorm_zoo.studies.paper.judges import IS_AHEAD, IS_BEST, judge
from affnorm_zoo.studies.paper.table import Row, rows_of

_HEAD = """\
# The paper's experiments, repeated

`scripts/reproduce.py report` writes this page from the files of single runs. The paper is Bird 2025, *The Affine
Divergence* ([arXiv:2512.22247](https://arxiv.org/abs/2512.22247)), a workshop paper by a single author. Its experiments
use fully connected networks on CIFAR-10, by design; PatchNorm is in its appendix. It came without code.

## Verdict

{verdict}

{figure}The figure has one estimate per line, with its 95 % interval. Only the verdicts adjust for the number of
networks. In the table, an average is followed by its range over networks, and a slope by its 95 % interval.

| experiment | the paper says | measured | verdict |
|---|---|---|---|
{claims}

## How it was measured

These settings are ours ([normalisers.md](normalisers.md#the-paper) lists what else is):

- We use plain gradient descent at a constant learning rate, without momentum, weight decay or augmentation.
  `fc-adam` uses Adam.
- Weights start with the variance that keeps the second moment of a plain network.
- Every map has no parameters of its own. It stands in the hidden layers and at their input; the classifier is plain.
- The scale is the paper's unit scale, unless a name says `rms`. norm_like in RMS units is `rmsnorm`.
- With the same seed, every method gets the same weights and the same order of images.
- The learning rate is tuned for each network and method over the same grid: one run per rate, scored on validation
  images that are held out from the training set.
- Only the final runs see the test set. They have other seeds.
- Accuracies are means ± the standard deviation over runs, in per cent of the test set.
- A run that diverges counts as 0. No run is dropped.
- A claim on several networks is reproduced if most show it and none shows the opposite. It is not reproduced if none
  shows it, or if at least as many show the opposite. Otherwise it is mixed.
{data}

To repeat it (after an interruption, run the command again: finished runs are kept):

```bash
python scripts/reproduce.py all data.path=CIFAR10 data.val_split=test --output docs/results
python scripts/reproduce.py report --output docs/results
```
"""

_COLOURS = {REPRODUCED: "#3c8d53", MIXED: "#e58f1f", NOT_REPRODUCED: "#d1495b", NO_CLAIM: "#777777"}

_ABOUT = {
    "fc": "Fully connected networks. `norm_like_half` is norm_like with every learning rate of the grid halved. Its "
    "factor of c² + 1 = 2 thereby becomes affine_like's c² = 1.",
    "fc-adam": "Networks of `fc` trained with Adam, on the original pixels. `affine_like_rms` is affine_like with "
    "c = κ = √n in place of 1. In unit scale and with the usual initialisation, outputs have an RMS of about 1/√n.",
    "batch-size": "Accuracy against batch size at a fixed number of epochs. The learning rate is tuned at the first "
    "size of the config. For the other sizes it is kept, or scaled in proportion.",
    "conv": "Small convolutional networks. Layer norm and RMS norm normalise all of a sample's entries together.",
    "scale-invariance": "The map is c (Wx + κ b) / √(‖x‖² + κ²) with c = max(1, κ). κ = 0 is norm_like without its "
    "bias, which is invariant to the length of x; κ = 1 is affine_like; a large κ approaches the plain affine map. The "
    "columns are those of [divergence.md](divergence.md), as means over the layers before the classifier and over the "
    "seeds. By construction the factor of a single sample is the same for all samples at every κ. What differs is how "
    "samples move each other.",
    "alignment": "The effect of a gain per channel and of weight standardisation on the divergence of the trained "
    "network, measured on test images. The columns are as above. The self factor of the plain forms is uniform by "
    "construction.",
    "natural-gradient": "The cosine between the gradient and the natural gradient in the Fisher metric of some "
    "training images, over all parameters. The metric is damped by 1e-3 of its mean eigenvalue.",
}


def write_report(folder: Path, configs: Path, page: Path, quick: bool = False) -> None:
    """Write the page, its figure of all claims, and for each experiment with runs its figure and its packed runs."""
    claims: dict[str, list[Claim]] = {}
    sections, environments, datasets = [], {}, set()
    for name in EXPERIMENTS:
        results = Results(folder / name)
        config = load_paper_config(configs / f"{name}.yaml", quick)
        rows = rows_of(name, config, results)
        if not rows:
            claims[name] = []
            continue
        results.pack()
        figure = folder / name / "figure.png"
        draw(name, rows, figure)
        claims[name] = judge(name, rows)
        sections.append(_section(name, config, rows, page.parent, figure))
        for row in rows:
            for result in row.results:
                environments[str(result["environment"])] = result["environment"]
                datasets.add(result["data"])
    text = _HEAD.format(
        verdict=_verdict(claims),
        figure=_draw_claims(claims, folder / "claims.png", page.parent),
        data=_describe(environments, datasets),
        claims="\n".join(_claim_rows(claims)),
    )
    page.write_text("\n".join([text, *sections]), encoding="utf-8")


def _verdict(by_experiment: dict[str, list[Claim]]) -> str:
    claims = [claim for found in by_experiment.values() for claim in found]
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    if not sum(counts.values()):
        return "No claim has been tested yet."
    return (
        f"Of {sum(counts.values())} rows on claims of the paper, {counts[REPRODUCED]} are reproduced, "
        f"{counts[MIXED]} mixed and {counts[NOT_REPRODUCED]} not reproduced. These are small budgets on a part of the "
        "paper's grid. Other budgets or other parts may show what these do not." + _say_readings(by_experiment)
    )


def _say_readings(by_experiment: dict[str, list[Claim]]) -> str:
    """Under which of the readings the paper's main claims hold."""
    lines = []
    for statement in (IS_BEST, IS_AHEAD):
        found = [(name, c) for name, claims in by_experiment.items() for c in claims if c.statement.endswith(statement)]
        held = [f"{c.statement.split()[0]} in {name}" for name, c in found if c.verdict == REPRODUCED]
        lines.append(
            f"\n- affine_like {statement}: reproduced under {len(held)} of {len(found)} readings (experiments "
            f"and scales){': ' if held else ''}{', '.join(held)}."
        )
    return "\n" + "".join(lines)


def _draw_claims(claims: dict[str, list[Claim]], target: Path, root: Path) -> str:
    """Draw what the verdicts rest on; the Markdown that shows it, empty if there is nothing to draw."""
    groups = {
        name: [
            Effect.of(label, estimate, claim.verdict) for claim in found for label, estimate in claim.effects.items()
        ]
        for name, found in claims.items()
    }  # fmt: skip
    if not any(groups.values()):
        return ""
    draw_forest(groups, _COLOURS, target, "points of accuracy, with 95 % interval; the colour is the claim's verdict")
    return f"![all claims]({target.relative_to(root)})\n\n"


def _claim_rows(claims: dict[str, list[Claim]]) -> Iterator[str]:
    for name, found in claims.items():
        if not found:
            yield f"| {name} | | not run | |"
        for claim in found:
            yield f"| {name} | {claim.statement} | {claim.measured} | {claim.verdict} |"


def _describe(environments: dict[str, dict], datasets: set[str]) -> str:
    lines = [f"- Data: {', '.join(sorted(datasets)) or 'none'}."]
    if "cifar10" in datasets:
        lines[0] += (
            " The images of `cifar10` are re-encoded as JPEG, which is lossy: the accuracies are not those of the "
            "original files."
        )
    for e in environments.values():
        lines.append(f"- Machine and versions: {', '.join(f'{key} {value}' for key, value in e.items())}.")
    return "\n".join([*lines, "- Every run has one thread."])


def _section(name: str, config: PaperConfig, rows: list[Row], root: Path, figure: Path) -> str:
    counts = {len(row.results) for row in rows}
    rates = ", ".join(f"{rate:g}" for rate in config.rates)
    expected = len(list(EXPERIMENTS[name](config)))
    lines = [
        f"## {name}\n",
        f"{_ABOUT[name]}\n",
        f"{len(rows)} of {expected} cells run, {' or '.join(map(str, sorted(counts)))} seeds each; {config.epochs} "
        f"epochs of at most {config.num_train:,} training images of {_names(rows)}; learning rates {rates}. The runs "
        f"are in `{(figure.parent / PACKED).relative_to(root)}`.\n",
        f"![{name}]({figure.relative_to(root)})\n",
        *_TABLES.get(name, _plain_table)(rows),
    ]
    diverged = sum(result["diverged"] for row in rows for result in row.results)
    edge = sum(row.at_edge for row in rows)
    lines += [
        f"\n- Final runs that diverged: {diverged}.",
        f"- Cells whose tuned rate lies at the edge of the grid (*): {edge}.\n",
    ]
    return "\n".join(lines)


def _names(rows: list[Row]) -> str:
    return ", ".join(sorted({result["data"] for row in rows for result in row.results}))


def _plain_table(rows: list[Row]) -> list[str]:
    """One line per network, one column per method."""
    methods = list(dict.fromkeys(row.cell.method for row in rows))
    table = {(row.cell.net, row.cell.method): row for row in rows}
    lines = [f"| net | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for net in dict.fromkeys(row.cell.net for row in rows):
        cells = [_cell(table[net, method]) if (net, method) in table else "not run" for method in methods]
        lines.append(f"| {net} | {' | '.join(cells)} |")
    return lines


def _batch_table(rows: list[Row]) -> list[str]:
    sizes = sorted({row.cell.batch_size for row in rows})
    lines = [f"| method | rate | {' | '.join(map(str, sizes))} |", "|---" * (len(sizes) + 2) + "|"]
    for method in dict.fromkeys(row.cell.method for row in rows):
        for kind, is_fixed in (("kept", True), ("scaled", False)):
            own = {r.cell.batch_size: r for r in rows if r.cell.method == method and r.cell.rate_factor == 1.0}
            if not is_fixed:
                own |= {r.cell.batch_size: r for r in rows if r.cell.method == method and r.cell.rate_factor != 1.0}
            cells = [_cell(own[size]) if size in own else "not run" for size in sizes]
            lines.append(f"| {method} | {kind} | {' | '.join(cells)} |")
    return lines


def _alignment_table(rows: list[Row]) -> list[str]:
    lines = [
        "| method | accuracy (rate) | cv of the self factor | cosine(Δz, -g) | between samples | step | all moving |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [row.layer_mean("cv")]
        numbers += [row.layer_mean(quantity, "mean") for quantity in ("cosine", "interference")]
        numbers += [row.layer_mean("step", f"{prefix}cosine") for prefix in ("", "moving_")]
        lines.append(f"| {row.cell.method} | {_cell(row)} | {' | '.join(f'{n:.2g}' for n in numbers)} |")
    return lines


def _natural_table(rows: list[Row]) -> list[str]:
    lines = ["| method | accuracy (rate) | cosine, untrained | cosine, trained |", "|---|---|---|---|"]
    for row in rows:
        numbers = [row.mean_of("natural_cosine", state) for state in ("untrained", "trained")]
        lines.append(f"| {row.cell.method} | {_cell(row)} | {' | '.join(f'{n:.3f}' for n in numbers)} |")
    return lines


_TABLES = {
    "batch-size": _batch_table,
    "scale-invariance": _alignment_table,
    "alignment": _alignment_table,
    "natural-gradient": _natural_table,
}


def _cell(row: Row) -> str:
    return f"{row.accuracy} ({row.rate:g}{'*' if row.at_edge else ''})"
