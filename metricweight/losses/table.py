"""The one list of all losses. Settings, help, documentation and tests read it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from metricweight.losses.named import RankedListLoss


@dataclass(frozen=True)
class Loss:
    """One row.

    name   what settings call it, as in `loss.name=ranked_list`
    kind   what its weights are on: "example", "pair", or "target" where the direction is revised
    build  what makes it; its arguments and their defaults are the settings beside the name
    paper  arXiv number
    """

    name: str
    kind: Literal["example", "pair", "target"]
    build: Callable[..., nn.Module]
    paper: str


_ROWS = (Loss("ranked_list", "pair", RankedListLoss, paper="1903.03238"),)

LOSSES: dict[str, Loss] = {row.name: row for row in _ROWS}
