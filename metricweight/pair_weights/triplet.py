"""Triplet losses. Schroff et al., arXiv:1503.03832; Hermans et al., arXiv:1703.07737; Wu et al., arXiv:1706.07567."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metricweight.checks import InputError
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import PairWeights
from metricweight.streaming import Terms, only

_MINING = ("batch_hard", "semi_hard", "distance_weighted")


@dataclass(eq=False, repr=False)
class TripletLoss(PairLoss):
    """A positive is to be nearer than a negative, by a margin.

        h(p, n) = [ d_ap - d_an + margin ]_+ ,      L = 1/B sum_a L(a),      P the positives of a

        batch_hard         L(a) = h(p, n)                     p the farthest positive, n the nearest negative
        semi_hard          L(a) = 1/P sum_p h(p, n_p)         n_p the nearest negative with d_an > d_ap
        distance_weighted  L(a) = 1/P sum_p sum_n q_n h(p, n)
                           q_n proportional to min( 1/q(d_an), 1/q(cutoff) ),  0 where d_an > farthest,  sum_n q_n = 1
                           q(d) = d^(dim - 2) (1 - d^2 / 4)^((dim - 3) / 2), the density of distances on the sphere

    Coordinate: distance. Not normalised: weights are complete, rows are averaged. The hinge has slope 1, so weights
    and scores are the same: the share of an anchor's violating triplets that a pair is in, at most 1 for a positive.
    **Which triplets are chosen, and q_n, are constants.** Both members of a pair move.

    margin    0.2 in the three papers
    mining    "batch_hard": Hermans et al.; where several are hardest they share the weight equally.
              "semi_hard": Schroff et al. (FaceNet); a positive without a negative between d_ap and d_ap + margin is
              left out; of equally distant negatives it is the first listed.
              "distance_weighted": Wu et al., who draw a negative per positive: this is the expectation of their draw
    dim       D of the embeddings, which distance_weighted needs
    cutoff    distance_weighted: below it all negatives are as likely, so that lambda = 1/q(cutoff); 0.5 in the
              authors' code
    farthest  distance_weighted: negatives beyond it are not drawn; 1.4 in the authors' code

    An anchor without positives, or without negatives, is zero. FaceNet squares its distances; here they are not.
    """

    coordinate: ClassVar[Literal["distance"]] = "distance"
    normalised: ClassVar[Literal["no"]] = "no"

    margin: float = 0.2
    mining: Literal["batch_hard", "semi_hard", "distance_weighted"] = "batch_hard"
    dim: int | None = None
    cutoff: float = 0.5
    farthest: float = 1.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mining not in _MINING:
            raise InputError(f"mining is one of {', '.join(_MINING)}, got {self.mining!r}.")
        if self.mining == "distance_weighted" and self.dim is None:
            raise InputError("mining='distance_weighted' needs dim, the D of the embeddings [B, D].")
        if self.dim is not None and self.dim < 2:
            raise InputError(f"dim is the D of the embeddings, at least 2, got {self.dim}.")
        if not 0 < self.cutoff < self.farthest < 2:
            raise InputError(
                f"cutoff and farthest are distances, 0 < cutoff < farthest < 2, got {self.cutoff} and {self.farthest}."
            )

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms:
        if self.mining == "batch_hard":
            pull, push, value = _batch_hard(x, positive, negative, self.margin)
        elif self.mining == "semi_hard":
            pull, push, value = _semi_hard(x, positive, negative, self.margin)
        else:
            assert self.dim is not None
            pull, push, value = _distance_weighted(
                x, positive, negative, self.margin, self.dim, self.cutoff, self.farthest
            )
        scores = PairWeights(pull, push)
        return Terms(scores, scores, PairWeights(value, torch.zeros_like(value)))

    def _space(self, embeddings: Tensor, labels: Tensor, names: str = "embeddings, labels") -> tuple[Tensor, Tensor]:
        space = super()._space(embeddings, labels, names)
        if self.dim not in (None, embeddings.shape[1]):
            raise InputError(
                f"{names.split(', ')[0]} must be [B, {self.dim}] to match dim, got {list(embeddings.shape)}."
            )
        return space


def _batch_hard(x: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    largest = torch.finfo(x.dtype).max  # not inf, for empty rows
    positives, negatives = only(x, positive, -largest), only(x, negative, largest)
    farthest, nearest = positives.amax(1, keepdim=True), negatives.amin(1, keepdim=True)
    hinge = (farthest - nearest + margin).relu_()
    pull, push = positives.eq_(farthest), negatives.eq_(nearest)
    for hardest in (pull, push):
        hardest *= hinge.sign() / hardest.sum(1, keepdim=True)
    return pull, push, hinge[:, 0]


def _semi_hard(x: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    near, order = only(x, negative, torch.finfo(x.dtype).max).sort(stable=True, dim=1)
    at = torch.searchsorted(near, x, right=True).clamp_(max=x.shape[1] - 1)
    chosen = near.gather(1, at)
    hinge = torch.where(chosen > x, x - chosen + margin, 0.0).relu_().mul_(positive)
    share = 1 / _count(positive)
    pull = hinge.sign() * share
    push = torch.zeros_like(x).scatter_add_(1, order.gather(1, at), pull)
    return pull, push, (hinge * share).sum(1)


def _distance_weighted(
    x: Tensor, positive: Tensor, negative: Tensor, margin: float, dim: int, cutoff: float, farthest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With negatives sorted, those too near for a positive are the first k: of q_n and q_n d_an, running sums do."""
    drawn = negative * (x <= farthest)
    near, order = only(x, drawn, torch.finfo(x.dtype).max).sort(1)
    q = _inverse_density(near.clamp(cutoff, farthest), dim).masked_fill_(near > farthest, torch.finfo(x.dtype).min)
    q = q.sub_(q.amax(1, keepdim=True)).exp_().masked_fill_(near > farthest, 0)
    q /= q.sum(1, keepdim=True).clamp(min=1)  # the largest is 1, unless there is none
    k = torch.searchsorted(near, x + margin)
    share = positive / _count(positive)
    mass, moment = (F.pad(part.cumsum(1), (1, 0)).gather(1, k) for part in (q, q * near))
    pull = mass * share
    value = ((x + margin) * pull - moment * share).sum(1)
    violating = F.pad(torch.zeros_like(x), (1, 0)).scatter_add_(1, k, share)  # positives, by their k
    reached = violating.flip(1).cumsum(1).flip(1)[:, 1:]
    push = torch.zeros_like(x).scatter_(1, order, q.mul_(reached))
    return pull, push, value


def _count(mask: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True).clamp_(min=1)


def _inverse_density(distance: Tensor, dim: int) -> Tensor:
    """Logarithm of 1/q(d)."""
    return (2 - dim) * distance.log() - (dim - 3) / 2 * (distance.square() / -4).log1p()
