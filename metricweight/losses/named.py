"""The losses by their names."""

from typing import Literal

from torch import Tensor, nn

from metricweight.gradient import with_derivative
from metricweight.losses.pair import distances_and_pairs
from metricweight.pair_weights.ranked_list import ranked_list, violations
from metricweight.pairs import IndicesTuple


class RankedListLoss(nn.Module):
    """Ranked List Loss (Wang et al., CVPR 2019, arXiv:1903.03238; TPAMI 2021).

        L = 1/B sum_i sum_j ( w+_ij h+_ij + w-_ij h-_ij )
        dL/df_i = 1/B sum_j ( w+_ij - w-_ij ) u_ij,      u_ij = (f_i - f_j) / d_ij

    with the weights and violations of `pair_weights.ranked_list`, f the embeddings scaled to unit length and d
    their Euclidean distance, not squared. **The weights are constants**: an easy negative is never pulled in to
    make a hard one weigh less. Queries without violations are part of the mean and add nothing.

    margin                positives belong within alpha - margin of a query, negatives beyond alpha
    alpha                 None is 1 + margin / 2, the setting called RLL-Simpler
    positive_temperature, negative_temperature
                          how much the worst violations count for; 0 counts all the same
    balance               lambda: share of the negatives; the CVPR form L_P + L_N is twice balance = 0.5
    gallery               "fixed": an embedding moves as a query only, by its own ranked list (the paper);
                          "free": it also moves as a member of the lists of others

    Called as `loss(embeddings [B, D], labels [B], indices_tuple=None, ref_emb=None, ref_labels=None)`, like a
    loss of pytorch-metric-learning; see `losses.pair.distances_and_pairs`. Returns a scalar, in float32 at
    least. An empty batch, one class alone or no violation is zero, with zero gradient. On a collapsed batch
    the value is that of its violations (`balance * alpha` where there are negatives), but coincident pairs have
    no direction and give no gradient. Raises `InputError` where shapes or dtypes do not fit; values are not
    looked at, and a NaN in is a NaN out.
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float | None = None,
        positive_temperature: float = 0.0,
        negative_temperature: float = 10.0,
        balance: float = 0.5,
        gallery: Literal["fixed", "free"] = "fixed",
    ) -> None:
        super().__init__()
        if gallery not in ("fixed", "free"):
            raise ValueError(f"gallery is 'fixed' or 'free', got {gallery!r}.")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance is the negatives' share, from 0 to 1, got {balance}.")
        self.margin = margin
        self.alpha = alpha
        self.positive_temperature = positive_temperature
        self.negative_temperature = negative_temperature
        self.balance = balance
        self.gallery: Literal["fixed", "free"] = gallery

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        distance, (positive, negative) = distances_and_pairs(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, fixed_gallery=self.gallery == "fixed"
        )
        alpha = 1 + self.margin / 2 if self.alpha is None else self.alpha
        weights = ranked_list(
            distance,
            positive,
            negative,
            margin=self.margin,
            alpha=alpha,
            positive_temperature=self.positive_temperature,
            negative_temperature=self.negative_temperature,
            balance=self.balance,
        )
        h = violations(distance.detach(), positive, negative, margin=self.margin, alpha=alpha)
        anchors = max(len(embeddings), 1)
        value = (weights.positive * h.positive + weights.negative * h.negative).sum() / anchors
        return with_derivative(value, distance, (weights.positive - weights.negative) / anchors)

    def __repr__(self) -> str:
        return (
            f"RankedListLoss(margin={self.margin}, alpha={self.alpha}, "
            f"positive_temperature={self.positive_temperature}, "
            f"negative_temperature={self.negative_temperature}, "
            f"balance={self.balance}, gallery={self.gallery!r})"
        )
