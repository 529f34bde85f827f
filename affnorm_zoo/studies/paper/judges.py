"""What the runs of each experiment say of the paper's claims."""

from collections.abc import Callable
from math import log2

from affnorm_zoo.evidence.statistics import Estimate, fit_slope, holm
from affnorm_zoo.studies.paper.claims import (
    NO_CLAIM,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    all_or_some,
    gap,
    majority,
    say_gap,
    say_range,
    say_slope,
)
from affnorm_zoo.studies.paper.table import Row, convention_rows

IS_BEST = "is the best of all methods"
IS_AHEAD = "is ahead of every standard norm and of a net without one"
STANDARD = ("none", "batchnorm", "layernorm", "rmsnorm")


def judge(experiment: str, rows: list[Row]) -> list[Claim]:
    """The claims that an experiment's rows bear on."""
    return _JUDGES[experiment](rows)


def _fc(rows: list[Row]) -> list[Claim]:
    table = {(row.cell.net, row.cell.method): row for row in rows}
    methods = list(dict.fromkeys(row.cell.method for row in rows))
    nets = _complete_nets(table, methods)
    rivals = [method for method in methods if not method.startswith("affine_like")]
    claims = []
    for ours in [method for method in methods if method.startswith("affine_like")]:
        standard = [method for method in STANDARD if method in methods]
        for others, statement in ((rivals, IS_BEST), (standard, IS_AHEAD)):
            best = {net: max((table[net, m] for m in others), key=lambda row: row.accuracy.mean) for net in nets}
            leads = {net: gap(table[net, ours], best[net]) for net in nets}
            claims.append(_lead_claim(ours, leads, statement))
            claims += _growth_claims(ours, leads) if statement == IS_BEST else []

    small = [net for net in nets if net.endswith("-3x16")] or nets[:1]
    gaps = {net: gap(table[net, "norm_like"], table[net, "affine_like"]) for net in small}
    claims.append(
        Claim(
            "with 3 layers of 16, norm_like is ahead of affine_like",
            "; ".join(f"{net}: {say_gap(found)}" for net, found in gaps.items()),
            all_or_some([found.sign > 0 for found in gaps.values()]),
            {f"norm_like - affine_like, {net}": found for net, found in gaps.items()},
        )
    )
    if "norm_like_half" in methods:
        half = [gap(table[net, "norm_like_half"], table[net, "norm_like"]) for net in nets]
        claims.append(
            Claim(
                "norm_like at η/2, whose factor is then affine_like's, differs from norm_like at η",
                f"significantly better in {sum(found.sign > 0 for found in half)}, significantly worse in "
                f"{sum(found.sign < 0 for found in half)} of {len(nets)} nets, each tuned separately",
                NO_CLAIM,
                {},
            )
        )
    return claims


def _lead_claim(ours: str, leads: dict[str, Estimate], statement: str) -> Claim:
    """Whether ``ours`` leads the best of some other methods; p values are adjusted for the number of networks."""
    adjusted = holm([lead.p for lead in leads.values()])
    ahead = sum(lead.value > 0 for lead in leads.values())
    clearly = [lead.value > 0 for lead, p in zip(leads.values(), adjusted, strict=True) if p < 0.05]
    return Claim(
        f"{ours} {statement}",
        f"highest mean in {ahead} of {len(leads)} nets, significantly (Welch, Holm, 5 %) in {sum(clearly)}; "
        f"significantly behind the best other in {len(clearly) - sum(clearly)}; lead over it "
        f"{say_range([lead.value for lead in leads.values()])}",
        majority(sum(clearly), len(clearly) - sum(clearly), len(leads)),
        {
            f"{ours} - the best {'norm or none' if statement == IS_AHEAD else 'other'}, {net}": lead
            for net, lead in leads.items()
        },
    )


def _growth_claims(ours: str, leads: dict[str, Estimate]) -> list[Claim]:
    claims = []
    for axis, of, unit in (("width", _width, "doubling of the width"), ("depth", _depth, "layer")):
        if len({of(net) for net in leads}) < 2 or len(leads) < 3:
            continue
        slope = fit_slope([of(net) for net in leads], [lead.value for lead in leads.values()])
        claims.append(
            Claim(
                f"the lead of {ours} grows with {axis}",
                f"{say_slope(slope)} per {unit}, over {len(leads)} nets",
                REPRODUCED if slope.sign > 0 else NOT_REPRODUCED,
                {f"lead of {ours}, per {unit}": slope},
            )
        )
    return claims


