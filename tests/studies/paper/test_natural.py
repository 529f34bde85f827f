import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from affnorm_zoo.studies.paper.natural import natural_cosine
from affnorm_zoo.studies.paper.nets import build_net


@pytest.mark.parametrize("method", ["none", "layernorm", "norm_like", "affine_like"])
def test_it_is_the_cosine_of_the_written_out_fisher_matrix(method):
    torch.manual_seed(0)
    net = build_net("tanh-2x4", method, (1, 2, 2), 3, seed=1).double()
    x, labels = torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.arange(6) % 3
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    jacobian = torch.cat(
        [j.flatten(2) for j in jacrev(lambda p: functional_call(net, p, (x,)))(parameters).values()], 2
    )
    p = net(x).detach().softmax(1)
    parts = [j.T @ (torch.diag(q) - torch.outer(q, q)) @ j for j, q in zip(jacobian, p, strict=True)]
    fisher = torch.stack(parts).mean(0)
    fisher += 1e-3 * fisher.trace() / 18 * torch.eye(len(fisher), dtype=torch.float64)
    loss = F.cross_entropy(net(x), labels)
    g = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(net.parameters()))])
    natural = torch.linalg.solve(fisher, g)
    expected = (g @ fisher @ natural) / ((g @ fisher @ g) * (natural @ fisher @ natural)).sqrt()
    assert natural_cosine(net, x, labels) == pytest.approx(expected.item(), rel=1e-9)


def test_where_the_fisher_matrix_is_a_multiple_of_one_the_two_agree():
    """One logit of one input is a single direction."""
    net = nn.Linear(1, 2, bias=False).double()
    cosine = natural_cosine(net, torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))
    assert cosine == pytest.approx(1.0, rel=1e-9)
