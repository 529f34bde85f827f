"""The paper's claims, what the runs measured, and a verdict for each."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

from affnorm_zoo.evidence.statistics import Sample, Slope, fit_slope, holm, welch
from affnorm_zoo.studies.paper.table import Row


@dataclass(frozen=True)
class Claim:
    """One row of the page. ``verdict`` is "reproduced", "not reproduced" or "mixed"; empty where nothing is claimed."""

    statement: str
    measured: str
    verdict: str


def judge(experiment: str, rows: list[Row]) -> list[Claim]:
    """The claims that an experiment's rows bear on."""
    return _JUDGES[experiment](rows)


def _fc(rows: list[Row]) -> list[Claim]:
    table = {(row.cell.net, row.cell.method): row for row in rows}
    methods = list(dict.fromkeys(row.cell.method for row in rows))
    nets = _complete_nets(table, methods)
    rivals = [method for method in methods if method != "affine_like"]
    lead, p_values = {}, []
    for net in nets:
        ours = table[net, "affine_like"].accuracy
        best = max((table[net, m].accuracy for m in rivals), key=lambda sample: sample.mean)
        lead[net] = 100 * (ours.mean - best.mean)
        p_values.append(welch(ours, best))
    adjusted = holm(p_values)
    ahead = [net for net in nets if lead[net] > 0]
    clearly = [net for net, p in zip(nets, adjusted, strict=True) if p < 0.05 and lead[net] > 0]
    behind = [net for net, p in zip(nets, adjusted, strict=True) if p < 0.05 and lead[net] < 0]
    claims = [
        Claim(
            "affine_like is the best of all methods",
            f"highest mean in {len(ahead)} of {len(nets)} nets, significantly (Welch, Holm, 5 %) in {len(clearly)}; "
            f"significantly behind the best other in {len(behind)}; lead over it {_points(list(lead.values()))}",
            _verdict(len(clearly), len(behind), len(nets)),
        )
    ]
    for axis, of in (("width", _width), ("depth", _depth)):
        if len({of(net) for net in nets}) < 2 or len(nets) < 3:
            continue
        slope = fit_slope([of(net) for net in nets], [lead[net] for net in nets])
        unit = "doubling of the width" if axis == "width" else "layer"
        claims.append(
            Claim(
                f"its lead grows with {axis}",
                f"{_slope(slope, 'points')} per {unit}, over {len(nets)} nets",
                {1: "reproduced", 0: "not reproduced", -1: "not reproduced"}[slope.sign],
            )
        )
    small = [net for net in nets if net.endswith("-3x16")] or nets[:1]
    gaps = {net: _difference(table[net, "norm_like"], table[net, "affine_like"]) for net in small}
    claims.append(
        Claim(
            "with 3 layers of 16, norm_like is ahead of affine_like",
            "; ".join(f"{net}: {text}" for net, (text, _) in gaps.items()),
            _all_or_some([sign > 0 for _, sign in gaps.values()]),
        )
    )
    if "norm_like_half" not in methods:
        return claims
    half = [_difference(table[net, "norm_like_half"], table[net, "norm_like"]) for net in nets]
    claims.append(
        Claim(
            "norm_like at η/2, whose factor is then affine_like's, differs from norm_like at η",
            f"significantly better in {sum(s > 0 for _, s in half)}, significantly worse in "
            f"{sum(s < 0 for _, s in half)} of {len(nets)} nets, each tuned separately",
            "",
        )
    )
    return claims


_BATCH_SIGNS = {"norm_like": -1, "affine_like": -1, "layernorm": 0, "batchnorm": 1, "rmsnorm": 1, "none": 1}
_WORDS = {-1: "negative", 0: "flat", 1: "positive"}


def batch_slopes(rows: list[Row]) -> dict[tuple[str, str], Slope]:
    """(method, convention) -> slope of the accuracy, in points per doubling of the batch size."""
    slopes = {}
    for method in dict.fromkeys(row.cell.method for row in rows):
        for convention in ("fixed", "scaled"):
            points = [
                (log2(row.cell.batch_size), 100 * value)
                for row in convention_rows(rows, method, convention)
                for value in row.accuracy.values
            ]
            slopes[method, convention] = fit_slope(*zip(*points, strict=True))
    return slopes


def convention_rows(rows: list[Row], method: str, convention: str) -> list[Row]:
    """Rows at the tuned rate, or at a rate scaled with the batch size; both contain the size of the tuning."""
    own = [row for row in rows if row.cell.method == method]
    fixed = [row for row in own if row.cell.rate_factor == 1.0]
    if convention == "fixed":
        return sorted(fixed, key=lambda row: row.cell.batch_size)
    scaled = [row for row in own if row.cell.rate_factor != 1.0]
    sizes = {row.cell.batch_size for row in scaled}
    return sorted(
        scaled + [row for row in fixed if row.cell.batch_size not in sizes], key=lambda row: row.cell.batch_size
    )


def _batch_size(rows: list[Row]) -> list[Claim]:
    slopes = batch_slopes(rows)
    claims = []
    for method in dict.fromkeys(row.cell.method for row in rows):
        wanted = _BATCH_SIGNS[method]
        found = {convention: slopes[method, convention] for convention in ("fixed", "scaled")}
        claims.append(
            Claim(
                f"{method}: accuracy against log batch size is {_WORDS[wanted]}",
                "; ".join(f"rate {name}: {_slope(slope, 'points')}" for name, slope in found.items()) + " per doubling",
                _all_or_some([slope.sign == wanted for slope in found.values()]),
            )
        )
    return claims


