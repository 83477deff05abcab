"""Networks from pictures [B, C, H, W] to features [B, F]. The only file that imports timm."""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metricweight import files
from metricweight.checks import InputError, nearest
from metricweight.models import weights as weight_files
from metricweight.models.pooling import Pool, average
from metricweight.progress import aligned

Level = Literal["low", "middle", "high"]
LEVELS: tuple[Level, ...] = ("low", "middle", "high")


@dataclass(frozen=True)
class Backbone:
    """A network by name.

    what, paper     in a few words; arXiv
    widths          channels of the maps of low, middle, high; one number: of high, and there are no others
    ends            the parts after which those levels lie
    size            side of the pictures that it was made for, in pixels
    smallest        side of the smallest pictures that it takes
    pretrained      the name of torchvision's weights; None: there are none
    fields          its own pooling averages over fields x fields parts of the map
    norm            the part that normalises the pooled features of high
    channels_last   its maps are [B, h, w, F]
    """

    name: str
    what: str
    paper: str
    widths: tuple[int, ...]
    ends: tuple[str, ...]
    size: int = 224
    smallest: int = 1
    pretrained: str | None = "IMAGENET1K_V1"
    fields: int = 1
    norm: str | None = None
    pixels: Literal["imagenet", "half"] = "imagenet"
    channels_last: bool = False


_BLOCKS = ("block2", "block3", "block4")
_RESNET = ("layer2", "layer3", "layer4")
_GOOGLENET = ("inception4a", "inception4d", "inception5b")
_CONVNEXT = ("features.3", "features.5", "features.7")
_SWIN = ("features.3", "features.5", "norm")
_SMALL_RESNETS = {"resnet20": 3, "resnet44": 7, "resnet56": 9}  # blocks in each of their three stages

_ROWS = [
    Backbone("small_cnn", "four convolutions, for a CPU", "", (64, 128, 256), _BLOCKS, 32, 8, None, fields=4),
    Backbone("resnet18", "residual, 18 layers", "1512.03385", (128, 256, 512), _RESNET),
    Backbone("resnet34", "residual, 34 layers", "1512.03385", (128, 256, 512), _RESNET),
    Backbone("resnet50", "residual, 50 layers", "1512.03385", (512, 1024, 2048), _RESNET),
    Backbone("resnet101", "residual, 101 layers", "1512.03385", (512, 1024, 2048), _RESNET),
    Backbone("googlenet", "with batch norm", "1409.4842", (512, 528, 1024), _GOOGLENET, smallest=15, pixels="half"),
]
_ROWS += [
    Backbone(
        name,
        f"small residual, {name.removeprefix('resnet')} layers, 32 x 32",
        "1512.03385",
        (16, 32, 64),
        ("layer1", "layer2", "layer3"),
        32,
        pretrained=None,
    )
    for name in _SMALL_RESNETS
]
_ROWS += [
    Backbone(
        f"convnext_{size}",
        f"convolutions, {millions} M",
        "2201.03545",
        widths,
        _CONVNEXT,
        smallest=32,
        norm="classifier.0",
    )
    for size, millions, widths in [
        ("tiny", 29, (192, 384, 768)),
        ("small", 50, (192, 384, 768)),
        ("base", 89, (256, 512, 1024)),
    ]
]
_ROWS += [
    Backbone(
        f"swin_{size}", f"shifted windows, {millions} M", "2103.14030", widths, _SWIN, smallest=4, channels_last=True
    )
    for size, millions, widths in [("t", 28, (192, 384, 768)), ("s", 50, (192, 384, 768)), ("b", 88, (256, 512, 1024))]
]
_ROWS += [Backbone("vit_b_16", "vision transformer, 87 M", "2010.11929", (768,), (), smallest=224)]

BACKBONES = {row.name: row for row in _ROWS}


class Features(Protocol):
    """How a network is run: pictures [B, C, H, W] to the pooled features [B, F] of each level.

    pools   one for each level: what makes features of its maps; None: the pooling that the network has itself
    """

    def __call__(self, network: nn.Module, images: Tensor, pools: Sequence[Pool | None]) -> list[Tensor]: ...

    def sizes(self, own: bool) -> list[int]:
        """F of each level; own: with the pooling that the network has itself."""


