"""Counters of multiply-adds, against what they count for timm's networks."""

import pytest
import timm
import torch
from clients.rows import client

PAIRS = [("resnet18", "resnet18_patchnorm", 64), ("vit_tiny_patch16_224", "vit_tiny_patch16_224_affinelike", 224)]


@client("thop", "multiply-adds, within 1 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_thop(plain, ours, size):
    import thop

    x = torch.randn(1, 3, size, size)
    counts = [thop.profile(timm.create_model(name), (x,), verbose=False)[0] for name in (plain, ours)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@client("ptflops", "multiply-adds, within 1 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_ptflops(plain, ours, size):
    from ptflops import get_model_complexity_info

    counts = [
        get_model_complexity_info(timm.create_model(name), (3, size, size), False, as_strings=False)[0]
        for name in (plain, ours)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@client("fvcore", "multiply-adds, within 3 % of timm's network")
@pytest.mark.parametrize(("plain", "ours", "size"), PAIRS)
def test_fvcore(plain, ours, size):
    from fvcore.nn import FlopCountAnalysis

    counts = [
        FlopCountAnalysis(timm.create_model(name).eval(), torch.randn(1, 3, size, size)).total()
        for name in (plain, ours)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.03)
