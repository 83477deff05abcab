"""Networks from pictures [B, C, S, S] to features [B, F]. The only file that imports torchvision."""

from typing import Literal

from torch import nn

from metricweight.checks import InputError

Backbone = Literal["small_cnn", "resnet18"]


def build(name: Backbone, channels: int, pretrained: bool = False) -> tuple[nn.Module, int]:
    """The backbone and its number of features F.

    small_cnn   four 3 x 3 convolutions with batch normalisation, for pictures of some 32 x 32 on a CPU; F = 4096,
                the last maps averaged over 4 x 4 fields
    resnet18    torchvision's (He et al., CVPR 2016); F = 512. `pretrained` fetches its ImageNet weights

    Raises InputError where pretrained weights do not exist or cannot be fetched.
    """
    if name == "small_cnn":
        if pretrained:
            raise InputError("model.pretrained: the small CNN has no pretrained weights; use model.backbone=resnet18.")
        return _small_cnn(channels), 256 * 4 * 4
    from torchvision.models import ResNet18_Weights, resnet18

    if pretrained and channels != 3:
        raise InputError("model.pretrained: the ImageNet weights are for colour pictures; set model.pretrained=false.")
    try:
        network: nn.Module = resnet18(weights=ResNet18_Weights.DEFAULT if pretrained else None)
    except OSError as error:
        raise InputError(
            f"model.pretrained: the ImageNet weights of resnet18 could not be fetched ({error}); "
            "go online once, or set model.pretrained=false."
        ) from None
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    network.fc = nn.Identity()
    return network, 512


def _small_cnn(channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (32, 64, 128, 256):
        if layers:
            layers.append(nn.MaxPool2d(2))
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