@dataclass(frozen=True)
class Maps:
    """Runs the parts of a network one after another; the pooled maps where a level ends are its features.

    Own pooling is the average, followed at `high` by the network's own normalisation where it has one there
    (ConvNeXt); other poolings take the average's place. small_cnn averages over 4 x 4 fields at each level.
    """

    row: Backbone
    order: tuple[str, ...]
    levels: tuple[Level, ...]

    def __call__(self, network: nn.Module, images: Tensor, pools: Sequence[Pool | None]) -> list[Tensor]:
        height, width = images.shape[2:]
        if min(height, width) < self.row.smallest:
            least = self.row.smallest
            raise InputError(f"{self.row.name} needs pictures of {least} x {least} or more, got {height} x {width}.")
        ends = [self.row.ends[LEVELS.index(level)] for level in self.levels]
        found: list[Tensor] = []
        for name in self.order:
            images = network.get_submodule(name)(images)
            if name in ends:
                maps = images.permute(0, 3, 1, 2) if self.row.channels_last else images
                pool = pools[len(found)]
                pooled = (
                    functional.adaptive_avg_pool2d(maps, self.row.fields).flatten(1) if pool is None else pool(maps)
                )
                if self.row.norm and name == self.row.ends[-1]:
                    pooled = network.get_submodule(self.row.norm)(pooled[:, :, None, None]).flatten(1)
                found.append(pooled)
        return found

    def sizes(self, own: bool) -> list[int]:
        return [self.row.widths[LEVELS.index(level)] * (self.row.fields**2 if own else 1) for level in self.levels]


@dataclass(frozen=True)
class Tokens:
    """Runs torchvision's vision transformer. Own pooling is the class token; others pool the patches' tokens."""

    row: Backbone

    def __call__(self, network: nn.Module, images: Tensor, pools: Sequence[Pool | None]) -> list[Tensor]:
        height, width = images.shape[2:]
        size = self.row.size
        if (height, width) != (size, size):
            raise InputError(
                f"{self.row.name} takes pictures of {size} x {size} only, got {height} x {width}; set data.size={size}."
            )
        patches = cast(nn.Module, network.conv_proj)(images).flatten(2).transpose(1, 2)
        first = cast(Tensor, network.class_token).expand(len(images), -1, -1)
        tokens = cast(nn.Module, network.encoder)(torch.cat([first, patches], 1))
        (pool,) = pools
        return [tokens[:, 0] if pool is None else pool(tokens[:, 1:].transpose(1, 2)[..., None])]

    def sizes(self, own: bool) -> list[int]:
        return list(self.row.widths)


@dataclass(frozen=True)
class TimmFeatures:
    """Runs a network of timm. Own pooling is timm's, with all that timm puts before its classification layer.

    Other poolings take the last map, or the patches' tokens without those that are put before them. Low and middle
    are the stages before the last; their own pooling is the average.

    stages  the numbers of those stages
    widths  F of each level
    own     F of timm's own pooling
    """

    name: str
    levels: tuple[Level, ...]
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    own: int

    def __call__(self, network: nn.Module, images: Tensor, pools: Sequence[Pool | None]) -> list[Tensor]:
        model = cast(Any, network)
        maps: list[Tensor] = []
        try:
            if not self.stages:
                last = model.forward_features(images)
            elif "high" in self.levels:
                last, maps = model.forward_intermediates(images, indices=list(self.stages), output_fmt="NCHW")
            else:
                maps = model.forward_intermediates(
                    images, indices=list(self.stages), output_fmt="NCHW", intermediates_only=True, stop_early=True
                )
        except AssertionError as error:
            height, width = images.shape[2:]
            raise InputError(f"{self.name} cannot take pictures of {height} x {width}: {error}") from None
        pooled = [(pool or average)(x) for pool, x in zip(pools, maps, strict=False)]
        if "high" in self.levels:
            pool = pools[-1]
            pooled.append(model.forward_head(last, pre_logits=True) if pool is None else pool(_as_map(model, last)))
        return pooled

    def sizes(self, own: bool) -> list[int]:
        widths = list(self.widths)
        return [*widths[:-1], self.own] if own and "high" in self.levels else widths