def _conv(rows: list[Row]) -> list[Claim]:
    table = {(row.cell.net, row.cell.method): row for row in rows}
    methods = list(dict.fromkeys(row.cell.method for row in rows))
    nets = _complete_nets(table, methods)
    claims = []
    for ours in [method for method in methods if method.startswith("patchnorm")]:
        for rival in [method for method in methods if method in ("layernorm", "rmsnorm")]:
            gaps = [table[net, ours].accuracy.mean - table[net, rival].accuracy.mean for net in nets]
            p = holm([welch(table[net, ours].accuracy, table[net, rival].accuracy) for net in nets])
            number = sum(value < 0.05 for value in p)
            claims.append(
                Claim(
                    f"{ours} is on a par with {rival}, without a large lead",
                    f"difference {_points([100 * gap for gap in gaps])}; significant (Welch, Holm, 5 %) in {number} of "
                    f"{len(nets)} nets",
                    _all_or_some([value >= 0.05 for value in p]),
                )
            )
    return claims


def _scale_invariance(rows: list[Row]) -> list[Claim]:
    claims = []
    for net in dict.fromkeys(row.cell.net for row in rows):
        own = {float(row.cell.method.removeprefix("kappa=")): row for row in rows if row.cell.net == net}
        invariant, paper = own.pop(0.0), own[1.0]
        kappa, best = max(own.items(), key=lambda item: item[1].accuracy.mean)
        (text, sign), (best_text, best_sign) = _difference(paper, invariant), _difference(best, invariant)
        claims.append(
            Claim(
                f"{net}: success does not need scale invariance (κ = 0 has it, affine_like, κ = 1, does not)",
                f"against κ = 0: {text} at κ = 1; {best_text} at κ = {kappa:g}, the best other",
                _all_or_some([sign >= 0, best_sign >= 0]),
            )
        )
    return claims


def _alignment(rows: list[Row]) -> list[Claim]:
    table = {row.cell.method: row for row in rows}
    claims = []
    for option in [method for method in ("patchnorm_rms_gain", "patchnorm_rms_ws") if method in table]:
        text, _ = _difference(table[option], table["patchnorm_rms"])
        before, after = (table[name].layer_mean("cv") for name in ("patchnorm_rms", option))
        moves = [table[name].layer_mean("step", "cosine") for name in ("patchnorm_rms", option)]
        steps = f"cosine of a whole batch's step with the ideal {moves[0]:.2f} without, {moves[1]:.2f} with"
        what = "a gain per channel" if option.endswith("gain") else "weight standardisation with a gain"
        claims.append(
            Claim(
                f"{what}: its effect on PatchNorm (rms)",
                f"accuracy {text}; cv of the self factor {before:.2g} without, {after:.2g} with; {steps}",
                "",
            )
        )
    return claims


def _natural(rows: list[Row]) -> list[Claim]:
    parts = [
        f"{row.cell.method} {row.mean_of('natural_cosine', 'untrained'):.2f} → "
        f"{row.mean_of('natural_cosine', 'trained'):.2f}"
        for row in rows
    ]
    return [
        Claim(
            "a divergence-free map's gradient step is closer to the natural-gradient step (discussed, not measured)",
            "cosine in the Fisher metric, untrained → trained: " + ", ".join(parts),
            "",
        )
    ]


_JUDGES: dict[str, Callable[[list[Row]], list[Claim]]] = {
    "fc": _fc,
    "batch-size": _batch_size,
    "conv": _conv,
    "scale-invariance": _scale_invariance,
    "alignment": _alignment,
    "natural-gradient": _natural,
}


def _complete_nets(table: dict[tuple[str, str], Row], methods: list[str]) -> list[str]:
    """The networks that have runs of every method."""
    return [net for net in dict.fromkeys(net for net, _ in table) if all((net, method) in table for method in methods)]


def _difference(a: Row, b: Row) -> tuple[str, int]:
    """Text of a - b in points with its p value, and its sign if significant at 5 %, otherwise 0."""
    p = welch(a.accuracy, b.accuracy)
    gap = a.accuracy.mean - b.accuracy.mean
    sign = 0 if p >= 0.05 else (1 if gap > 0 else -1)
    return f"{100 * gap:+.1f} points (p = {p:.2g})", sign


def _verdict(for_it: int, against: int, total: int) -> str:
    """Reproduced: most networks show it, none the opposite. Not reproduced: none show it, or as many the opposite."""
    if for_it > total / 2 and not against:
        return "reproduced"
    return "not reproduced" if against >= for_it or not for_it else "mixed"


def _all_or_some(held: list[bool]) -> str:
    return "reproduced" if all(held) else "mixed" if any(held) else "not reproduced"


def _points(values: list[float]) -> str:
    sample = Sample(tuple(values))
    return f"{sample.mean:+.1f} points on average ({min(values):+.1f} to {max(values):+.1f})"


def _slope(slope: Slope, unit: str) -> str:
    return f"{slope.value:+.2f} {unit} ({slope.low:+.2f} to {slope.high:+.2f}, p = {slope.p:.2g})"


def _width(net: str) -> float:
    return log2(int(net.rpartition("x")[2]))


def _depth(net: str) -> float:
    return float(net.rpartition("-")[2].partition("x")[0])
