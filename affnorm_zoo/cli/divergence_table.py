"""The results of ``affnorm-zoo divergence`` as text."""

from typing import Any

_HEAD = (
    f"{'layer':<34}{'kind':<18}{'self factor':>11}{'cv':>9}{'p99/p1':>9}{'cross':>12}{'cosine':>8}{'samples':>8}"
    f"{'step':>8}{'moving':>8}"
)
_ATTENTION_HEAD = f"\n{'attention':<34}{'of its':<18}{'factor':>11}{'cv':>9}{'p99/p1':>9}"


def divergence_table(name: str, result: dict[str, Any]) -> str:
    """One line per layer, and below them two per attention.

    Args:
        name: of the model.
        result: ``layers``, ``attention`` and ``seconds`` of a :class:`affnorm_zoo.diagnostics.DivergenceMeter`, and
            ``steps`` if there were any.
    """
    steps = {row["layer"]: row for row in result.get("steps", [])}
    lines = [f"\n{name}, {result['seconds']:.1f} s", _HEAD]
    for row in result["layers"]:
        step = steps.get(row["layer"])
        line = (
            _start(row, row["self_factor"])
            + f"{row['cross_factor']['mean']:>12.4g}{row['cosine']['mean']:>8.3f}{row['interference']['mean']:>8.3f}"
        )
        lines.append(line + (f"{step['cosine']:>8.3f}{step['moving_cosine']:>8.3f}" if step else ""))
    if result["attention"]:
        lines += [_ATTENTION_HEAD, *(_start(row, row["factor"]) for row in result["attention"])]
    return "\n".join(lines)


def _start(row: dict[str, Any], factor: dict[str, Any]) -> str:
    ratio = "inf" if row["p99_over_p1"] is None else f"{row['p99_over_p1']:.3g}"
    return f"{row['layer']:<34}{row['kind']:<18}{factor['mean']:>11.4g}{row['cv'] or 0:>9.2g}{ratio:>9}"
