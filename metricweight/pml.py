"""Beside pytorch-metric-learning (PML, 2.8 to 2.9), and the only file that knows it.

attach               soft weights in any loss of PML: on pairs, on terms or on examples
loss, miner          a loss or miner of metricweight as one of PML's own kind
SelfSupervisedLoss   PML's, which also takes what `loss` returns

PML's CrossBatchMemory takes its own losses only, by their names; `metricweight.memory` takes those and ours.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import BaseReducer, DoNothingReducer
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from metricweight.checks import InputError
from metricweight.gradient import scale_gradient
from metricweight.pair_weights.pair_loss import PairLoss
from metricweight.pairs import IndicesTuple, PairWeights

__all__ = ["Attachment", "MetricWeightLoss", "MetricWeightMiner", "SelfSupervisedLoss", "attach", "loss", "miner"]

_ARGUMENTS = ("embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels")  # of every loss of PML, in order
_TERMS_OF_NO_EXAMPLE = {
    losses.ProxyAnchorLoss: "its terms belong to proxies",
    losses.VICRegLoss: "its terms belong to coordinates of the embedding, or to the whole batch",
}


def attach(
    loss: nn.Module,
    *,
    pair: Any = None,
    element: Any = None,
    example: Any = None,
    strict: bool = True,
) -> "Attachment":
    """Soft weights in a loss of PML, until the returned handle is removed or its `with` block ends.

        pair       dL = sum_ij W_ij dL/dD_ij dD_ij      the loss's own derivative on its distance matrix D [B, G]
        element    L = reduce( w_k l_k )                its terms, before its reducer
        example    dL/df_i = w_i dL/df_i                the embeddings [B, D]; the value stays, as with `pair`

    pair      a miner of metricweight (the sum of both matrices of its `scores`), a tensor [B, G], or a callable
              (embeddings, labels, ref_emb, ref_labels) -> [B, G]. A miner looks at unit embeddings with our
              similarity, so its scores mean the same under every distance of PML; with this loss's derivative they
              are not the miner's own method. D_ij and D_ji are two entries. D is after `power`.
    element   [B], which weighs a term by its example or by the anchor of its pair or triplet; or [B, G], for terms
              on pairs, W_ap, or triplets, W_ap W_an. A tensor, a miner, or a callable as above. Where the reducer
              averages the terms above zero, a term of weight 0 also leaves the count.
    example   a `GradientWeighting`, a tensor [B], or a callable (embeddings, labels) -> [B]. Rows of a `ref_emb`
              that is not the batch itself are not weighed.
    strict    raise InputError after the forward pass where some of the derivative went round the weights

    B and G are what this loss is called with: the gathered batch inside DistributedLossWrapper, the memory inside
    CrossBatchMemory. Without a gallery, a callable gets `ref_emb is embeddings`, as PML does it. Weights are
    computed once a pass, without gradient, only where there is something to weigh, and are constants; they keep
    their dtype, and products are formed in the wider one. Their values are not looked at. Several attachments to
    one loss multiply. A batch without pairs and `no_grad` are no errors.

    A distance or reducer that is shared with others carries a hook only while this loss runs. A copy of the loss
    (deepcopy, or pickle where the weights can be pickled) is attached too, on its own; to take the weights off a
    copy, copy both, as in `deepcopy((loss, handle))`. Call the loss itself: `loss.forward(...)` skips all hooks.
    """
    name = type(loss).__name__
    if not isinstance(loss, BaseMetricLossFunction):
        if isinstance(getattr(loss, "loss", None), BaseMetricLossFunction):
            raise InputError(f"attach needs the loss itself: give it the .loss inside this {name}.")
        if isinstance(loss, losses.MultipleLosses):
            raise InputError("attach needs the loss itself: give it one of the .losses inside this MultipleLosses.")
        raise InputError(
            f"attach needs a loss of pytorch-metric-learning, got {name}; metricweight.pml.loss makes one of ours."
        )
    given = {"pair": pair, "element": element, "example": example}
    if all(weights is None for weights in given.values()):
        raise InputError("attach needs at least one of pair=, element= and example=.")
    for key, weights in given.items():
        if not (weights is None or isinstance(weights, Tensor) or hasattr(weights, "scores") or callable(weights)):
            raise InputError(f"{key}= takes a tensor, a module or a callable, got {type(weights).__name__}.")
    for key in ("pair", "element"):
        if isinstance(given[key], (PairLoss, BaseMiner)) and not hasattr(given[key], "miner"):
            raise InputError(
                f"{key}= takes a miner of metricweight, got {type(given[key]).__name__}; metricweight.miners.PairMiner "
                "makes one of a loss on pairs."
            )
    if _of_p_alone(example):
        raise InputError(f"example= takes weights of embeddings, got {example!r}; give GradientWeighting({example!r}).")
    if hasattr(example, "scores"):
        raise InputError(f"example= weighs examples, and {type(example).__name__} weighs pairs; give it to pair=.")
    why_not = _no_examples(loss)
    if element is not None and why_not:
        raise InputError(f"attach(element=...) makes no sense on {name}: {why_not}.")
    return Attachment(loss, pair=pair, element=element, example=example, strict=strict)


@dataclass
class _Pass:
    """One forward pass of an attached loss: what it was called with, and what was seen of it."""

    embeddings: Tensor
    labels: Tensor | None
    gallery: Tensor
    gallery_labels: Tensor | None
    hooks: list[Any] = field(default_factory=list)
    matrices: set[tuple[Node, int]] = field(default_factory=set)  # where its distance matrices are in the graph
    terms: dict[str, Any] | None = None
    pair_weights: Tensor | None = None

    @torch.no_grad()
    def weights(self, source: Any, name: str) -> Tensor:
        """Whatever `source` is, its weights for this pass."""
        if isinstance(source, Tensor):
            return source.to(self.embeddings.device)
        itself = self.gallery is self.embeddings
        embeddings = self.embeddings.detach()
        gallery = embeddings if itself else self.gallery.detach()
        if hasattr(source, "scores"):
            if self.labels is None:
                raise InputError(f"the miner given as {name}= needs labels, and the loss was called without.")
            ref = (None, None) if itself else (gallery, self.gallery_labels)
            positive, negative = source.scores(embeddings, self.labels, ref_emb=ref[0], ref_labels=ref[1])
            weights = positive + negative
        else:
            weights = source(embeddings, self.labels, gallery, self.gallery_labels)
        if not isinstance(weights, Tensor):
            raise InputError(f"{name}= must give a tensor of weights, got {type(weights).__name__}.")
        return weights.detach()


class Attachment:
    """What `attach` returns: `remove()` takes the weights off again, and so does the end of a `with` block."""

    def __init__(self, loss: Any, *, pair: Any, element: Any, example: Any, strict: bool) -> None:
        self.pair: Any = pair.detach() if isinstance(pair, Tensor) else pair
        self.element: Any = element.detach() if isinstance(element, Tensor) else element
        self.example: Any = example.detach() if isinstance(example, Tensor) else example
        self.strict = strict
        self._now: _Pass | None = None
        self._hooks = []
        if pair is not None or element is not None:
            self._hooks.append(loss.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(loss.register_forward_hook(self._after, with_kwargs=True, always_call=True))
        if example is not None:  # first of all, so that every hook sees the same embeddings
            self._hooks.append(loss.register_forward_pre_hook(self._weigh_examples, with_kwargs=True, prepend=True))

    def remove(self) -> None:
        """The loss is as it was before; doing it twice does no harm."""
        self._close()
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _close(self) -> _Pass | None:
        now, self._now = self._now, None
        for hook in now.hooks if now else ():
            hook.remove()
        return now

    def _weigh_examples(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _arguments(args, kwargs)
        embeddings, labels = call["embeddings"], _on(call.get("labels"), call["embeddings"])
        if not (embeddings.requires_grad and torch.is_grad_enabled()):
            return None
        if hasattr(self.example, "weights"):
            weighed = self.example(embeddings, labels)
        else:
            weights = self.example
            if not isinstance(self.example, Tensor):
                with torch.no_grad():
                    weights = self.example(embeddings.detach(), labels)
            if not isinstance(weights, Tensor) or weights.shape != embeddings.shape[:1]:
                came = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
                raise InputError(f"example= must give weights [{len(embeddings)}], got {came}.")
            weighed = scale_gradient(embeddings, weights.to(embeddings.device)[:, None])
        new = {key: weighed if value is embeddings else value for key, value in call.items()}  # also ref_emb
        return tuple(new[key] for key in _ARGUMENTS[: len(args)]), {key: new[key] for key in kwargs}

    def _before(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._close()  # what an interrupted pass has left
        call = _arguments(args, kwargs)
        embeddings, labels = call["embeddings"], _on(call.get("labels"), call["embeddings"])
        gallery, gallery_labels = call.get("ref_emb"), call.get("ref_labels")
        if gallery is None or gallery is embeddings:
            gallery, gallery_labels = embeddings, labels
        self._now = now = _Pass(embeddings, labels, gallery, _on(gallery_labels, embeddings))
        now.hooks.append(loss.distance.register_forward_hook(self._weigh_pairs, with_kwargs=True))
        now.hooks.append(loss.reducer.register_forward_pre_hook(partial(self._weigh_terms, type(loss).__name__)))

    def _weigh_pairs(self, distance: Any, args: tuple[Any, ...], kwargs: dict[str, Any], matrix: Any) -> None:
        now = self._now
        call = {**dict(zip(("query_emb", "ref_emb"), args, strict=False)), **kwargs}
        query, gallery = call["query_emb"], call.get("ref_emb")
        if now is None or query is not now.embeddings or (query if gallery is None else gallery) is not now.gallery:
            return  # proxies, a part of the batch, a regulariser
        if not (isinstance(matrix, Tensor) and matrix.requires_grad and torch.is_grad_enabled()):
            return
        now.matrices.add(_edge(matrix))
        if self.pair is None:
            return
        if now.pair_weights is None:
            now.pair_weights = now.weights(self.pair, "pair")
        if now.pair_weights.shape != matrix.shape:
            raise InputError(
                f"pair= must give weights {list(matrix.shape)}, one for each pair of the batch with its gallery, "
                f"got {list(now.pair_weights.shape)}."
            )
        matrix.register_hook(partial(_times, now.pair_weights))  # type: ignore[no-untyped-call]

    def _weigh_terms(self, name: str, reducer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        now, terms = self._now, args[0]
        if now is None:
            return None
        now.terms = terms
        if self.element is None:
            return None
        new, weights = {}, None
        for key, term in terms.items():
            if isinstance(term["losses"], Tensor) and term["reduction_type"] != "already_reduced":
                weights = now.weights(self.element, "element") if weights is None else weights
                w = _per_term(weights, term, name, len(now.embeddings), len(now.gallery))
                term = {**term, "losses": _times(w.reshape(term["losses"].shape), term["losses"])}  # some are [B, 1]
            new[key] = term
        return new, *args[1:]

    def _after(self, loss: Any, args: Any, kwargs: Any, value: Any) -> None:
        now = self._close()
        if now is None or value is None or not (self.strict and torch.is_grad_enabled()):  # None: the pass has failed
            return
        sides = (now.embeddings,) if now.gallery is now.embeddings else (now.embeddings, now.gallery)
        targets = {_edge(side) for side in sides if side.requires_grad}
        if not targets:
            return
        terms = {"": {"losses": value, "reduction_type": "already_reduced"}} if now.terms is None else now.terms
        regular = set(loss.all_regularization_loss_names())  # of the weights or the embeddings, not of pairs
        terms = {key: term for key, term in terms.items() if key not in regular}
        reduced = {key: term for key, term in terms.items() if term["reduction_type"] == "already_reduced"}
        if self.pair is not None and _leads_to(targets, terms, round_=now.matrices):
            others = [] if _no_examples(loss) or _leads_to(targets, reduced) else ["element="]
            reach = "reaches only a part of" if now.matrices else "does not reach"
            raise InputError(
                f"attach(pair=...) {reach} {type(loss).__name__}, whose derivative does not all go through the "
                f"distances of the batch to its gallery; {_and([*others, 'example='])} it."
            )
        if self.element is not None and _leads_to(targets, reduced):
            others = [] if _leads_to(targets, terms, round_=now.matrices) else ["pair="]
            reach = "does not reach" if reduced.keys() == terms.keys() else "reaches only a part of"
            raise InputError(
                f"attach(element=...) {reach} {type(loss).__name__}, which hands its reducer a sum and not its "
                f"terms; {_and([*others, 'example='])} it."
            )


def _and(names: list[str]) -> str:
    return f"{' and '.join(names)} reach{'' if len(names) > 1 else 'es'}"


def _of_p_alone(example: Any) -> bool:
    """Whether it is a weighting w(p)."""
    if example is None or isinstance(example, (Tensor, nn.Module)):
        return False
    return len(inspect.signature(example).parameters) == 1


def _no_examples(loss: Any) -> str | None:
    return next((why for kind, why in _TERMS_OF_NO_EXAMPLE.items() if isinstance(loss, kind)), None)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}


def _on(labels: Tensor | None, embeddings: Tensor) -> Tensor | None:
    return None if labels is None else labels.to(embeddings.device)


def _times(weights: Tensor, x: Tensor) -> Tensor:
    return (x * weights).to(x.dtype)


def _per_term(weights: Tensor, term: dict[str, Any], name: str, batch: int, gallery: int) -> Tensor:
    """Weights [B] or [B, G] -> one for each term of a loss."""
    kind, indices = term["reduction_type"], term["indices"]
    if weights.shape == (batch,):
        return weights[indices if kind == "element" else indices[0]]
    if kind == "element":
        raise InputError(
            f"element= must give weights [{batch}] for {name}, whose terms belong to examples, got "
            f"{list(weights.shape)}; weights on pairs go to pair=."
        )
    if weights.shape != (batch, gallery):
        raise InputError(
            f"element= must give weights [{batch}] for anchors or [{batch}, {gallery}] for pairs, got "
            f"{list(weights.shape)}."
        )
    anchor, *others = indices
    product = weights[anchor, others[0]]
    return product if kind != "triplet" else product * weights[anchor, others[1]]


def _edge(x: Tensor) -> tuple[Node, int]:
    if x.grad_fn is not None:
        return x.grad_fn, x.output_nr
    edge = get_gradient_edge(x)  # of a leaf
    return edge.node, edge.output_nr


def _leads_to(
    targets: set[tuple[Node, int]], terms: dict[str, Any], *, round_: set[tuple[Node, int]] | None = None
) -> bool:
    """Whether gradient flows from the terms to the targets, otherwise than through the edges `round_`."""
    values = [term["losses"] for term in terms.values()]
    todo = [_edge(value) for value in values if isinstance(value, Tensor) and value.requires_grad]
    seen = set()
    while todo:
        edge = todo.pop()
        if edge in targets:
            return True
        if edge in seen or (round_ and edge in round_):
            continue
        seen.add(edge)
        todo.extend((node, number) for node, number in edge[0].next_functions if node is not None)
    return False


def loss(
    x: nn.Module,
    distance: Any = None,
    reducer: Any = None,
    embedding_regularizer: Any = None,
    embedding_reg_weight: float = 1.0,
) -> "MetricWeightLoss":
    """A loss of metricweight as a loss of PML: the same value, the same gradient.

    x                      a loss on embeddings, such as `metricweight.losses.RankedListLoss()`
    distance               None, or what the loss computes anyway: LpDistance() or, for a loss on similarities,
                           CosineSimilarity(); others are refused
    reducer                None, DoNothingReducer(), or one with its own `already_reduced_reduction`. The loss is
                           one number when it comes to the reducer, so others would be ignored and are refused
    embedding_regularizer  a regulariser of PML, added with `embedding_reg_weight`. PML adds the two in the dtype of
                           the embeddings

    Raises InputError for what is refused.
    """
    name = type(x).__name__
    if isinstance(x, BaseMetricLossFunction):
        raise InputError(f"{name} is a loss of pytorch-metric-learning already; use it as it is.")
    coordinate = getattr(x, "coordinate", None) if isinstance(x, nn.Module) else None
    if coordinate not in ("distance", "similarity"):
        raise InputError(f"loss needs an instance of metricweight's losses on pairs of embeddings, got {name}.")
    if distance is None:
        distance = distances.LpDistance() if coordinate == "distance" else distances.CosineSimilarity()
    kind = distances.LpDistance if coordinate == "distance" else distances.DotProductSimilarity
    if not (isinstance(distance, kind) and distance.normalize_embeddings and (distance.p, distance.power) == (2, 1)):
        right = "LpDistance()" if coordinate == "distance" else "CosineSimilarity()"
        raise InputError(
            f"{name} computes its own {coordinate}, that of {right}; leave the distance out, another would be ignored."
        )
    honoured = isinstance(reducer, DoNothingReducer) or (
        isinstance(reducer, BaseReducer)
        and type(reducer).already_reduced_reduction is not BaseReducer.already_reduced_reduction
    )
    if reducer is not None and not honoured:
        raise InputError(
            f"{name} returns one number, which {type(reducer).__name__} would pass on as it is; leave the reducer out."
        )
    return MetricWeightLoss(
        x,
        distance=distance,
        reducer=reducer,
        embedding_regularizer=embedding_regularizer,
        embedding_reg_weight=embedding_reg_weight,
    )


class MetricWeightLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """What `loss` returns."""

    def __init__(self, loss: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        if labels is None:
            raise InputError(f"{type(self.loss).__name__} needs labels.")
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        value = self.loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}


def miner(x: Callable[..., IndicesTuple]) -> "MetricWeightMiner":
    """A miner of metricweight as a miner of PML: its hard support, as plain index tuples.

    Soft weights do not fit into index tuples: `attach(loss, pair=x)` delivers them. Raises InputError where `x` is
    no miner of metricweight.
    """
    if isinstance(x, (type, BaseMiner, PairLoss)) or not hasattr(x, "scores"):
        raise InputError(f"miner needs one of metricweight's miners, got {type(x).__name__}; give an instance.")
    return MetricWeightMiner(x)


class MetricWeightMiner(BaseMiner):  # type: ignore[misc]
    """What `miner` returns; `attach` takes it as it takes the miner inside."""

    def __init__(self, miner: Any) -> None:
        super().__init__()
        self.miner = miner

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> IndicesTuple:
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        return tuple(self.miner(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels))

    def scores(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> PairWeights:
        """The soft mining factors of the miner inside."""
        return self.miner.scores(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels)  # type: ignore[no-any-return]


class SelfSupervisedLoss(losses.SelfSupervisedLoss):  # type: ignore[misc]
    """PML's SelfSupervisedLoss, which knows losses by the names of their classes, with `MetricWeightLoss` added."""

    @staticmethod
    def supported_losses() -> list[str]:
        return [*losses.SelfSupervisedLoss.supported_losses(), MetricWeightLoss.__name__]
