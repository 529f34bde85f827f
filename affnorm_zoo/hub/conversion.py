import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from timm.models import save_for_hf

from affnorm_zoo.conversion import Conversion, LayerReport
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub.card import HUB_TAG, summary
from affnorm_zoo.hub.export import check_reload, suit_other_readers

REPORT_FILE = "conversion.json"

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}

Converted from `{{ source }}` by `affnorm_zoo.convert`, layer by layer, without training.

## Use

```python
import affnorm_zoo  # registers the architecture with timm
import timm

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
```

## What the conversion keeps

| | |
|---|---|
| scale | `{{ scale }}` |
| images | {{ num_images }} of {{ data }} to fit the layers, {{ num_held_out }} others to measure |
{% if logit_error is not none -%}
| error of the outputs | {{ '%.2g' % logit_error }} of their RMS |
{% endif -%}
{% if agreement is not none -%}
| same class as the source | {{ '%.1f' % (100 * agreement) }} % of the measuring images |
{% endif -%}
| top-1 | not measured; `affnorm-zoo evaluate` measures both |
| hardware | {{ environment.device }} |
| versions | {% for name, number in versions.items() %}{{ name }} {{ number }}{{ ', ' if not loop.last }}{% endfor %} |

{% for note in notes %}- {{ note }}
{% endfor %}
{% if rows -%}
The normaliser's share is 1 / (1 + κ² / E‖x_p‖²): near 0 a layer is almost an affine map and normalises little.
Errors are relative to the RMS of the folded layer's outputs.

| layer | fit | κ | normaliser's share | error |
|---|---|---|---|---|
{% for row in rows -%}
{{ row }}
{% endfor %}
{%- endif %}
"""


def export_conversion(
    conversion: Conversion, folder: Path, source: str, facts: dict[str, Any], class_names: tuple[str, ...] | None = None
) -> None:
    """Write a conversion as a folder that ``timm.create_model("local-dir:...", pretrained=True)`` loads.

    It holds ``model.safetensors``, ``config.json``, the model card ``README.md`` and the report ``conversion.json``. It
    is built under a temporary name, loaded back and compared with the twin, then renamed.

    Args:
        conversion: to write.
        folder: must not exist.
        source: the name of the network that was converted.
        facts: for the card and the report: ``scale``, ``data``, ``seed`` of the chosen images, ``environment``.
        class_names: of the outputs, if known.

    Raises:
        UsageError: the folder exists, or timm has no name under which it could build the twin.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists: choose another --output, or remove it")
    if not conversion.name:
        raise UsageError(
            f"the zoo has no model with the layers of {source} after the conversion, so that timm could not load a "
            "folder: convert it in Python, by affnorm_zoo.convert, and keep the model"
        )
    report = {key: value for key, value in vars(conversion).items() if key not in ("model", "layers")}
    report = {"source": source, **facts, **report, "layers": [asdict(row) for row in conversion.layers]}
    temporary = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    labels = {} if class_names is None else {"label_names": list(class_names)}
    model: Any = conversion.model
    save_for_hf(model, temporary, model_config=labels, safe_serialization=True)
    suit_other_readers(temporary / "config.json")
    (temporary / REPORT_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")
    tags = ["image-classification", "timm", HUB_TAG]
    data = ModelCardData(
        model_name=conversion.name, library_name="timm", tags=tags, license=model.pretrained_cfg.get("license")
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=conversion.name,
        summary=summary(conversion.name),
        rows=[_row(row) for row in conversion.layers],
        versions={key: value for key, value in facts["environment"].items() if key not in ("device", "cpu_count")},
        **report,
    )
    card.save(temporary / "README.md")
    check_reload(model, temporary, model.pretrained_cfg["input_size"])
    temporary.rename(folder)


def _row(row: LayerReport) -> str:
    return f"| {row.name} | {row.fit} | {row.kappa:.3g} | {row.share:.3f} | {row.measured_error:.3f} |"
