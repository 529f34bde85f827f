"""``pytest -m clients`` runs other people's tools on the package, and writes its rows of docs/compatibility.md."""

from pathlib import Path

import pytest
from clients.rows import version_of

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"
_HEAD = """\
# Compatibility

Written by `pytest -m clients`: each row is a test in `tests/clients/` with its latest outcome. `pip install
affnorm-zoo[clients]` installs the packages. torch's and timm's own tools are tested with the package itself.

Our layers are not subclasses of `nn.Linear` and `nn.Conv2d`. A tool that replaces these classes by a layer of its own
would drop the quotient. Such tools skip our layers or refuse them.

| package | version | what | outcome |
|---|---|---|---|
"""
_FOOT = """
## What to know

- **LoRA**: name weights, not modules: `LoraConfig(target_modules=[], target_parameters=["attn.qkv.weight"])`. An
  adapter beside a layer would learn outside the quotient, and merging would move it inside.
- **Weight-only quantisation**: pass torchao's `quantize_` a filter that names the layers,
  `filter_fn=lambda module, _: isinstance(module, affnorm_zoo.layers.BoundLayer)`. Activations inside the quotient must
  not be quantised: the length of the input would be rounded too.
- **Guided backpropagation and other tools that replace or hook activations**: build the model with `absorb=False`,
  or call `bind(model, absorb=False)`. Every ReLU and GELU is then a module. DeepLift's sum rule does not hold: it
  assumes that every module except an activation is linear, and the quotient is not.
- **Dilating a backbone**: use timm's `timm.create_model(..., output_stride=8)`, or set `stride`, `dilation` and
  `padding` of the layers. A tool that looks for `nn.Conv2d` skips ours. The exception is
  `replace_strides_with_dilation` of segmentation-models-pytorch, which our layers support.
- **Pruning**: `torch.nn.utils.prune` and parametrizations work in training. They compute weights from other tensors:
  `reparameterize`, `damp` and `init_bound_weights` raise an error until they are removed. Give torch-pruning
  `affnorm_zoo.pruning.pruners()`, and wrap its importance in `affnorm_zoo.pruning.weighing(...)`: alone it leaves our
  layers out. For a vision transformer also pass
  `forward_fn=lambda model, x: model.head(model.forward_features(x))`: torch-pruning recognises tokens by an `nn.Linear`
  with a three-dimensional output, and our layers are not of that class.
- **nncf on the torch model**: pass `disable_bias_correction=True`. Otherwise nncf stops with "Could not find a constant
  node": it looks for a constant bias, and ours is multiplied by κ. Vision transformers also need
  `model_type=nncf.ModelType.TRANSFORMER`: without it outputs are off by 76 % (`normlike`) to 101 % (`affinelike`), and
  nncf does not say so. With it they are off by 2 %.
- **AutoBackbone with batch norm**: transformers 5.24 resets the running statistics of every timm network that it has
  just loaded. Load the weights into `backbone._backbone` again. Ours have no such statistics.
- **transformers on other folders**: timm 1.0.31's `save_for_hf` and `push_to_hf_hub` repeat the number of classes in
  `config.json`, for timm's own networks too. Delete `num_classes` below `model_args`; our exports have none.
  transformers' `pipeline` converts every picture to RGB, so a network with one input channel fails there.
- **timm's scripts** do not know our models by themselves: `python -m affnorm_zoo.run SCRIPT ...` registers them first.
  `onnx_export.py` works as it is. `bulk_runner.py` starts a process per model, which must register them too: give it
  `affnorm_zoo/run.py` as its script and timm's as the first argument, `python -m affnorm_zoo.run bulk_runner.py
  --model-list 'resnet*_patchnorm' --sort-key top1 .../affnorm_zoo/run.py validate.py DATA`.
"""
_outcomes: dict[tuple[str, str], list[tuple[str, str]]] = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("clients"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # theirs are not ours to mend


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marker = item.get_closest_marker("clients")
    if marker and (report.when == "call" or report.skipped or report.failed):
        row = marker.kwargs["package"], marker.kwargs["what"]
        _outcomes.setdefault(row, []).append((report.outcome, marker.kwargs["outcome"]))


def pytest_sessionfinish(session):
    """Write the rows of this run; a run of some tests leaves the other rows of the page as they stand."""
    options = session.config.option
    if options.markexpr != "clients" or options.collectonly:
        return
    is_whole = {item.path for item in session.items} == set(Path(__file__).parent.glob("test_*.py"))
    rows = {} if is_whole and not options.keyword else dict(_rows_of(PAGE.read_text(encoding="utf-8")))
    rows |= {row: _as_line(*row, results) for row, results in _outcomes.items()}
    lines = [line for _, line in sorted(rows.items())]
    PAGE.write_text(_HEAD + "".join(lines) + _FOOT, encoding="utf-8")


def _as_line(package, what, results):
    found = {outcome for outcome, _ in results}
    said = "**fails**" if "failed" in found else "not installed" if "skipped" in found else results[0][1]
    return f"| {package} | {version_of(package) or ''} | {what} | {said} |\n"


def _rows_of(page):
    """The rows of a page as they stand: package and what is done with it, and the line."""
    for line in page.splitlines(keepends=True):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[1] not in ("package", "---"):
            yield (cells[1], cells[3]), line
