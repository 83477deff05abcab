"""The one list of all losses. Settings, help, documentation and tests read it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from metricweight.emphasis import functions as weighting
from metricweight.losses.example import DerivativeLoss, GradientWeighting, derivative_loss
from metricweight.losses.target import BootstrappingLoss, ConfidencePenaltyLoss, LabelSmoothingLoss, ProSelfLCLoss
from metricweight.pair_weights.binomial_deviance import BinomialDevianceLoss
from metricweight.pair_weights.class_aware_attention import ClassAwareAttention
from metricweight.pair_weights.contrastive import ContrastiveLoss
from metricweight.pair_weights.general_robust import GeneralRobustLoss
from metricweight.pair_weights.instance_cross_entropy import InstanceCrossEntropyLoss
from metricweight.pair_weights.lifted_structure import LiftedStructureLoss
from metricweight.pair_weights.multi_similarity import MultiSimilarityLoss
from metricweight.pair_weights.n_pair import NPairLoss
from metricweight.pair_weights.online_soft_mining import OnlineSoftMiningLoss
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pair_weights.ranked_list import RankedListLoss
from metricweight.pair_weights.triplet import TripletLoss

__all__ = [
    "LOSSES",
    "BinomialDevianceLoss",
    "BootstrappingLoss",
    "ClassAwareAttention",
    "ConfidencePenaltyLoss",
    "ContrastiveLoss",
    "DerivativeLoss",
    "GeneralRobustLoss",
    "GradientWeighting",
    "InstanceCrossEntropyLoss",
    "LabelSmoothingLoss",
    "LiftedStructureLoss",
    "Loss",
    "MultiSimilarityLoss",
    "NPairLoss",
    "OnlineSoftMiningLoss",
    "PairLoss",
    "ProSelfLCLoss",
    "RankedListLoss",
    "TripletLoss",
    "derivative_loss",
]


@dataclass(frozen=True)
class Loss:
    """One row.

    name     what settings call it, as in `loss.name=ranked_list`
    kind     what it weighs: "pair" of embeddings, "example" by its logits, or "target" where logits are pulled to
             another target than the label
    paper    arXiv number, or where it appeared
    weights  its weights, or its target, in a line
    make     what makes it, a loss or, for an example, its weighting; the arguments are the settings beside the name
    """

    name: str
    kind: Literal["pair", "example", "target"]
    paper: str
    weights: str
    make: Callable[..., Any]

    def build(self, **arguments: Any) -> nn.Module:
        """The loss: called with embeddings [B, D] (pair) or logits [B, C], and labels [B]."""
        made: Any = self.make(**arguments)
        return DerivativeLoss(made) if self.kind == "example" else made

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its arguments, with what they are if nobody says."""
        return {p.name: p.default for p in inspect.signature(self.make).parameters.values()}


LOSSES: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss("ranked_list", "pair", "1903.03238", "exp(T violation), share of its row", RankedListLoss),
        Loss("online_soft_mining", "pair", "1811.01459", "exp(-d^2/sigma^2) d; (margin - d)^2", OnlineSoftMiningLoss),
        Loss(
            "instance_cross_entropy",
            "pair",
            "1911.09976",
            "scale (1 - p), p the share of the positive",
            InstanceCrossEntropyLoss,
        ),
        Loss("multi_similarity", "pair", "1904.06627", "exp(-a s), exp(b s): share of 1 + row", MultiSimilarityLoss),
        Loss("contrastive", "pair", "CVPR 2006", "the violation d or margin - d", ContrastiveLoss),
        Loss("triplet", "pair", "1703.07737", "1, farthest positive and nearest negative", TripletLoss),
        Loss("lifted_structure", "pair", "1511.06452", "softmax d; softmax -d", LiftedStructureLoss),
        Loss("n_pair", "pair", "NIPS 2016", "1 - p, p the share of the positive", NPairLoss),
        Loss("binomial_deviance", "pair", "1407.4979", "sigmoid of how wrong s is", BinomialDevianceLoss),
        Loss("general_robust", "pair", "1701.03077", "influence of the violation h", GeneralRobustLoss),
        Loss("cce", "example", "", "2 (1 - p)", weighting.CrossEntropy),
        Loss("mae", "example", "1903.12141", "4 p (1 - p)", weighting.MeanAbsoluteError),
        Loss("mse", "example", "1905.11233", "4 p (1 - p)^2", weighting.MeanSquaredError),
        Loss("gce", "example", "1805.07836", "2 p^q (1 - p)", weighting.GeneralisedCrossEntropy),
        Loss("sce", "example", "1908.06112", "2 (1 - p) (alpha - beta A p)", weighting.SymmetricCrossEntropy),
        Loss("imae", "example", "1903.12141", "exp(T p (1 - p))", weighting.imae),
        Loss("dm", "example", "1905.11233", "exp(beta p^l (1 - p)), l = mode/(1 - mode)", weighting.Emphasis),
        Loss("normal", "example", "1905.11233", "exp(-beta p (p - 2 mode))", weighting.Normal),
        Loss("exponential", "example", "1905.11233", "exp(beta (1 - p))", weighting.Exponential),
        Loss("beta", "example", "1905.11233", "p^(a-1) (1 - p)^(eta-1)", weighting.Beta),
        Loss(
            "feature_learning",
            "example",
            "1911.09143",
            "2 (1 - p) v / mean v, v = normal(p)",
            weighting.FeatureLearningAttention,
        ),
        Loss("label_smoothing", "target", "1512.00567", "(1 - e) q + e/C", LabelSmoothingLoss),
        Loss("confidence_penalty", "target", "1701.06548", "(1 - e) q - e p", ConfidencePenaltyLoss),
        Loss("bootstrapping", "target", "1412.6596", "(1 - e) q + e p", BootstrappingLoss),
        Loss("proselflc", "target", "2005.03788", "(1 - e) q + e p, e = g(t) l(p)", ProSelfLCLoss),
    )
}
