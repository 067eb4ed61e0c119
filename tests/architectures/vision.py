"""Image networks of torchvision and timm, with three classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from architectures.entries import numbers, register
from architectures.libraries import load

TORCHVISION: dict[str, tuple[int, Callable[[Any], nn.Module]]] = {
    **{
        name: (64, partial(lambda name, models: models.get_model(name, weights=None, num_classes=3), name))
        for name in (
            "resnet18",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "squeezenet1_1",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "regnet_y_400mf",
            "densenet121",
            "mnasnet0_5",
        )
    },
    "googlenet": (64, lambda m: m.googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False)),
    "vgg11_bn without hidden layers": (
        32,
        lambda m: nn.Sequential(m.vgg11_bn().features, nn.Flatten(), nn.Linear(512, 3)),
    ),
    "VisionTransformer": (32, lambda m: m.VisionTransformer(32, 8, 3, 4, 64, 128, num_classes=3)),
    "SwinTransformer": (32, lambda m: m.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=3)),
    "SwinTransformer v2": (
        32,
        lambda m: m.SwinTransformer(
            [4, 4],
            24,
            [2, 2],
            [2, 4],
            [4, 4],
            num_classes=3,
            block=m.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=m.swin_transformer.PatchMergingV2,
        ),
    ),
    "MaxVit": (64, lambda m: m.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 16, 0.0, num_classes=3)),
}

TIMM: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "ghostnet_100": {},
    "poolformer_s12": {},
    "nf_resnet26": {},
    "xcit_nano_12_p16_224": {"img_size": 64},
    "coat_lite_tiny": {"img_size": 64},
    "levit_128s": {"img_size": 64},
    "mobilevit_xxs": {},
    "edgenext_xx_small": {},
    "repvgg_a0": {},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 4},
    "beit_base_patch16_224": {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3},
    "tinynet_e": {},
    "cait_xxs24_224": {"img_size": 64, "depth": 4},
    "pit_ti_224": {"img_size": 64},
    "mobileone_s0": {},
    "skresnet18": {},
    "lambda_resnet26t": {},
    "efficientformerv2_s0": {"img_size": 64},
    "mambaout_femto": {},
}

MIXER: dict[str, Any] = {"num_classes": 3, "img_size": 64, "patch_size": 16, "num_blocks": 4, "embed_dim": 96}
MIXERS: dict[str, Callable[[Any], nn.Module]] = {
    "MLP-Mixer": lambda m: m.mlp_mixer.MlpMixer(**MIXER),
    "ResMLP": lambda m: m.mlp_mixer.MlpMixer(
        **MIXER, block_layer=m.mlp_mixer.ResBlock, mlp_ratio=4, norm_layer=m.mlp_mixer.Affine
    ),
    "gMLP": lambda m: m.mlp_mixer.MlpMixer(
        **MIXER, block_layer=m.mlp_mixer.SpatialGatingBlock, mlp_ratio=4, mlp_layer=m.mlp_mixer.GatedMlp
    ),
    "ConvMixer": lambda m: m.convmixer.ConvMixer(64, 4, 7, 7, num_classes=3),
}


def _enter_torchvision(name: str, size: int, make: Callable[[Any], nn.Module]) -> None:
    register(f"torchvision/{name}", numbers(3, size, size), "torchvision")(lambda: make(load("torchvision").models))


def _enter_timm(name: str, given: dict[str, Any]) -> None:
    register(f"timm/{name}", numbers(3, 64, 64), "timm")(
        lambda: load("timm").create_model(name, pretrained=False, num_classes=3, **given)
    )


for _name, (_size, _make) in TORCHVISION.items():
    _enter_torchvision(_name, _size, _make)
for _name, _given in TIMM.items():
    _enter_timm(_name, _given)
for _name, _make in MIXERS.items():
    register(f"timm/{_name}", numbers(3, 64, 64), "timm")(partial(lambda make: make(load("timm").models), _make))
