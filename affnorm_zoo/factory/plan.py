"""Which layer every slot belongs to, read off the architecture before anything is changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from timm.layers import Attention, AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from affnorm_zoo.factory.slot import SUPPORTED, NormSlot


@dataclass(frozen=True)
class Binding:
    """One slot of a model and what takes its place; all names are paths from the model.

    ``layers`` holds the convolution that the slot follows, or the linear layers that read the slot; none if the slot
    becomes an L2 norm of its own. ``activation`` is a module right behind the slot, which a convolution may absorb.
    """

    slot: str
    layers: tuple[str, ...] = ()
    activation: str | None = None


def plan_bindings(model: nn.Module) -> list[Binding]:
    """Pair every slot of ``model`` with its layers.

    Raises:
        ValueError: a slot is in a module that no rule covers, or the model has no slot.
    """
    slots = {name: module for name, module in model.named_modules() if isinstance(module, NormSlot)}
    if not slots:
        raise ValueError(
            "the model has no slot to bind: build it with norm_layer=affnorm_zoo.norm_layer(name), "
            "for a divergence-free normalizer"
        )
    bindings: dict[str, Binding] = {}
    for prefix, parent in model.named_modules():
        for binding in _local_bindings(parent):
            path = prefix + "." if prefix else ""
            slot = path + binding.slot
            if slot in bindings:
                raise ValueError(f"slot {slot!r} is claimed twice, by {bindings[slot].layers} and in {prefix!r}")
            layers = tuple(path + layer for layer in binding.layers)
            activation = None if binding.activation is None else path + binding.activation
            bindings[slot] = Binding(slot, layers, activation)
    for name in slots:
        if name not in bindings:
            parent = model.get_submodule(name.rpartition(".")[0])
            raise ValueError(
                f"slot {name!r} sits in a {type(parent).__name__}, where no layer could be paired with it; "
                f"supported: {SUPPORTED}"
            )
    return [bindings[name] for name in slots]


def _local_bindings(parent: nn.Module) -> Iterator[Binding]:
    for kind, rule in _RULES:
        # exact types: a subclass may run its layers in another order; the two roots only add layers of other types
        if type(parent) is kind or (kind in (ResNet, VisionTransformer) and isinstance(parent, kind)):
            for binding in rule(parent):
                if _is_slot(parent, binding.slot):
                    yield binding


def _is_slot(parent: nn.Module, name: str) -> bool:
    return isinstance(getattr(parent, name, None), NormSlot)


def _sequential(parent: nn.Sequential) -> Iterator[Binding]:
    """(convolution, slot[, activation]) or (slot, linear), next to each other."""
    children = list(parent.named_children())
    for before, here, after in zip([None, *children], children, [*children[1:], None], strict=False):
        if not isinstance(here[1], NormSlot):
            continue
        if before is not None and isinstance(before[1], nn.Conv2d):
            yield Binding(here[0], (before[0],), after[0] if after is not None else None)
        elif after is not None and isinstance(after[1], nn.Linear):
            yield Binding(here[0], (after[0],))


def _basic_block(block: BasicBlock) -> Iterator[Binding]:
    yield Binding("bn1", ("conv1",), "act1" if _is_identity(block.drop_block) else None)
    yield Binding("bn2", ("conv2",))


def _bottleneck(block: Bottleneck) -> Iterator[Binding]:
    yield Binding("bn1", ("conv1",), "act1")
    yield Binding("bn2", ("conv2",), "act2" if _is_identity(block.drop_block) else None)
    yield Binding("bn3", ("conv3",))


def _resnet(model: ResNet) -> Iterator[Binding]:
    # the last convolution of a deep stem stands alone in its Sequential: its norm is the model's own
    deep_stem = isinstance(model.conv1, nn.Sequential)
    yield Binding("bn1", (f"conv1.{len(model.conv1) - 1}" if deep_stem else "conv1",), "act1")


def _vit_block(block: Block) -> Iterator[Binding]:
    attn = tuple(f"attn.{name}" for name in ("qkv", "gate") if isinstance(getattr(block.attn, name, None), nn.Linear))
    mlp = tuple(f"mlp.{name}" for name in ("fc1", "fc1_g", "fc1_x") if hasattr(block.mlp, name))
    yield Binding("norm1", attn)
    yield Binding("norm2", mlp)


def _attention(attn: nn.Module) -> Iterator[Binding]:
    yield Binding("q_norm")
    yield Binding("k_norm")
    if getattr(attn, "gate", None) is None:  # a gate multiplies between the norm and the projection
        yield Binding("norm", ("proj",))
    else:
        yield Binding("norm")


def _mlp(_: nn.Module) -> Iterator[Binding]:
    yield Binding("norm", ("fc2",))


def _attention_pool(_: AttentionPoolLatent) -> Iterator[Binding]:
    yield Binding("norm", ("mlp.fc1",))
    yield Binding("q_norm")
    yield Binding("k_norm")


def _vision_transformer(_: VisionTransformer) -> Iterator[Binding]:
    # these feed the residual stream, the pooling or the classifier, which stays a plain linear layer
    for name in ("norm_pre", "norm", "fc_norm"):
        yield Binding(name)


def _patch_embed(_: nn.Module) -> Iterator[Binding]:
    yield Binding("norm")


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


# every rule lists the slots a module can hold; those that hold something else are passed over
_RULES: tuple[tuple[type[nn.Module], Callable[..., Iterator[Binding]]], ...] = (
    (nn.Sequential, _sequential),
    (ResNet, _resnet),
    (BasicBlock, _basic_block),
    (Bottleneck, _bottleneck),
    (VisionTransformer, _vision_transformer),
    (Block, _vit_block),
    (Attention, _attention),
    (Mlp, _mlp),
    (GluMlp, _mlp),
    (SwiGLU, _mlp),
    (AttentionPoolLatent, _attention_pool),
    (PatchEmbed, _patch_embed),
)