_BATCH_SIGNS = {"norm_like": -1, "affine_like": -1, "layernorm": 0, "batchnorm": 1, "rmsnorm": 1, "none": 1}
_WORDS = {-1: "negative", 0: "flat", 1: "positive"}


def batch_slopes(rows: list[Row]) -> dict[tuple[str, str], Estimate]:
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


def _batch_size(rows: list[Row]) -> list[Claim]:
    slopes = batch_slopes(rows)
    claims = []
    for method in dict.fromkeys(row.cell.method for row in rows):
        wanted = _BATCH_SIGNS[method]
        found = {convention: slopes[method, convention] for convention in ("fixed", "scaled")}
        claims.append(
            Claim(
                f"{method}: accuracy against log batch size is {_WORDS[wanted]}",
                "; ".join(f"rate {name}: {say_slope(slope)}" for name, slope in found.items()) + " per doubling",
                all_or_some([slope.sign == wanted for slope in found.values()]),
                {f"{method}, rate {name}, per doubling": slope for name, slope in found.items()},
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
            gaps = {net: gap(table[net, ours], table[net, rival]) for net in nets}
            p = holm([found.p for found in gaps.values()])
            number = sum(value < 0.05 for value in p)
            claims.append(
                Claim(
                    f"{ours} is on a par with {rival}, without a large lead",
                    f"difference {say_range([found.value for found in gaps.values()])}; significant (Welch, Holm, 5 %) "
                    f"in {number} of {len(nets)} nets",
                    all_or_some([value >= 0.05 for value in p]),
                    {f"{ours} - {rival}, {net}": found for net, found in gaps.items()},
                )
            )
    return claims


def _scale_invariance(rows: list[Row]) -> list[Claim]:
    claims = []
    for net in dict.fromkeys(row.cell.net for row in rows):
        own = {float(row.cell.method.removeprefix("kappa=")): row for row in rows if row.cell.net == net}
        invariant, paper = own.pop(0.0), own[1.0]
        kappa, best = max(own.items(), key=lambda item: item[1].accuracy.mean)
        found, best_found = gap(paper, invariant), gap(best, invariant)
        claims.append(
            Claim(
                f"{net}: success does not need scale invariance (κ = 0 has it, affine_like, κ = 1, does not)",
                f"against κ = 0: {say_gap(found)} at κ = 1; {say_gap(best_found)} at κ = {kappa:g}, the best other",
                all_or_some([found.sign >= 0, best_found.sign >= 0]),
                {"κ = 1 - κ = 0": found, f"κ = {kappa:g} - κ = 0": best_found},
            )
        )
    return claims


def _alignment(rows: list[Row]) -> list[Claim]:
    table = {row.cell.method: row for row in rows}
    claims = []
    for option in [method for method in ("patchnorm_rms_gain", "patchnorm_rms_ws") if method in table]:
        found = gap(table[option], table["patchnorm_rms"])
        before, after = (table[name].layer_mean("cv") for name in ("patchnorm_rms", option))
        moves = [table[name].layer_mean("step", "cosine") for name in ("patchnorm_rms", option)]
        steps = f"cosine of a whole batch's step with the ideal {moves[0]:.2f} without, {moves[1]:.2f} with"
        what = "a gain per channel" if option.endswith("gain") else "weight standardisation with a gain"
        claims.append(
            Claim(
                f"{what}: its effect on PatchNorm (rms)",
                f"accuracy {say_gap(found)}; cv of the self factor {before:.2g} without, {after:.2g} with; {steps}",
                NO_CLAIM,
                {f"{option} - patchnorm_rms": found},
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
            NO_CLAIM,
            {},
        )
    ]


_JUDGES: dict[str, Callable[[list[Row]], list[Claim]]] = {
    "fc": _fc,
    "fc-adam": _fc,
    "batch-size": _batch_size,
    "conv": _conv,
    "scale-invariance": _scale_invariance,
    "alignment": _alignment,
    "natural-gradient": _natural,
}


def _complete_nets(table: dict[tuple[str, str], Row], methods: list[str]) -> list[str]:
    """The networks that have runs of every method."""
    return [net for net in dict.fromkeys(net for net, _ in table) if all((net, method) in table for method in methods)]


def _width(net: str) -> float:
    return log2(int(net.rpartition("x")[2]))


def _depth(net: str) -> float:
    return float(net.rpartition("-")[2].partition("x")[0])
