"""From features to embeddings."""

from torch import nn

from metricweight.models import backbones


def embedder(backbone: backbones.Backbone, channels: int, embedding_size: int, pretrained: bool = False) -> nn.Module:
    """Pictures [B, C, S, S] to embeddings [B, D]: a backbone and one linear layer. Losses scale to unit length."""
    network, features = backbones.build(backbone, channels, pretrained)
    return nn.Sequential(network, nn.Linear(features, embedding_size))
