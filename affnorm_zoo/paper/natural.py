"""How close a gradient step comes to the natural-gradient step, exactly, for nets with a small enough Jacobian."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


@torch.no_grad()
def natural_cosine(net: nn.Module, x: Tensor, labels: Tensor, damping: float = 1e-3) -> float:
    """Cosine between the gradient g of the mean cross-entropy and the natural gradient, in the Fisher metric.

        F = 1/N Σ_i J_iᵀ (diag p_i - p_i p_iᵀ) J_i + λ I
        cos = gᵀg / √(gᵀF g · gᵀF⁻¹g)

    Its square is what one step along g lowers the loss, over what the best step of the same length in F does: 1 where
    the two point the same way, and the same for every scaling of the steps. F is that of the N samples, with J_i the
    Jacobian of logits by all parameters and p_i the predicted probabilities; the net is in evaluation mode.

    Args:
        net: of one input batch, to logits (N, K).
        x: (N, ...).
        labels: (N,).
        damping: λ over the mean eigenvalue of F on the span of its N·K rows; without any, directions that the samples
            hardly tell apart would decide.

    Source:
        Amari 1998, https://doi.org/10.1162/089976698300017746; for the Fisher matrix of a softmax, Martens 2020,
        https://arxiv.org/abs/1412.1193, section 9.2.
    """
    net.eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def logits_of(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, (parameters, buffers), (sample[None],))[0]

    # sample by sample: the intermediate results of all at once would not fit
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