def _as_map(model: Any, last: Tensor) -> Tensor:
    """What timm's networks end with as a map [B, F, h, w]: maps of two orders, or tokens."""
    if last.ndim == 3:
        return last[:, getattr(model, "num_prefix_tokens", 0) :].transpose(1, 2)[..., None]
    return last.permute(0, 3, 1, 2) if str(getattr(model, "output_fmt", "")).endswith("NHWC") else last


def expected_pixels(name: str) -> Literal["imagenet", "half", "clip"]:
    """How the pretrained weights of a backbone expect colours, a value of `data.pixels`.

    Raises InputError where it is none of them.
    """
    if name in BACKBONES:
        return BACKBONES[name].pixels
    import timm

    known = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    scales: dict[tuple[float, ...], Literal["imagenet", "half", "clip"]] = {
        (0.485, 0.456, 0.406): "imagenet",
        (0.5, 0.5, 0.5): "half",
        (0.481, 0.458, 0.408): "clip",
    }
    mean = (0.485, 0.456, 0.406) if known is None else tuple(round(x, 3) for x in known.mean)
    if mean not in scales:
        raise InputError(
            f"the weights of {name} expect colours with the mean {mean}; say which data.pixels= comes near."
        )
    return scales[mean]


def build(
    name: str,
    channels: int,
    levels: Sequence[Level] = ("high",),
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    last_stride: int = 2,
) -> tuple[nn.Module, Features, dict[str, str]]:
    """A network without classification layers and without what lies above the highest of `levels`, and how it is run.

    name        a row of BACKBONES, or timm:NAME
    channels    of the pictures; other than 3, the first convolution is a new one
    levels      low to high. ResNet: layer2, layer3, layer4; the small ones: layer1, layer2, layer3. GoogLeNet:
                inception4a, inception4d, inception5b, where its three classifiers sit. ConvNeXt, Swin: stages 2, 3,
                4. small_cnn: its last three convolutions. timm: the last three stages. Vision transformers: high only
    pretrained  the weights of torchvision or timm are fetched, or found where they were fetched to
    weights     a file of weights, see weights.fit
    last_stride of a ResNet's last stage: 1 makes its maps twice as high and wide

    The third result says which weights were loaded, with their SHA-256 (of the file, or, for timm's, of the tensors);
    it is empty for random ones. Raises InputError for what is unknown, does not fit together or cannot be fetched.
    """
    if name not in BACKBONES and not name.startswith("timm:"):
        known = [*BACKBONES, "timm:NAME"]
        raise InputError(f"model.backbone: '{name}' is not a backbone{nearest(name, known)} Known: {', '.join(known)}.")
    row = BACKBONES.get(name)
    if pretrained and weights:
        raise InputError("model.pretrained and model.weights are both given; the network can start from one of them.")
    if pretrained and row and row.pretrained is None:
        raise InputError(
            f"model.pretrained: there are no pretrained weights of {name}; set model.pretrained=false, or use "
            "model.backbone=resnet18."
        )
    if pretrained and channels != 3:
        raise InputError("model.pretrained: the ImageNet weights are for colour pictures; set model.pretrained=false.")
    if last_stride != 2 and not (row and row.ends == _RESNET and "high" in levels):
        raise InputError(f"model.last_stride={last_stride} is for level high of resnet18 to resnet101; leave it at 2.")
    if row is None:
        return _timm(name, channels, tuple(levels), pretrained, weights)
    if len(row.widths) == 1 and tuple(levels) != ("high",):
        raise _only_high(name, levels)
    network = _network(row, channels)
    origin: dict[str, str] = {}
    if pretrained:
        origin = _fetch(row, network)
    elif weights:
        origin = _from_file(weights, network, name)
    if last_stride == 1:
        _widen(network)
    if not row.ends:
        return network, Tokens(row), origin
    return network, Maps(row, _shorten(row, network, levels[-1]), tuple(levels)), origin


