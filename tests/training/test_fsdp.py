import json

import pytest
import timm
import torch
from forks import run_forked
from runs import ROOT, SMALL_VIT, assert_same_run, metrics, resumed_at, tiny, train_here
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from affnorm_zoo.hub import export_run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_shards_train_save_and_resume_as_a_whole_model_does(optimizer, tmp_path):
    script = ROOT / "tests/support/train_fsdp.py"
    run_forked(script, tmp_path, optimizer, processes=2, ACCELERATE_USE_CPU="true")
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "final.safetensors",
        "final_ema.safetensors", "metrics.json",
    }  # fmt: skip
    torch.manual_seed(0)
    model = timm.create_model("vit_nano_patch4_32_affinelike", img_size=8, embed_dim=24, depth=2, num_classes=4)
    ema, steps = ModelEmaV3(model, decay=0.5), create_optimizer_v2(model, opt=optimizer, lr=1e-3)
    for update in range(5):
        for rank in range(2):
            generator = torch.Generator().manual_seed(100 * update + rank)
            x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(4, (4,), generator=generator)
            (torch.nn.functional.cross_entropy(model(x), y) / 2).backward()
        steps.step()
        steps.zero_grad()
        ema.update(model, step=update + 1)
    # sums in another order, in muon through bfloat16; five steps of 1e-3 each could move an entry by 5e-3
    for expected, found in ((model, "final"), (ema.module, "final_ema")):
        for name, tensor in load_file(tmp_path / f"{found}.safetensors").items():
            torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-3, atol=5e-4)
    model.load_state_dict(load_file(tmp_path / "final.safetensors"))
    found = json.loads((tmp_path / "metrics.json").read_text())
    images, labels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 0])
    logits = model.eval()(images)
    assert found["num_images"] == 5
    assert found["top1"] == (logits.argmax(1) == labels).double().mean()
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


CLIPPED = ("optim.clip_grad=1.0", "optim.bias_over_kappa=true")


def launch(folder, *overrides):
    run_forked(
        ROOT / "tests/support/run_fsdp.py", folder, *tiny(*SMALL_VIT), "model.ema_decay=0.9",
        *CLIPPED, *overrides, processes=2, ACCELERATE_USE_CPU="true",
    )  # fmt: skip


@pytest.mark.slow
def test_a_sharded_run_clips_as_a_whole_one_resumes_to_the_bit_and_exports(tmp_path):
    launch(tmp_path / "whole")
    train_here(tmp_path / "unsharded", *SMALL_VIT, *CLIPPED, "train.max_updates=1")
    sharded, unsharded = (metrics(tmp_path / run, "update")[0]["grad_norm"] for run in ("whole", "unsharded"))
    assert sharded == pytest.approx(unsharded, rel=1e-4)
    launch(tmp_path / "cut", "train.max_updates=3")
    assert len(metrics(tmp_path / "cut", "update")) == 3
    launch(tmp_path / "cut")
    assert resumed_at(tmp_path / "cut") == [3]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    model = timm.create_model(f"local-dir:{export_run(tmp_path / 'whole')}", pretrained=True)
    for name, tensor in load_file(tmp_path / "whole/ema.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)
