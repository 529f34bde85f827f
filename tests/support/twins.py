"""A kernel beside the plain operations whose twin it is."""

import torch
from definitions import max_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image(shape, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if layout == "strided":
        x = torch.randn(n, c, 2 * h, 3 * w, generator=generator)[:, :, ::2, ::3]
    else:
        x = torch.randn(shape, generator=generator)
        x = x.to(memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format)
    return x.to(DEVICE).to(dtype)


def assert_twin(kernel_result, pass_result, truth, slack=0.0):
    """Twice the pass's own error, plus an ulp of the largest value."""
    for ours, theirs, true in zip(kernel_result, pass_result, truth, strict=True):
        if true is None:
            assert ours is None
            continue
        ulp = torch.finfo(ours.dtype).eps * true.abs().max().item()
        assert ours.isfinite().all()
        assert ours.shape == true.shape
        assert max_error(ours, true) <= 2 * max_error(theirs, true) + ulp + slack + 1e-6
