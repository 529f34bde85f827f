"""timm's networks with slots for a normaliser, not bound yet."""

import timm

from affnorm_zoo import norm_layer


def slotted(name, normalizer="patchnorm", **kw):
    return timm.create_model(name, norm_layer=norm_layer(normalizer), **kw)


def small_vit(**options):
    options = dict(options, img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    return timm.create_model("vit_tiny_patch16_224", norm_layer=norm_layer("affinelike"), **options)
