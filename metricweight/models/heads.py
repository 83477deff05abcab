"""From features to embeddings, and from embeddings to logits."""

from typing import Literal

from torch import nn

from metricweight.models import backbones

Level = Literal["low", "middle", "high"]
Pooling = Literal["avg", "max", "avg+max", "gem"]


def embedder(backbone: backbones.Backbone, channels: int, embedding_size: int, pretrained: bool = False) -> nn.Module:
    """Pictures [B, C, S, S] to embeddings [B, D]: a backbone and one linear layer. Losses scale to unit length."""
    network, features = backbones.build(backbone, channels, pretrained)
    return nn.Sequential(network, nn.Linear(features, embedding_size))


def classifier(embedding_size: int, classes: int) -> nn.Linear:
    """Embeddings [B, D] to logits [B, C], with a bias. Embeddings count with the length that they have."""
    return nn.Linear(embedding_size, classes)
