"""From features to embeddings, and from embeddings to logits."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from metricweight.checks import InputError, nearest
from metricweight.models import backbones
from metricweight.models import pooling as pools
from metricweight.models.backbones import LEVELS, Features, Level
from metricweight.models.pooling import Pool, Pooling


class Head(nn.Module):
    """What one level puts on the backbone: the pooling of its maps, and features [B, F] to embeddings [B, D].

    pool        None: the backbone's own
    layer_norm  features to zero mean and unit variance, with nothing learned (NormSoftmax, Zhai & Wu, BMVC 2019)
    linear      None: embeddings are the features
    """

    def __init__(self, pool: Pool | None, layer_norm: bool, linear: nn.Linear | None) -> None:
        super().__init__()
        self.pool = pool
        self.layer_norm = layer_norm
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        if self.layer_norm:
            features = functional.layer_norm(features, features.shape[1:])
        return features if self.linear is None else self.linear(features)

    def extra_repr(self) -> str:
        return "layer_norm" if self.layer_norm else ""


class Embedder(nn.Module):
    """Pictures [B, C, H, W] to raw embeddings [B, L * D], levels one after another, low to high.

    Losses scale to unit length. `backbone` is torchvision's or timm's network without classification layers, under
    the names that it has there; `heads` is one Head for each level.

    levels  L
    dim     D, of one level
    origin  which weights the backbone started from, with their SHA-256; empty: random ones
    """

    def __init__(
        self,
        backbone: nn.Module,
        read: Features,
        heads: Sequence[Head],
        dim: int,
        *,
        still: Iterable[str] = (),
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """read: how the backbone is run; still: the parts of it that stay in evaluation mode."""
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.levels = len(heads)
        self.dim = dim
        self.origin = dict(origin or {})
        self._read = read
        self._still = tuple(still)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([head(x) for head, x in zip(self.heads, self._pooled(images), strict=True)], 1)

    def features(self, images: Tensor) -> Tensor:
        """Pictures [B, C, H, W] to the pooled features [B, F] of the last level, before its head."""
        return self._pooled(images)[-1]

    def _pooled(self, images: Tensor) -> list[Tensor]:
        chosen: list[Any] = [head.pool for head in self.heads]
        return self._read(self.backbone, images, chosen)

    def train(self, mode: bool = True) -> "Embedder":
        """Training mode but for frozen parts, which stay in evaluation mode: no dropout, statistics as they are."""
        super().train(mode)
        for name in self._still:
            self.backbone.get_submodule(name).eval()
        return self


def embedder(
    channels: int,
    *,
    backbone: str = "small_cnn",
    pretrained: bool = False,
    weights: Path | None = None,
    embedding_size: int | None = 64,
    levels: Sequence[Level] = ("high",),
    pooling: Pooling | None = None,
    layer_norm: bool = False,
    last_stride: int = 2,
    frozen: Sequence[str] = (),
    frozen_batch_norm: bool = False,
) -> Embedder:
    """A backbone with a head for each level.

    channels            of the pictures
    backbone, pretrained, weights, last_stride      see backbones.build
    embedding_size      D, of each level; None: the features as they are, which must then be as many at each level
    levels              depths that get an embedding each; they are concatenated low to high, however they are given
    pooling             avg, max, avg+max (their sum) or gem; None: what the backbone does
    layer_norm          see Head
    frozen              parts of the backbone, by the names of modules or parameters there, or `backbone` for all of
                        it: they get no gradient and stay in evaluation mode, so that their statistics do not move.
                        Frozen parts with nothing learned below them build no graph
    frozen_batch_norm   all batch normalisation of the backbone keeps its statistics, its scale and its offset

    Random numbers are drawn for the backbone first, then for the linear layers, low to high.
    Raises InputError for what is unknown or does not fit together.
    """
    chosen = _levels(levels)
    known = get_args(Pooling)
    if pooling is not None and pooling not in known:
        raise InputError(f"model.pooling: '{pooling}' is not a pooling{nearest(pooling, known)} {_known(known)}")
    network, read, origin = backbones.build(
        backbone, channels, chosen, pretrained=pretrained, weights=weights, last_stride=last_stride
    )
    sizes = read.sizes(own=pooling is None)
    if embedding_size is None and len(set(sizes)) > 1:
        raise InputError(
            f"model.embedding_size: the levels of {backbone} have {', '.join(map(str, sizes))} features; "
            "embeddings of several levels must be of one size, so give model.embedding_size."
        )
    dim = embedding_size or sizes[0]
    heads = [
        Head(pools.build(pooling), layer_norm, None if embedding_size is None else nn.Linear(size, embedding_size))
        for size in sizes
    ]
    still = _freeze(network, backbone, frozen)
    if frozen_batch_norm:
        still |= _freeze_batch_norm(network, backbone)
    return Embedder(network, read, heads, dim, still=sorted(still), origin=origin)


def _known(names: Iterable[str]) -> str:
    return f"Known: {', '.join(names)}."


def _levels(levels: Sequence[Level]) -> list[Level]:
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"model.levels: '{level}' is not a level{nearest(level, LEVELS)} {_known(LEVELS)}")
    if not levels or len(set(levels)) < len(levels):
        raise InputError(f"model.levels: give each level once, of {','.join(LEVELS)}; got [{','.join(levels)}].")
    return sorted(levels, key=LEVELS.index)


def _in(part: str, name: str) -> bool:
    """Whether a module or parameter is the part, or lies in it."""
    return name == part or name.startswith(f"{part}.")


def _parts(network: nn.Module) -> list[str]:
    """The names of all parameters, and of the modules that they lie in, in order."""
    words = [name.split(".") for name, _ in network.named_parameters()]
    return list(dict.fromkeys(".".join(word[:i]) for word in words for i in range(1, len(word) + 1)))


def _freeze(network: nn.Module, name: str, frozen: Sequence[str]) -> set[str]:
    """Takes parts out of the learning; the names of the modules that are now to stay in evaluation mode."""
    known = ["backbone", *_parts(network)]
    for part in frozen:
        if part not in known:
            top = dict.fromkeys(word.partition(".")[0] for word in known)
            raise InputError(f"model.frozen: {name} has no part '{part}'{nearest(part, known)} {_known(top)}")
    if "backbone" in frozen:
        network.requires_grad_(False)
        return {""}
    for key, parameter in network.named_parameters():
        if any(_in(part, key) for part in frozen):
            parameter.requires_grad_(False)
    return {key for key, _ in network.named_modules() if any(_in(part, key) for part in frozen)}


def _freeze_batch_norm(network: nn.Module, name: str) -> set[str]:
    found = {key: part for key, part in network.named_modules() if isinstance(part, _BatchNorm)}
    if not found:
        raise InputError(f"model.frozen_batch_norm: {name} has no batch normalisation; leave it at false.")
    for part in found.values():
        part.requires_grad_(False)
    return set(found)


def classifier(embedding_size: int, classes: int) -> nn.Linear:
    """Embeddings [B, D] to logits [B, C], with a bias. Embeddings count with the length that they have."""
    return nn.Linear(embedding_size, classes)


def rates(parts: Mapping[str, nn.Module], factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser, each with the factor of its learning rate.

    parts       what is learned, by name, such as backbone, head, classifier, attention
    factors     for a part, or for a part of the backbone by the name of its module, such as layer4 or layer4.0; of
                several that fit a parameter the longest counts, and a part of `parts` the least

    Each group is {"params": [...], "factor": f, "name": key}, for torch's optimisers to keep. The first holds all that
    has no factor, by the name `default`; parameters keep the order of `parts`. Frozen parameters are left out, and
    so are those of factor 0: they are not learned, though they still get a gradient.
    Raises InputError for a key that fits nothing that is learned.
    """
    learned = [
        (part, name, parameter)
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    known = [*parts, *(_parts(parts["backbone"]) if "backbone" in parts else [])]
    for key in factors:
        if key not in known:
            raise InputError(
                f"optimizer.factors: nothing is called '{key}'{nearest(key, known)} {_known(parts)[:-1]}, "
                "and the parts of the backbone."
            )
        if not any(_fits(key, part, name, parts) for part, name, _ in learned):
            raise InputError(f"optimizer.factors: '{key}' has nothing that is learned; leave its factor out.")
    groups: dict[str, list[nn.Parameter]] = {"default": [], **{key: [] for key in factors}}
    for part, name, parameter in learned:
        fitting = [key for key in factors if _fits(key, part, name, parts)]
        groups[max(fitting, key=lambda key: (key not in parts, len(key)), default="default")].append(parameter)
    factor = {"default": 1.0, **factors}
    return [
        {"params": group, "factor": factor[key], "name": key} for key, group in groups.items() if group and factor[key]
    ]


def _fits(key: str, part: str, name: str, parts: Mapping[str, nn.Module]) -> bool:
    return key == part if key in parts else part == "backbone" and _in(key, name)
