"""Value and exact gradient of any loss on pairs, a block of rows at a time: no [B, G] matrix is kept.

A loss says what it makes of a block (`Terms`); this file forms the block's distances or similarities, adds up what
the loss says of them, and takes the derivative back to the embeddings while the block is still in the cache. It is
one operator, `torch.ops.metricweight.pairs`, whose backward pass only multiplies.

    d_ij = ||f_i - g_j||          dL/df_i = sum_j W_ij (f_i - g_j) / d_ij          W = dL/dd = w+ - w-
    s_ij = f_i . g_j              dL/df_i = sum_j W_ij g_j                         W = dL/ds = w- - w+

**Small distances.** d^2 = |f|^2 + |g|^2 - 2 f.g loses every digit when d is small, and so does the sum above. Both
are formed about the gallery's mean, and pairs with d^2 below a hundredth of |f|^2 + |g|^2 (`_CLOSE`) are taken out
and computed from f_i - g_j. On a GPU, which counting them would make wait, those are the 16 nearest of each row
(`_NEAREST`); of the others, those within the rounding of the products coincide, and those just above have few digits.

**Coincident embeddings** have a distance, 0, but no direction. Where such a pair is of two classes it is moved along
r(y_i) - r(y_j), r a fixed pseudo-random vector of each label: so a collapsed batch comes apart, the members of a
class together, the same on every machine and in every order of the batch.
"""

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.library import custom_op

from metricweight.pairs import PairWeights
from metricweight.similarity import full_precision

_CLOSE = 1e-2
_NEAREST = 16
_ENTRIES = 2**20  # of a block
_DIFFERENCES = 2**20  # numbers in a list of f_i - g_j
_FEW = 64  # one pair in so many is cheaper to list than to multiply

Listed = tuple[Tensor, Tensor]  # rows and columns of some pairs


class Compared(NamedTuple):
    """A batch and its gallery.

    query, gallery              [B, D], [G, D]  float32 or float64; the same tensor where the batch is its own gallery
    labels, gallery_labels      [B], [G]
    items, gallery_items        [B], [G]  a number per item, such as the attention
    own                         the first B of the gallery are the queries, and nobody is paired with himself
    """

    query: Tensor
    gallery: Tensor
    labels: Tensor
    gallery_labels: Tensor
    items: Tensor | None
    gallery_items: Tensor | None
    own: bool


class Terms(NamedTuple):
    """What a loss makes of a block of rows.

    scores     [b, G]  each: the mining factor alone, how much a pair counts
    weights    [b, G]  each: the complete |dL/dd_ij| or |dL/ds_ij|, before it is normalised
    value      [b]     each: sum over j of the potential that has these weights as its derivative
    log_scale  [b]     each: logarithm of what the row's scores were divided by, so that nothing overflows
    """

    scores: PairWeights
    weights: PairWeights
    value: PairWeights
    log_scale: PairWeights | None = None


class Streamed(Protocol):
    """What is asked of a loss."""

    coordinate: ClassVar[Literal["distance", "similarity"]]
    normalised: ClassVar[Literal["row", "batch", "no"]]
    symmetric: ClassVar[bool]
    block_rows: int | None

    @property
    def anchors(self) -> str: ...

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> Terms: ...

    def shares(self, pairs: int | Tensor) -> tuple[float | Tensor, float | Tensor]: ...


