from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.registry import get_normalizer, list_normalizers

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

model = timm.create_model("local-dir:PATH", pretrained=True).eval()  # or "hf-hub:ORG/NAME" once published
```

## Data and result

| | |
|---|---|
| data | {{ data }}, {{ num_train_images }} training images |
| held-out images | {{ val.num_images }} |
| top-1 | {{ '%.2f' % (100 * val.top1) }} % (one run, seed {{ seed }}) |
| top-5 | {{ '%.2f' % (100 * val.top5) }} % |
| parameters | {{ '{:,}'.format(parameters) }} |
| epochs, updates | {{ epochs }}, {{ updates }} |
| time | {{ '%.0f' % seconds }} s on {{ environment.device }}, {{ environment.cpu_count }} CPU cores |
| versions | {% for name, number in versions.items() %}{{ name }} {{ number }}{{ ', ' if not loop.last }}{% endfor %} |

## Recipe

```yaml
{{ recipe }}
```

## Limits

The accuracy is that of one run on the held-out images named above; it says nothing about other images.

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


def write_card(path: Path, config: RunConfig, report: dict[str, Any]) -> None:
    """Write the model card of a run; every number comes from its report."""
    result = EvalResult(
        task_type="image-classification",
        dataset_type=report["data"],
        dataset_name=report["data"],
        metric_type="accuracy",
        metric_value=report["val"]["top1"],
        metric_name="top-1 accuracy",
    )
    data = ModelCardData(
        model_name=report["model"],
        library_name="timm",
        license="apache-2.0",
        tags=["image-classification", "timm", "affnorm-zoo"],
        eval_results=[result],
    )
    environment = report["environment"]
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=report["model"],
        summary=_summary(report["model"]),
        versions={key: value for key, value in environment.items() if key not in ("device", "cpu_count")},
        recipe=config_to_yaml(config).strip(),
        **{key: report[key] for key in report if key not in ("model", "class_names", "preprocessing")},
    )
    card.save(path)


def _summary(name: str) -> str:
    normalizers = [spec for spec in map(get_normalizer, list_normalizers()) if name.endswith("_" + spec.name)]
    if not normalizers:
        return f"`{name}` of timm."
    spec = max(normalizers, key=lambda spec: len(spec.name))
    paper = f" ([arXiv:{spec.paper}](https://arxiv.org/abs/{spec.paper}))" if spec.paper else ""
    return f"Normaliser: **{spec.name}**, {spec.summary}{paper}: `{spec.formula}`."