def _only_high(name: str, levels: Sequence[Level]) -> InputError:
    return InputError(f"model.levels: {name} has level high only, got {','.join(levels)}.")


def _network(row: Backbone, channels: int) -> nn.Module:
    """The network with random weights. Its classification layer is drawn first and then taken off."""
    if row.name == "small_cnn":
        return _small_cnn(channels)
    if row.name in _SMALL_RESNETS:
        return _small_resnet(channels, _SMALL_RESNETS[row.name])
    from torchvision import models

    more = {"aux_logits": False, "init_weights": True} if row.name == "googlenet" else {}
    network: nn.Module = models.get_model(row.name, weights=None, **more)
    if channels != 3:
        _replace_first(network, channels)
    for head in ("fc", "head", "heads"):
        if hasattr(network, head):
            delattr(network, head)
    if row.norm:  # ConvNeXt's norm stands among its classification layers
        network.classifier = cast(nn.Sequential, network.classifier)[:1]
    return network


def _small_cnn(channels: int) -> nn.Module:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for width in (32, 64, 128, 256):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if blocks else []
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        blocks[f"block{len(blocks) + 1}"] = nn.Sequential(*layers)
        channels = width
    return nn.Sequential(blocks)


class _Block(nn.Module):
    """Two convolutions of 3 x 3 and a way past them, to `width` channels.

    Where the channels become twice as many, the first convolution halves the map, and the way past takes every second
    row and column and adds maps of zeros: it has no parameters (He et al., option A).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stride, self.more = width // channels, width - channels
        self.conv1 = nn.Conv2d(channels, width, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        past = functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(maps))))) + past)


def _small_resnet(channels: int, blocks: int) -> nn.Module:
    """The residual network of 6 n + 2 layers for pictures of 32 x 32, n `blocks` in each of three stages.

    Its parts have the names that they have in the larger ones. Convolutions start from normal numbers of variance
    2 / (9 c), c being the channels that they take (He et al., ICCV 2015, arXiv:1502.01852, eq. 10).

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. arXiv:1512.03385
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(inplace=True)
    )
    before = 16
    for stage, width in enumerate((16, 32, 64), 1):
        first = _Block(before, width)
        parts[f"layer{stage}"] = nn.Sequential(first, *(_Block(width, width) for _ in range(blocks - 1)))
        before = width
    network = nn.Sequential(parts)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return network


def _replace_first(network: nn.Module, channels: int) -> None:
    name, old = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    above, _, last = name.rpartition(".")
    size, stride, padding = (cast(tuple[int, int], x) for x in (old.kernel_size, old.stride, old.padding))
    new = nn.Conv2d(channels, old.out_channels, size, stride, padding, bias=old.bias is not None)
    setattr(network.get_submodule(above), last, new)


def _widen(network: nn.Module) -> None:
    """Stride 1 in a ResNet's last stage: in its first block's convolution that had 2, and in the way past it."""
    for part in cast(nn.Sequential, network.layer4)[0].modules():
        if isinstance(part, nn.Conv2d):
            part.stride = (1, 1)


def _shorten(row: Backbone, network: nn.Module, highest: Level) -> tuple[str, ...]:
    """Takes off what lies above a level; the names of the parts that are left, in the order that they run in."""
    order: list[str] = []
    for name, part in network.named_children():
        if name in ("permute", "avgpool"):
            break
        order += [f"{name}.{below}" for below, _ in part.named_children()] if name == "features" else [name]
    order = order[: order.index(row.ends[LEVELS.index(highest)]) + 1]
    kept = {name.partition(".")[0] for name in (*order, row.norm if row.norm and highest == "high" else "")}
    for name, part in list(network.named_children()):
        if name not in kept:
            delattr(network, name)
        elif name == "features":
            network.features = cast(nn.Sequential, part)[: sum(x.startswith("features.") for x in order)]
    return tuple(order)


