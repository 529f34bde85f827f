"""Every lean op beside the reference that defines it, with inputs of odd shapes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from affnorm_zoo.functional.activation import apply_input_activation
from affnorm_zoo.functional.affine_like import affine_like_map
from affnorm_zoo.functional.norm_like import norm_like_map
from affnorm_zoo.functional.patch_norm import patch_norm_map
from affnorm_zoo.functional.weight_standardization import effective_weight_map
from affnorm_zoo.ops.linear import affine_like, norm_like
from affnorm_zoo.ops.mixed_attention import mixed_attention
from affnorm_zoo.ops.patch_norm import patch_norm


@dataclass(frozen=True)
class Case:
    """An op, its definition, and the shapes of its tensors."""

    name: str
    lean: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    kinks: tuple[float, ...] = (0.0,)  # values of the output at which its activation's derivative may jump

    def sample(self, dtype=torch.float64, layout=torch.contiguous_format, seed=0) -> list[Tensor]:
        """Random inputs that ask for a gradient."""
        generator = torch.Generator().manual_seed(seed)
        tensors = []
        for index, shape in enumerate(self.shapes):
            t = torch.randn(*shape, generator=generator, dtype=torch.float64)
            if index == 1:
                t = t / t[0].numel() ** 0.5
            if len(shape) == 4:
                t = t.to(memory_format=layout)
            tensors.append(t.to(dtype).requires_grad_())
        return tensors


KINKS = {"relu6": (0.0, 6.0), "hard_swish": (0.0, 3.0)}


def conv(name, x, weight, bias=True, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, norm_like=False,
         activation="none", recompute=False, scale=(3.0, 2.0), gain=False, standardized=False):  # fmt: skip
    shapes = (x, weight, *[(weight[0],)] * (bias + gain))
    tail = (stride, padding, dilation, groups, *scale, norm_like, activation)

    def split(vectors):
        return vectors[0] if bias else None, vectors[-1] if gain else None

    def lean(x, weight, *vectors, **others):
        b, g = split(vectors)
        return patch_norm(x, weight, b, *tail, recompute, g, standardized, **others)

    def reference(x, weight, *vectors):
        b, g = split(vectors)
        return patch_norm_map(x, effective_weight_map(weight, g, scale[0], standardized), b, *tail)

    return Case(name, lean, reference, shapes, KINKS.get(activation, (0.0,)))


def residual(name, x, weight, **options):
    """relu(conv + shortcut): the shortcut is the last input."""
    plain = conv(name, x, weight, **options)
    (height, width), kernel = x[2:], weight[2:]
    padding, stride = options.get("padding", (0, 0)), options.get("stride", (1, 1))
    size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((height, width), padding, kernel, stride, strict=True)]

    def lean(*tensors, **shift):
        return plain.lean(*tensors[:-1], shortcut=tensors[-1], **shift)

    def reference(*tensors):
        z = plain.reference(*tensors[:-1])
        return torch.relu(z + tensors[-1]).to(z.dtype)

    return Case(name, lean, reference, (*plain.shapes, (x[0], weight[0], *size)))


def centred(plain: Case) -> Case:
    """The same on x - shift, where the shift is no input and gets no gradient."""
    shift = torch.linspace(-1, 2, plain.shapes[0][1], dtype=torch.float64)

    def lean(x, *others):
        return plain.lean(x, *others, shift=shift)

    def reference(x, *others):
        return plain.reference(x - shift.to(x.dtype).view(-1, 1, 1), *others)

    return replace(plain, name=f"{plain.name}-centred", lean=lean, reference=reference)


def linear(name, is_norm_like, bias=True, activation="none", rows=(3, 5)):
    def lean(x, weight, bias=None):
        return norm_like(x, weight, bias, 3.0, activation) if is_norm_like else affine_like(
            x, weight, bias, 3.0, 2.0, activation
        )  # fmt: skip

    def reference(x, weight, bias=None):
        x = apply_input_activation(x, activation)
        return norm_like_map(x, weight, bias, 3.0) if is_norm_like else affine_like_map(x, weight, bias, 3.0, 2.0)

    return Case(name, lean, reference, ((*rows, 7), (9, 7), (9,)) if bias else ((*rows, 7), (9, 7)))


def mixed(name, is_norm_like, x, heads, size, bias=True, masked=False):
    """Self-attention of tokens x, whose definition mixes the tokens of every head and puts a layer behind them."""
    tokens, width = x[1:]
    mask = None
    if masked:
        mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)
        mask = mask + torch.randn(tokens, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def split(x, weight):
        return (x @ weight.mT).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)

    def lean(x, weight, bias=None):
        q, k, v = split(x, weight)
        own = None if mask is None else mask.to(q.dtype)
        return mixed_attention(q, k, v, x, bias, own, 3.0, 0.0 if is_norm_like else 2.0, is_norm_like)

    def reference(x, weight, bias=None):
        q, k, _ = split(x, weight)
        logits = q @ k.mT / size**0.5
        attn = (logits if mask is None else logits + mask.to(q.dtype)).softmax(-1)
        rows = weight[-heads * size :].unflatten(0, (heads, size))
        biases = [None] * heads if bias is None else bias.unflatten(0, (heads, size))
        outputs = [
            norm_like_map(attn[:, h] @ x, rows[h], biases[h], 3.0) if is_norm_like
            else affine_like_map(attn[:, h] @ x, rows[h], biases[h], 3.0, 2.0)
            for h in range(heads)
        ]  # fmt: skip
        return torch.stack(outputs, 1)

    rows = heads * size
    return Case(name, lean, reference, (x, (3 * rows, width), (rows,)) if bias else (x, (3 * rows, width)))


CASES = [
    conv("pointwise", (2, 5, 7, 3), (6, 5, 1, 1)),
    conv("pointwise-stride", (2, 5, 7, 4), (6, 5, 1, 1), stride=(2, 3)),
    conv("pointwise-groups", (3, 6, 5, 3), (4, 3, 1, 1), groups=2),
    conv("pointwise-relu", (2, 5, 7, 3), (6, 5, 1, 1), activation="relu", stride=(2, 2)),
    conv("pointwise-norm_like", (2, 5, 7, 3), (6, 5, 1, 1), norm_like=True),
    conv("pointwise-padded", (2, 5, 7, 3), (6, 5, 1, 1), padding=(1, 2)),
    conv("kept", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1)),
    conv("recomputed", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), recompute=True),
    conv("no-bias", (2, 5, 7, 9), (6, 5, 3, 3), bias=False),
    conv("relu", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), activation="relu"),
    conv("leaky", (2, 5, 8, 9), (6, 5, 3, 2), padding=(1, 0), stride=(2, 1), activation="leaky_relu"),
    conv("stem", (2, 3, 15, 17), (4, 3, 7, 7), padding=(3, 3), stride=(2, 2), activation="relu"),
    conv("dilated-uneven", (1, 4, 11, 9), (6, 2, 3, 2), (True), (2, 1), (3, 1), (2, 3), 2),
    conv("depthwise-relu", (2, 6, 6, 5), (6, 1, 3, 3), padding=(1, 1), groups=6, activation="relu"),
    conv("relu6", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), activation="relu6", scale=(15.0, 2.0)),
    conv("norm_like-relu6", (2, 5, 6, 7), (6, 5, 1, 1), activation="relu6", norm_like=True, scale=(9.0, 2.0)),
    conv("silu", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), activation="silu"),
    conv("depthwise-silu", (2, 6, 6, 5), (6, 1, 3, 3), padding=(1, 1), groups=6, activation="silu", recompute=True),
    conv("pointwise-silu", (2, 5, 7, 3), (6, 5, 1, 1), activation="silu", norm_like=True),
    conv("hard_swish", (2, 6, 7, 9), (6, 3, 3, 3), stride=(2, 1), groups=2, activation="hard_swish", scale=(9.0, 2.0)),
    conv("norm_like-hard_swish", (2, 5, 7, 9), (6, 5, 3, 3), activation="hard_swish", norm_like=True, recompute=True),
    conv("pointwise-gelu", (2, 5, 7, 3), (6, 5, 1, 1), activation="gelu", recompute=True, scale=(5.0, 2.0)),
    conv("norm_like-gelu-no-bias", (2, 5, 7, 9), (6, 5, 3, 3), bias=False, activation="gelu", norm_like=True),
    conv("norm_like-kept", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), norm_like=True),
    conv("norm_like-recomputed", (2, 5, 7, 9), (6, 5, 3, 3), norm_like=True, recompute=True),
    conv("norm_like-relu", (2, 6, 7, 9), (6, 3, 3, 3), padding=(1, 1), norm_like=True, activation="relu", groups=2),
    conv("norm_like-leaky", (2, 5, 7, 9), (6, 5, 3, 3), norm_like=True, activation="leaky_relu"),
    conv("norm_like-no-bias-relu", (2, 5, 7, 9), (6, 5, 3, 3), bias=False, norm_like=True, activation="relu"),
    conv("ws", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), gain=True, standardized=True),
    conv("ws-recomputed", (2, 5, 7, 9), (6, 5, 3, 2), gain=True, standardized=True, recompute=True),
    conv("ws-relu", (2, 6, 7, 9), (6, 3, 3, 3), activation="relu", groups=2, gain=True, standardized=True),
    conv("ws-pointwise-norm_like", (2, 5, 7, 3), (6, 5, 1, 1), norm_like=True, gain=True, standardized=True),
    conv("ws-no-gain-no-bias", (2, 5, 7, 3), (6, 5, 1, 1), bias=False, standardized=True),
    conv("gain", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), gain=True, activation="silu"),
    residual("residual-relu", (2, 3, 4, 5), (4, 3, 3, 3), padding=(1, 1)),
    residual("residual-relu-ws", (2, 4, 5, 4), (4, 2, 3, 3), groups=2, gain=True, standardized=True),
    residual("residual-relu-norm_like", (2, 3, 4, 5), (4, 3, 3, 3), norm_like=True),
    residual("residual-relu-recomputed", (2, 3, 4, 5), (4, 3, 3, 3), padding=(1, 1), recompute=True),
    residual("residual-relu-kept", (2, 3, 4, 5), (4, 3, 3, 3), stride=(2, 2), bias=False),
    residual("residual-relu-pointwise", (2, 3, 4, 5), (4, 3, 1, 1)),
    centred(conv("pointwise", (2, 5, 7, 3), (6, 5, 1, 1))),
    centred(conv("relu", (2, 6, 7, 9), (6, 3, 3, 3), padding=(1, 1), groups=2, activation="relu")),
    centred(conv("recomputed", (2, 5, 7, 9), (6, 5, 3, 3), padding=(1, 1), recompute=True)),
    centred(residual("residual-relu", (2, 3, 4, 5), (4, 3, 3, 3), padding=(1, 1))),
    linear("affine_like", False),
    linear("affine_like-no-bias", False, bias=False, rows=()),
    linear("affine_like-gelu", False, activation="gelu"),
    linear("norm_like", True, rows=(4,)),
    linear("norm_like-no-bias", True, bias=False),
    linear("norm_like-gelu", True, activation="gelu"),
    mixed("mixed-gram", False, (2, 5, 7), 2, 3),
    mixed("mixed-tokens", False, (2, 6, 4), 2, 3),
    mixed("mixed-no-bias-masked", False, (1, 5, 7), 3, 2, bias=False, masked=True),
    mixed("mixed-norm_like-gram", True, (2, 5, 7), 2, 3, masked=True),
    mixed("mixed-norm_like-tokens", True, (2, 6, 4), 2, 3),
]  # fmt: skip


def on_the_same_side(case: Case, true: Tensor, *others: Tensor) -> Tensor:
    """1 where rounding has not moved an output across a kink of its activation, or onto it, and 0 elsewhere.

    Beyond a kink the gradient is that of another branch, so that no error bound holds for it.
    """
    same = torch.ones_like(true, dtype=torch.bool)
    for other in others:
        for kink in case.kinks:
            same &= torch.sign(other.double() - kink) == torch.sign(true - kink)
    assert same.double().mean() > 0.95
    return same


def forward_backward(
    function: Callable[..., Tensor], inputs: list[Tensor], dz: Tensor, dtype=None
) -> dict[str, Tensor]:
    """Output and gradients, with inputs and cotangent cast to ``dtype`` first."""
    inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    z = function(*inputs)
    gradients = torch.autograd.grad(z, inputs, dz.to(z.dtype))
    return {"z": z.detach(), **{f"d{index}": gradient for index, gradient in enumerate(gradients)}}
