"""Laws of the mixed maps: their factor, their limits, what no normalisation of tokens can do, and their roundings."""

import pytest
import torch
from definitions import max_error

from affnorm_zoo.functional import affine_like_linear, affine_like_mixed, norm_like_linear, norm_like_mixed
from affnorm_zoo.functional.mixed_attention import mixed_square

PAIRS = {"affine_like": (affine_like_mixed, affine_like_linear), "norm_like": (norm_like_mixed, norm_like_linear)}
SHAPES = {"gram": (2, 5, 7), "tokens": (2, 7, 5)}  # the form of ‖x̄‖² depends on which is larger


def sample(shape, heads=3, size=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    attn = normal(shape[0], heads, shape[1], shape[1]).softmax(-1)
    return normal(*shape), attn, normal(heads * size, shape[2]), normal(heads * size)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", ["unit", "rms", (2.0, 0.5)], ids=str)
def test_each_head_is_the_layer_behind_its_mixed_tokens(name, shape, scale):
    x, attn, weight, bias = sample(shape)
    mixed, linear = PAIRS[name]
    for b in (bias, None):
        z = mixed(x, attn, weight, b, scale=scale)
        for head in range(3):
            rows = slice(4 * head, 4 * head + 4)
            expected = linear(attn[:, head] @ x, weight[rows], None if b is None else b[rows], scale=scale)
            torch.testing.assert_close(z[:, head], expected)


@pytest.mark.parametrize(("name", "factor"), [("affine_like", 4.0), ("norm_like", 5.0)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step_moves_every_mixed_value_alike(name, factor, shape):
    x, attn, weight, bias = sample(shape)
    attn = torch.nn.functional.dropout(attn, 0.3)  # rows need not sum to 1
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    z = PAIRS[name][0](x, attn, *parameters, scale=(2.0, 0.5))
    for place in [(0, 0, 0), (0, 2, 3), (1, 1, 4)]:
        g = torch.randn(4, dtype=torch.float64)
        gradients = torch.autograd.grad(z[place] @ g, parameters, retain_graph=True)
        found = sum(gradient.square().sum() for gradient in gradients) / g.square().sum()
        assert found.item() == pytest.approx(factor, rel=1e-12)


def test_no_normalisation_of_the_tokens_gives_it():
    """What mixes normalised tokens is linear in the weights: half of both is half-way between either. Ours is not."""
    x = torch.eye(2, dtype=torch.float64)[None]  # two tokens at right angles
    attn = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)  # the second query looks at both
    other = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    weight = torch.eye(2, dtype=torch.float64)

    def outputs(mix):
        first, both = mix(attn[None, None])[0, 0]
        return first, mix(other[None, None])[0, 0, 0], both

    for tokens in (affine_like_linear(x, weight), norm_like_linear(x, weight), torch.randn_like(x)):
        first, second, both = outputs(lambda a, tokens=tokens: a @ tokens[:, None])
        torch.testing.assert_close(both, (first + second) / 2)
    first, second, both = outputs(lambda a: affine_like_mixed(x, a, weight))
    # ‖x̄‖² is 1 for either and 1/2 for both: 1/√2 against 1/√(3/2) in front of W x̄
    torch.testing.assert_close(both / ((first + second) / 2), torch.full((2,), (4 / 3) ** 0.5, dtype=torch.float64))


def test_limits_of_kappa():
    x, attn, weight, bias = sample(SHAPES["gram"])
    far = affine_like_mixed(x, attn, weight, bias / 1e6, scale=(1e6, 1e6))
    plain = attn @ (x @ weight.T + bias).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(far, plain, rtol=1e-9, atol=1e-9)  # ‖x̄‖²/2κ² is below 1e-11
    near = affine_like_mixed(x, attn, weight, None, scale=(2.0, 1e-9))
    torch.testing.assert_close(near, norm_like_mixed(x, attn, weight, None, scale=(2.0, 0.0)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cancel", [1.0, 1e-3, 1e-6, 0.0])
def test_the_gram_form_rounds_by_the_longest_token_only(cancel):
    direction, rest = torch.randn(2, 1, 1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = 30 * torch.cat([direction, -direction + cancel * rest], 1)  # their mean is 15 · cancel · rest
    attn = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x32 = x.float()
    truth = mixed_square(attn, x32.double())
    found = mixed_square(attn.float(), x32)
    assert (found >= 0).all()
    # |a|ᵀ |X| |X|ᵀ |a| bounds the sum of the products' sizes; each of n + 2 L roundings is at most half an eps of it
    longest = x32.double().square().sum(-1).max()
    assert max_error(found, truth) <= (64 + 4) * torch.finfo(torch.float32).eps / 2 * longest


@pytest.mark.parametrize("shape", [(2, 8, 512), (2, 72, 64)], ids=["gram", "tokens"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_huge_inputs_under_autocast(shape, dtype):
    x, attn, weight, bias = sample(shape, dtype=torch.float32)
    x, weight = 1e3 * x, weight / shape[2] ** 0.5
    truth = affine_like_mixed(x.double(), attn.double(), weight.double(), bias.double(), scale="rms")
    with torch.autocast("cpu", dtype=dtype):
        z = affine_like_mixed(x, attn, weight, bias, scale="rms")
    # W and x, W x, a, and a v are rounded, each by half an eps; |a| |v| is at most some 4 times the largest sum
    assert max_error(z, truth) <= 16 * torch.finfo(dtype).eps * truth.abs().max().item()


def test_wrong_shapes_are_named():
    x, attn, weight, bias = sample((2, 5, 7))
    with pytest.raises(ValueError, match=r"attn \(N, heads, L, L\), got \(2, 5, 7\) and \(2, 3, 5, 4\)"):
        affine_like_mixed(x, attn[..., :4], weight, bias)
    with pytest.raises(ValueError, match="multiple of the 3 heads of rows, got 11"):
        norm_like_mixed(x, attn, weight[:11], bias[:11])
    with pytest.raises(ValueError, match="to fit the weight"):
        affine_like_mixed(x[..., :6], attn, weight, bias)
