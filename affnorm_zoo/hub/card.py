import statistics
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.evaluation import TASKS
from affnorm_zoo.registry import get_normalizer, list_normalizers
from affnorm_zoo.runs.layout import CURVES_FILE, DIVERGENCE_FILE

HUB_TAG = "affnorm-zoo"  # marks the models that this package has published

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## Use

```python
import affnorm_zoo  # registers the architecture with timm
import timm

{% if load_as -%}
model = timm.create_model("{{ load_as }}", pretrained=True).eval()
{%- else -%}
model = timm.create_model("local-dir:PATH", pretrained=True).eval()
{%- endif %}
```

{% if probabilities -%}
An image may show any number of the classes: `model(x).sigmoid()` gives the probability of each.

{% endif -%}
transformers loads the same files, after the same import, by `AutoModelForImageClassification.from_pretrained`.

## Data and result

| | |
|---|---|
| data | {{ data }}{{ ' (' ~ note ~ ')' if note }}, {{ num_train_images }} training images |
| held-out images | {{ val.num_images }} |
| {{ score.name }} | {{ score.show(val[score.key]) }} (these weights, seed {{ seed }}) |
{% if scores | length > 1 -%}
| {{ score.name }} of {{ scores | length }} seeds, mean ± standard deviation | {{ spread }} |
{% else -%}
| {{ score.name }} of other seeds | not measured (n = 1) |
{% endif -%}
{% for metric in others -%}
| {{ metric.name }} | {{ metric.show(val[metric.key]) }} |
{% endfor -%}
| weights | {{ 'moving average of the updates' if averaged else 'of the last update' }} |
| parameters | {{ '{:,}'.format(parameters) }} |
| stored in | float32 |
| epochs, updates | {{ epochs }}, {{ updates }} |
| time | {{ '%.0f' % seconds }} s, {{ num_processes }} processes |
| hardware | {{ environment.device }}, {{ environment.cpu_count }} CPU cores |
| energy | not measured |
| versions | {% for name, number in versions.items() %}{{ name }} {{ number }}{{ ', ' if not loop.last }}{% endfor %} |

## Recipe

```yaml
{{ recipe }}
```

{% if curves in figures -%}
![loss, learning rate and accuracy over the updates]({{ curves }})

{% endif -%}
## Divergence
{% if divergence in figures %}
How unevenly the layers' activations follow a gradient step, during training:

![unevenness of the self factor and alignment of the optimiser's step over the updates]({{ divergence }})
{% else %}
Not measured in this run (`runtime.divergence_updates`).
{% endif %}
## Memory and speed
{% if benchmark %}
A training step beside the architecture's standard norm, on {{ benchmark.environment.device }}:

| normaliser | saved bytes | time |
|---|---|---|
{% for row in benchmark_rows -%}
| {{ row.normalizer }} | {{ '%.2f' % row.saved_ratio }} | {{ '%.2f' % row.ratio }} |
{% endfor %}
{%- else %}
Not measured for this model.
{% endif %}
## Intended use and limits

For research on normalisation, and as a starting point for fine-tuning on similar images. The accuracy is that of one
run on the held-out images named above; it says nothing about other images. The model knows only the classes of the
training images and repeats any bias in their choice and labels. No bias audit was done. Do not use it for decisions
about people.

## Citation

```bibtex
@article{bird2025affine,
  title = {The Affine Divergence: Aligning Activation Updates Beyond Normalisation},
  author = {Bird, G.},
  journal = {arXiv preprint arXiv:2512.22247},
  year = {2025}
}
```
"""


def write_card(
    path: Path,
    config: RunConfig,
    report: dict[str, Any],
    *,
    results: list[EvalResult],
    scores: list[float],
    benchmark: dict[str, Any],
    figures: set[str],
    load_as: str | None = None,
) -> None:
    """Write the model card of a run.

    Every number comes from its report and those of its other seeds, or from what ``scripts/benchmark.py measure`` has
    written into the run folder. The card names what was not measured.

    Args:
        path: of the card.
        config, report: the run's.
        results: the metrics for the card's metadata.
        scores: of the run, then of its other seeds.
        benchmark: may be empty.
        figures: names of those beside the card.
        load_as: timm's name of weights that come with the package or are on the Hub.
    """
    score, *others = TASKS[config.data.task].metrics
    data = ModelCardData(
        model_name=report["model"],
        library_name="timm",
        license="apache-2.0",
        tags=["image-classification", "timm", HUB_TAG],
        eval_results=results,
    )
    environment = report["environment"]
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=report["model"],
        summary=summary(report["model"]),
        versions={key: value for key, value in environment.items() if key not in ("device", "cpu_count")},
        recipe=config_to_yaml(config).strip(),
        note=config.data.note,
        averaged="ema" in report,
        figures=figures,
        curves=CURVES_FILE,
        divergence=DIVERGENCE_FILE,
        load_as=load_as,
        probabilities=config.data.task == "multilabel",
        score=score,
        others=others,
        scores=scores,
        spread=_spread(scores) if len(scores) > 1 else None,
        benchmark=benchmark,
        benchmark_rows=[row for row in benchmark.get("rows", []) if row["mode"] == "train" and not row["compiled"]],
        **{key: report[key] for key in report if key not in ("model", "class_names", "preprocessing")},
    )
    card.save(path)


def _spread(scores: list[float]) -> str:
    return f"{100 * statistics.mean(scores):.2f} ± {100 * statistics.stdev(scores):.2f} %"


def say_half(path: Path) -> None:
    """State in a card that its weights are stored in half precision, and what follows from that."""
    half = "float16; transformers computes in it unless it is given `dtype=torch.float32`, timm in float32"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("| stored in | float32 |", f"| stored in | {half} |"), encoding="utf-8")


def summary(name: str) -> str:
    """What a model of this name is, in a line of Markdown."""
    normalizers = [spec for spec in map(get_normalizer, list_normalizers()) if name.endswith("_" + spec.name)]
    if not normalizers:
        return f"`{name}` of timm."
    spec = max(normalizers, key=lambda spec: len(spec.name))
    paper = f" ([arXiv:{spec.paper}](https://arxiv.org/abs/{spec.paper}))" if spec.paper else ""
    return f"Normaliser: **{spec.name}**, {spec.summary}{paper}: `{spec.formula}`."
