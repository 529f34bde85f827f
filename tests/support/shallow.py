"""Networks with as few blocks as their laws need."""


def shallow(name):
    """Arguments with which a ResNet has one block per stage, and a ViT two blocks."""
    if name.startswith("vit"):
        return {"depth": 2}
    if name.startswith(("resnet", "resnext", "seresnet")) and not name.startswith("resnetv2"):
        return {"layers": [1, 1, 1] if "cifar" in name else [1, 1, 1, 1]}
    return {}