@custom_op("metricweight::pairs", mutates_args=())
def pairs(
    query: Tensor,
    gallery: Tensor | None,
    labels: Tensor,
    gallery_labels: Tensor | None,
    items: Tensor | None,
    gallery_items: Tensor | None,
    own: bool,
    chosen: Tensor | None,
    moves_gallery: bool,
    loss: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch against its gallery, and its gradients: [], [B, D] and [G, D].

    query, ... own  as in `Compared`; without a gallery the batch is its own
    chosen          [B, G]  bool: the candidates; None: all pairs
    moves_gallery   the gallery gets a gradient too; where it is the batch, that is added to the batch's
    loss            what `key` made of a `Streamed`

    Only the value is differentiated; the gradients come out because the backward pass needs them.
    """
    if gallery is None or gallery_labels is None:
        compared = Compared(query, query, labels, labels, items, items, own)
    else:
        compared = Compared(query, gallery, labels, gallery_labels, items, gallery_items, own)
    with full_precision(query.device.type):
        return _stream(_loss(loss), compared, chosen, moves_gallery)


@pairs.register_fake
def _(
    query: Tensor, gallery: Tensor | None, labels: Any, gallery_labels: Any, items: Any, gallery_items: Any,
    own: bool, chosen: Any, moves_gallery: bool, loss: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    moved = gallery if gallery is not None and moves_gallery else query[:0]
    return query.new_empty(()), torch.empty_like(query), torch.empty_like(moved)


@torch.no_grad()
def dense(loss: Streamed, compared: Compared) -> tuple[PairWeights, PairWeights]:
    """Scores and weights of all pairs, [B, G] each, as `pairs` uses them block by block: for miners."""
    with full_precision(compared.query.device.type):
        space = _space(loss, compared)
        blocks = (_block(loss, compared, space, None, rows)[2] for rows in _blocks(loss, compared))
        found = [(terms.scores, terms.weights) for terms in blocks]
    empty = compared.query.new_zeros(0, len(compared.gallery))
    scores, weights = (
        PairWeights(*(torch.cat([empty, *(block[part][side] for block in found)]) for side in (0, 1)))
        for part in (0, 1)
    )
    return scores, weights


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.moves_gallery = inputs[1] is not None and inputs[8]
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    to_query, to_gallery = ctx.saved_tensors
    return _scaled(to_query, grad), _scaled(to_gallery, grad) if ctx.moves_gallery else None, *(None,) * 8


@custom_op("metricweight::scaled", mutates_args=())
def _scaled(derivative: Tensor, factor: Tensor) -> Tensor:
    """The backward pass of `pairs`: an operator of its own, so that a second derivative is refused and not wrong."""
    return derivative * factor


@_scaled.register_fake
def _(derivative: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(derivative)


def _no_second_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError(
        "losses on pairs have no second derivative: their weights are constants, and the first derivative is formed "
        "with the value. scale_gradient can be differentiated twice."
    )


_scaled.register_autograd(_no_second_derivative)
pairs.register_autograd(_backward, setup_context=_save)


def key(loss: object, arguments: dict[str, int | float | str | None]) -> str:
    """A loss as text that `pairs` can read: where its class is, and its arguments."""
    return f"{type(loss).__module__}:{type(loss).__qualname__}:{arguments!r}"


def _loss(text: str) -> Streamed:
    module, name, arguments = text.split(":", 2)
    found: Any = sys.modules.get(module) or import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return _made(found, arguments)


@lru_cache(maxsize=256)
def _made(kind: Any, arguments: str) -> Streamed:
    """By the class itself, so that a notebook's new definition is not the old one."""
    return kind(**ast.literal_eval(arguments))  # type: ignore[no-any-return]


def _stream(
    loss: Streamed, compared: Compared, chosen: Tensor | None, moves_gallery: bool
) -> tuple[Tensor, Tensor, Tensor]:
    query, gallery = compared.query, compared.gallery
    itself = gallery is query
    to_gallery = query.new_zeros(0, query.shape[1])
    if not len(query) or not len(gallery):
        moved = torch.zeros_like(gallery) if moves_gallery and not itself else to_gallery
        return query.new_zeros(()), torch.zeros_like(query), moved
    twice = itself and moves_gallery and loss.symmetric and chosen is None  # W is its own transpose
    shares = loss.shares(_pairs(compared, chosen))
    space = _space(loss, compared)
    sums = [_Sum(query, gallery, moves_gallery and not twice) for _ in range(1 + (loss.normalised == "batch"))]
    for rows in _blocks(loss, compared):
        x, positive, terms = _block(loss, compared, space, chosen, rows)
        if loss.normalised == "batch":
            _add_pairs(sums, terms, space, x, positive, rows)
        else:
            space.add_gradient(sums[0], _add_rows(sums[0], terms, loss, shares), x, rows)
        del x, positive, terms  # before those of the next block
    first, *others = sums
    for share, total in zip(shares if loss.normalised == "batch" else (1.0,), sums, strict=True):
        total.multiply(share / torch.where(total.mass > 0, total.mass, 1))
    for other in others:
        first.value += other.value
        first.to_query += other.to_query
        if first.to_gallery is not None and other.to_gallery is not None and not itself:
            first.to_gallery += other.to_gallery
    if twice:
        first.to_query *= 2
    return first.value, first.to_query, to_gallery if first.to_gallery is None or itself else first.to_gallery


def _pairs(compared: Compared, chosen: Tensor | None) -> int | Tensor:
    """How many pairs are compared; (i, j) and (j, i) of one batch are one."""
    count, size = len(compared.query), len(compared.gallery)
    if chosen is None:
        return count * size - compared.own * count * (count + 1) // 2
    listed = chosen.sum(dtype=compared.query.dtype)
    if not compared.own:
        return listed
    return listed - (chosen[:, :count].sum() + chosen.diagonal().sum()).to(listed) / 2


def _space(loss: Streamed, compared: Compared) -> "_Distances | _Similarities":
    return _Distances(compared) if loss.coordinate == "distance" else _Similarities(compared)


def _blocks(loss: Streamed, compared: Compared) -> Iterator[slice]:
    count, size = len(compared.query), len(compared.gallery)
    height = loss.block_rows or max(_ENTRIES // max(size, 1), 16)
    return (slice(i, min(i + height, count)) for i in range(0, count, height))


def _block(
    loss: Streamed,
    compared: Compared,
    space: "_Distances | _Similarities",
    chosen: Tensor | None,
    rows: slice,
) -> tuple[Tensor, Tensor, Terms]:
    """The distances or similarities of a block, its positive pairs, and what the loss makes of it."""
    x = space.block(rows)
    positive = numbers(compared.labels[rows, None] == compared.gallery_labels, x)
    negative = 1 - positive
    if compared.own:
        positive.diagonal(rows.start).fill_(0)
    if chosen is not None:
        candidates = numbers(chosen[rows], x)
        positive *= candidates
        negative *= candidates
    items = None if compared.items is None else compared.items[rows]
    return x, positive, loss.terms(x, positive, negative, items, compared.gallery_items)


def numbers(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [b, G] as 1 and 0 in the dtype of `like`, with which arithmetic is several times as fast as with bool."""
    return mask.contiguous().view(torch.uint8).to(like.dtype)


def only(x: Tensor, mask: Tensor, otherwise: float) -> Tensor:
    """`x` where the mask, of 1 and 0, is 1, and elsewhere a number as large as finfo.max or finfo.min."""
    return torch.add(x, 1 - mask, alpha=otherwise)


def exponentials(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(x - top) where the mask is 1, [b, G], its row sums and top, the row's largest there, [b, 1]. A row without
    any is all zeros, its sum finfo.tiny and its top finfo.min."""
    masked = only(x, mask, torch.finfo(x.dtype).min)
    top = masked.amax(1, keepdim=True)
    found = exponential_(masked.sub_(top)).mul_(mask)
    return found, found.sum(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny), top


def exponential_(x: Tensor) -> Tensor:
    """exp(x), in place, for x measured from a row's largest: below exp(-80), in float64 exp(-700), nothing counts, and
    exp is several times slower there. So what is not meant to count must be set to 0 afterwards."""
    return x.clamp_(min=-80 if x.dtype == torch.float32 else -700).exp_()


class _Sum:
    """What the blocks add up to: a value and its gradients, and the mass that they are divided by in the end."""

    def __init__(self, query: Tensor, gallery: Tensor, moves_gallery: bool) -> None:
        self.value, self.mass = query.new_zeros(()), query.new_zeros(())
        self.log_unit = query.new_full((), -torch.inf)  # of everything here
        self.to_query = torch.zeros_like(query)
        self.to_gallery: Tensor | None = None
        if moves_gallery:
            self.to_gallery = self.to_query if gallery is query else torch.zeros_like(gallery)

    def multiply(self, factor: Tensor) -> None:
        """The value and its gradients."""
        self.value *= factor
        self.to_query *= factor
        if self.to_gallery is not None and self.to_gallery is not self.to_query:
            self.to_gallery *= factor

    def in_its_unit(self, log_mass: Tensor) -> Tensor:
        """Masses of rows [b] in a unit that none overflows; what has been summed so far is converted to it."""
        lowest = torch.finfo(log_mass.dtype).min
        unit = torch.maximum(self.log_unit, log_mass.amax()).clamp(min=lowest)
        factor = (self.log_unit - unit).exp()
        self.multiply(factor)
        self.mass *= factor
        self.log_unit = unit
        return (log_mass - unit).exp()


def _add_pairs(
    sums: list[_Sum], terms: Terms, space: "_Distances | _Similarities", x: Tensor, positive: Tensor, rows: slice
) -> None:
    """Normalised over the batch: positives and negatives have a sum each. Positives are few, as a rule: then they are
    added one by one."""
    for total, value, scores in zip(sums, terms.value, terms.scores, strict=True):
        total.value += value.sum()
        total.mass += scores.sum()
    listed = positive.nonzero(as_tuple=True) if _may_count(x) else ()
    if listed and len(listed[0]) * _FEW <= positive.numel():
        space.add_listed(sums[0], terms.weights.positive, listed, rows)  # type: ignore[arg-type]
    else:
        space.add_gradient(sums[0], terms.weights.positive, x, rows)
    space.add_gradient(sums[1], terms.weights.negative.neg(), x, rows)


def _add_rows(total: _Sum, terms: Terms, loss: Streamed, shares: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Normalised by row, or not at all; then a mean over the rows. Returns the derivative of each entry."""
    (positive, negative), value = terms.weights, terms.value
    anchor = torch.ones_like(value.positive)
    if loss.normalised == "row":
        masses = [scores.sum(1) for scores in terms.scores]
        if loss.anchors == "released":
            scales = terms.log_scale or (torch.zeros_like(masses[0]),) * 2
            logs = [mass.log() + scale for mass, scale in zip(masses, scales, strict=True)]
            anchor = total.in_its_unit(torch.logaddexp(*logs))
        pull, push = (
            anchor * share / torch.where(mass > 0, mass, 1) for mass, share in zip(masses, shares, strict=True)
        )
    else:
        pull, push = (anchor * share for share in shares)
    total.value += (pull * value.positive + push * value.negative).sum()
    total.mass += anchor.sum()
    return (positive * pull[:, None]).addcmul_(negative, push[:, None], value=-1)


class _Similarities:
    """s_ij = f_i . g_j"""

    def __init__(self, compared: Compared) -> None:
        self.query, self.gallery = compared.query, compared.gallery

    def block(self, rows: slice) -> Tensor:
        return self.query[rows] @ self.gallery.T

    def add_gradient(self, total: _Sum, w: Tensor, similarity: Tensor, rows: slice) -> None:
        """Adds sum_j W_ij ds_ij for all of a block's pairs; `w` is W with its sign turned."""
        total.to_query[rows].addmm_(w, self.gallery, alpha=-1)
        if total.to_gallery is not None:
            total.to_gallery.addmm_(w.T, self.query[rows], alpha=-1)

    def add_listed(self, total: _Sum, w: Tensor, listed: Listed, rows: slice) -> None:
        """The same for some of them."""
        query = self.query[rows]
        for row, column in _some_at_a_time(listed, query):
            factor = w[row, column][:, None]
            total.to_query[rows].index_add_(0, row, factor * self.gallery[column], alpha=-1)
            if total.to_gallery is not None:
                total.to_gallery.index_add_(0, column, factor * query[row], alpha=-1)


class _Distances:
    """d_ij = ||f_i - g_j||, about the gallery's mean, small ones from the differences."""

    def __init__(self, compared: Compared) -> None:
        query, gallery = self.exact = compared.query, compared.gallery
        self.labels = compared.labels, compared.gallery_labels
        self.own = compared.own
        centre = gallery.mean(0)
        self.query = query - centre
        self.gallery = self.query if gallery is query else gallery - centre
        self.square = self.query.square().sum(1), self.gallery.square().sum(1)
        self.close: Listed  # the block's close pairs

    def block(self, rows: slice) -> Tensor:
        sizes = self.square[0][rows, None] + self.square[1]
        squared = torch.addmm(sizes, self.query[rows], self.gallery.T, alpha=-2)
        if self.own:
            squared.diagonal(rows.start).fill_(4)  # not looked at
        if _may_count(squared):
            apart = sizes.mul_(-_CLOSE).add_(squared)
            near = (apart.amin(1) <= 0).nonzero()[:, 0]
            row, column = (apart[near] <= 0).nonzero(as_tuple=True)
            self.close = near[row], column
        else:
            column = squared.topk(min(_NEAREST, squared.shape[1]), largest=False).indices
            row = torch.arange(len(column), device=column.device).repeat_interleave(column.shape[1])
            self.close = row, column.flatten()
            squared = squared.masked_fill_(squared <= sizes.mul_(8 * torch.finfo(sizes.dtype).eps), 0)
        for at in _some_at_a_time(self.close, self.query):
            squared[at] = self._difference(at, rows).square().sum(1)
        return squared.sqrt_()

    def add_gradient(self, total: _Sum, w: Tensor, distance: Tensor, rows: slice) -> None:
        """Adds sum_j W_ij dd_ij for all of a block's pairs; `w` is W, and is used up."""
        self.add_listed(total, w, self.close, rows)
        query = self.query[rows]
        if not _may_count(w):
            w[self.close] = 0
            self._add_coincident(total, w * (distance == 0), rows)
            distance = torch.where(distance > 0, distance, torch.inf)
        coefficient = w.div_(distance)
        coefficient[self.close] = 0
        total.to_query[rows].addcmul_(coefficient.sum(1, keepdim=True), query).addmm_(
            coefficient, self.gallery, alpha=-1
        )
        if total.to_gallery is not None:
            total.to_gallery.addcmul_(coefficient.sum(0)[:, None], self.gallery).addmm_(coefficient.T, query, alpha=-1)

    def add_listed(self, total: _Sum, w: Tensor, listed: Listed, rows: slice) -> None:
        """The same for some of them, from their differences."""
        for at in _some_at_a_time(listed, self.query):
            pull = w[at][:, None] * self._direction(at, rows)
            total.to_query[rows].index_add_(0, at[0], pull)
            if total.to_gallery is not None:
                total.to_gallery.index_add_(0, at[1], pull, alpha=-1)

    def _add_coincident(self, total: _Sum, w: Tensor, rows: slice) -> None:
        """The same for coincident pairs that were not listed. Their directions have length 1 on average only."""
        query, gallery = (_outward(labels, self.query) for labels in (self.labels[0][rows], self.labels[1]))
        w = w * (self.labels[0][rows, None] != self.labels[1]) / (2 / 3 * query.shape[1]) ** 0.5
        total.to_query[rows].add_(w.sum(1, keepdim=True) * query - w @ gallery)
        if total.to_gallery is not None:
            total.to_gallery.add_(w.sum(0)[:, None] * gallery - w.T @ query)

    def _difference(self, at: Listed, rows: slice) -> Tensor:
        """f_i - g_j of listed pairs, [P, D]."""
        query, gallery = self.exact
        return query[rows][at[0]] - gallery[at[1]]

    def _direction(self, at: Listed, rows: slice) -> Tensor:
        """Unit vectors (f_i - g_j) / d_ij; where d_ij = 0, those in which two classes come apart."""
        difference = self._difference(at, rows)
        length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        labels, gallery_labels = self.labels[0][rows][at[0]], self.labels[1][at[1]]
        if _may_count(length) and not ((length[:, 0] == 0) & (labels != gallery_labels)).any():
            return difference / torch.where(length > 0, length, 1)
        apart = _outward(labels, difference) - _outward(gallery_labels, difference)
        return torch.nn.functional.normalize(torch.where(length > 0, difference / length, apart), dim=1)


def _some_at_a_time(listed: Listed, like: Tensor) -> Iterator[Listed]:
    """A list of pairs in parts, each small enough for a few [P, D]."""
    row, column = listed
    height = max(_DIFFERENCES // like.shape[1], 1)
    return ((row[i : i + height], column[i : i + height]) for i in range(0, len(row), height))


def _may_count(x: Tensor) -> bool:
    """Whether the number of listed pairs can be known without waiting for it."""
    return x.is_cpu


def _outward(labels: Tensor, like: Tensor) -> Tensor:
    """r(y): a fixed vector per label, [P, D], its entries from -1 to 1 and unrelated between labels and places."""
    mixed = labels.long()[:, None] * -7046029254386353131 + torch.arange(1, like.shape[1] + 1, device=labels.device)
    for multiplier in (-4658895280553007687, -7723592293110705685):
        mixed = (mixed ^ (mixed >> 30)) * multiplier
    return ((mixed >> 40) & 0xFFFFFF).to(like.dtype) / 2**23 - 1