def _fetch(row: Backbone, network: nn.Module) -> dict[str, str]:
    from torchvision import models

    chosen = models.get_model_weights(row.name)[row.pretrained]
    try:
        state = chosen.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: what came is not what was asked for
        raise _not_fetched(row.name, error) from None
    weight_files.fit(network, state, f"torchvision's {chosen}", row.name)
    path = Path(torch.hub.get_dir(), "checkpoints", chosen.url.rpartition("/")[2])
    return {"weights": f"torchvision {chosen}", "sha256": files.checksum(path, "sha256")}


def _not_fetched(name: str, error: Exception) -> InputError:
    return InputError(
        f"model.pretrained: the weights of {name} could not be fetched ({error}); "
        "go online once, give a file with model.weights=PATH, or set model.pretrained=false."
    )


def _from_file(path: Path, network: nn.Module, name: str) -> dict[str, str]:
    weight_files.fit(network, weight_files.read(path), str(path), name)
    return {"weights": str(path), "sha256": files.checksum(path, "sha256")}


def _timm(
    name: str, channels: int, levels: tuple[Level, ...], pretrained: bool, weights: Path | None
) -> tuple[nn.Module, Features, dict[str, str]]:
    model = _timm_model(name, channels, pretrained)
    origin: dict[str, str] = {}
    if pretrained:
        tag = model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url") or name
        origin = {"weights": f"timm {tag}", "sha256": weight_files.checksum(model)}
    elif weights:
        origin = _from_file(weights, model, name)
    widths = {"high": model.num_features}
    if levels != ("high",):
        last = list(model.feature_info)[-3:]
        if not hasattr(model, "forward_intermediates") or len({stage["reduction"] for stage in last}) < 3:
            raise _only_high(name, levels)
        widths |= dict(zip(LEVELS[:2], (stage["num_chs"] for stage in last), strict=False))
    own = getattr(model, "head_hidden_size", model.num_features)
    stages = [LEVELS.index(level) - 3 for level in levels if level != "high"]
    if "high" not in levels:
        stages = model.prune_intermediate_layers(stages, prune_norm=True, prune_head=True)
    read = TimmFeatures(name, levels, tuple(stages), tuple(widths[level] for level in levels), own)
    return model, read, origin


def _timm_model(name: str, channels: int, pretrained: bool) -> Any:
    try:
        import timm
    except ImportError:
        raise InputError(f"model.backbone={name} needs timm: pip install 'metricweight[timm]'") from None
    word = name.removeprefix("timm:")
    if not timm.is_model(word):
        raise InputError(f"model.backbone: timm has no model '{word}'{nearest(word, timm.list_models())}")
    tagged = timm.list_pretrained(word.partition(".")[0] + "*")
    if "." in word and word not in tagged:
        raise InputError(f"model.backbone: timm has no weights '{word}'{nearest(word, tagged)}")
    if pretrained and not any(tag == word or tag.startswith(f"{word}.") for tag in tagged):
        raise InputError(f"model.pretrained: timm has no weights for '{word}'; set model.pretrained=false.")
    given: dict[str, Any] = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0}
    try:
        try:
            return timm.create_model(
                word, **given, dynamic_img_size=True
            )  # pictures of other sizes than it was made for
        except TypeError:  # not one that cares for their size
            return timm.create_model(word, **given)
    except (OSError, RuntimeError) as error:
        if pretrained:
            raise _not_fetched(name, error) from None
        raise


def listing() -> str:
    """All backbones as a table, a line each. Features are the F of low/middle/high with the backbone's own pooling."""
    rows = [("name", "what", "paper", "features", "pictures", "pretrained")]
    for row in BACKBONES.values():
        features = "/".join(str(width * row.fields**2) for width in row.widths)
        pictures = f"{row.size}" if row.ends else f"{row.size} only"
        pretrained = f"torchvision {row.pretrained}" if row.pretrained else "none"
        rows.append((row.name, row.what, row.paper, features, pictures, pretrained))
    rows.append(("timm:NAME", "a network of timm", "", "", "", "timm"))
    return aligned(rows)
