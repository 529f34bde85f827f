"""How close a gradient step comes to the natural-gradient step, computed exactly from the full Jacobian."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


@torch.no_grad()
def natural_cosine(net: nn.Module, x: Tensor, labels: Tensor, damping: float = 1e-3) -> float:
    """Cosine between the gradient g of the mean cross-entropy and the natural gradient, in the Fisher metric.

        F = 1/N Σ_i J_iᵀ (diag p_i - p_i p_iᵀ) J_i + λ I
        cos = gᵀg / √(gᵀF g · gᵀF⁻¹g)

    cos² is the loss decrease of one step along g, over that of the best step of the same length in F. It is 1 if both
    steps have the same direction, and does not depend on their lengths. F is the Fisher matrix of the N samples. J_i
    is the Jacobian of the logits with respect to all parameters, p_i the predicted probabilities. The network is in
    evaluation mode.

    Args:
        net: maps an input batch to logits (N, K); its Jacobian, N·K times all parameters, must fit in memory.
        x: (N, ...).
        labels: (N,).
        damping: λ over the mean eigenvalue of F on the span of its N·K rows. Without damping, directions that the
            samples hardly distinguish would dominate.

    Source:
        Amari 1998, https://doi.org/10.1162/089976698300017746; for the Fisher matrix of a softmax, Martens 2020,
        https://arxiv.org/abs/1412.1193, section 9.2.
    """
    net.eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def logits_of(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, (parameters, buffers), (sample[None],))[0]

    # sample by sample: the intermediate results of all samples together would not fit in memory
    parts = [jacrev(logits_of)(parameters, sample) for sample in x]
    jacobian = torch.stack([torch.cat([j.flatten(1) for j in part.values()], 1) for part in parts])  # (N, K, P)
    p = vmap(lambda sample: logits_of(parameters, sample))(x).softmax(1).to(jacobian)
    target = torch.nn.functional.one_hot(labels, p.shape[1]).to(p)
    g = torch.einsum("nkp,nk->p", jacobian, p - target) / len(x)
    # A_i = √p ⊙ (J_i - pᵀJ_i) has A_iᵀA_i = J_iᵀ (diag p - p pᵀ) J_i
    centred = jacobian - torch.einsum("nk,nkp->np", p, jacobian)[:, None]
    a = (centred * p.sqrt()[:, :, None]).flatten(0, 1) / len(x) ** 0.5  # (NK, P), F = AᵀA + λI
    gram = (a @ a.T).double()
    scale = damping * gram.trace() / len(gram)
    g_wide, a_g = g.double(), (a @ g).double()
    # (AᵀA + λI)⁻¹ g = (g - Aᵀ (AAᵀ + λI)⁻¹ A g) / λ
    solved = torch.linalg.solve(gram + scale * torch.eye(len(gram), dtype=gram.dtype), a_g)
    square = g_wide @ g_wide
    inverse_form = (square - a_g @ solved) / scale
    form = a_g @ a_g + scale * square
    return (square / (form * inverse_form).sqrt()).item()
