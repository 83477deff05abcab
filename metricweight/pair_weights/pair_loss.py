"""What all losses on pairs share: how they are called, and what is told of their weights."""

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from metricweight import streaming
from metricweight.checks import InputError, check_embeddings, check_gallery
from metricweight.pairs import IndicesTuple, PairWeights, listed
from metricweight.similarity import at_least_float32, unit


@dataclass(eq=False, repr=False)
class PairLoss(nn.Module):
    """A loss that is a function of distances or similarities between embeddings.

    Called as `loss(embeddings [B, D], labels [B], indices_tuple=None, ref_emb=None, ref_labels=None)`, like a loss
    of pytorch-metric-learning. Returns a scalar, in float32 at least, also under autocast.

    embeddings     [B, D]  any length: they are scaled to unit length, unless the loss says otherwise
    labels         [B]     integers of any size
    indices_tuple          pairs (anchors, positives, anchors, negatives) or triplets (anchors, positives,
                           negatives) of a miner: the only candidates. A pair counts once however often it is
                           listed; a triplet is a positive and a negative pair
    ref_emb        [G, D]  the gallery, with its ref_labels [G]. Without it, or when it is `embeddings` itself, the
                           batch is its own gallery and nobody is paired with himself

    An empty batch, or one without pairs, is zero with zero gradient. Only shapes and dtypes are looked at
    (`InputError`), values are not: a NaN in is a NaN out. It compiles without a graph break and does not make a GPU
    wait; `torch.func` cannot differentiate it. Memory is [block_rows, G] a few times over. On a GPU, where more than 16
    of a row's distances are nearly zero, the others have few digits (streaming.py).

    A loss is a subclass at module level with the fields that it takes, these constants, and `terms`:

    coordinate   what its weights are derivatives with respect to: "distance" (Euclidean, not squared) or
                 "similarity" (inner product)
    normalised   "row": the positives of a row share shares()[0], by their scores, its negatives shares()[1], and
                 rows are averaged; "batch": the same over all pairs; "no": weights are complete, rows are averaged
    symmetric    a pair has the same weight in both its rows
    unit_length  embeddings are scaled to unit length
    not_plain    fields that are no numbers or words; `terms` knows of them by `items` only
    """

    coordinate: ClassVar[Literal["distance", "similarity"]]
    normalised: ClassVar[Literal["row", "batch", "no"]]
    symmetric: ClassVar[bool] = False
    unit_length: ClassVar[bool] = True
    not_plain: ClassVar[tuple[str, ...]] = ()
    gallery = "free"  # no fields, unless a loss makes them so
    anchors = "mean"

    block_rows: int | None = field(default=None, kw_only=True)

    def __new__(cls, *_: Any, **__: Any) -> "PairLoss":
        self = super().__new__(cls)
        nn.Module.__init__(self)  # before the fields are set, one of which may be a Module
        return self

    def __post_init__(self) -> None:
        arguments = {name: self._plain(name) for name in self._names() if name not in self.not_plain}
        if self.block_rows is not None and self.block_rows < 1:
            raise InputError(f"block_rows is a number of rows, at least 1, got {self.block_rows}.")
        if "<locals>" in type(self).__qualname__:
            raise InputError(f"{type(self).__qualname__} is defined in a function; define it in a module or notebook.")
        self._key = streaming.key(self, arguments)  # here, as the compiler cannot follow how floats are written

    def __setattr__(self, name: str, value: Any) -> None:
        made = "_key" in self.__dict__ and name in self._names()
        before = getattr(self, name) if made else None
        super().__setattr__(name, value)
        if made:
            try:
                self.__post_init__()
            except InputError:
                super().__setattr__(name, before)  # type: ignore[arg-type]
                raise

    def _plain(self, name: str) -> int | float | str | None:
        """The value of a field, a Python number where it is one of numpy or torch."""
        value = getattr(self, name)
        if getattr(value, "ndim", 1) == 0:
            value = value.item()
            object.__setattr__(self, name, value)
        if not isinstance(value, (int, float, str, type(None))):
            raise InputError(f"{name} of {type(self).__name__} must be a number or a word, got {value!r}.")
        if isinstance(value, float) and not abs(value) <= 1e30:
            raise InputError(f"{name} of {type(self).__name__} must be finite and at most 1e30, got {value}.")
        return value

    def terms(
        self, x: Tensor, positive: Tensor, negative: Tensor, query: Tensor | None, gallery: Tensor | None
    ) -> streaming.Terms:
        """What the loss makes of a block: the arguments of `weights`, but masks are 1 and 0 in the dtype of `x`."""
        raise NotImplementedError

    def shares(self, pairs: int | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """What the positives and the negatives are multiplied by, when so many pairs are compared."""
        return 1.0, 1.0

    def items(self, embeddings: Tensor, labels: Tensor, of_gallery: bool = False) -> Tensor | None:
        """A number per item [B] that its pairs depend on, such as its attention."""
        return None

    def weights(
        self,
        x: Tensor,
        positive: Tensor,
        negative: Tensor,
        query: Tensor | None = None,
        gallery: Tensor | None = None,
    ) -> PairWeights:
        """The complete |dL/dx_ij| of each pair, before it is normalised: constants, [b, G] each.

        x                   [b, G]  distances or similarities, as `coordinate` says
        positive, negative  [b, G]  bool; a pair in neither is not used
        query, gallery      [b], [G]  a number per item, where the loss knows one (the attention)

        Up to a factor per row where the loss is normalised by row.
        """
        return self._terms(x, positive, negative, query, gallery).weights

    def scores(
        self,
        x: Tensor,
        positive: Tensor,
        negative: Tensor,
        query: Tensor | None = None,
        gallery: Tensor | None = None,
    ) -> PairWeights:
        """The mining factor alone, how much each pair counts: `weights` without the slope of the potential."""
        return self._terms(x, positive, negative, query, gallery).scores

    def _terms(self, x: Tensor, positive: Tensor, negative: Tensor, *items: Tensor | None) -> streaming.Terms:
        return self.terms(x.detach(), *(streaming.numbers(mask.bool(), x) for mask in (positive, negative)), *items)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        check_gallery(ref_emb, ref_labels)
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        chosen = None
        if indices_tuple is not None:
            chosen = listed(indices_tuple, labels, labels if ref_labels is None else ref_labels)
        return self.against(embeddings, labels, ref_emb, ref_labels, chosen, own=ref_emb is None)

    def against(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        chosen: Tensor | None,
        own: bool,
    ) -> Tensor:
        """`forward` for whoever knows more of the gallery.

        chosen  [B, G]  bool: the candidates; None: all pairs
        own             the first B of the gallery are the batch, and nobody is paired with himself
        """
        compared = self._compared(embeddings, labels, ref_emb, ref_labels, own)
        itself = ref_emb is None
        moves_gallery = self.gallery == "free" and (itself or compared.gallery.requires_grad)
        value: Tensor = streaming.pairs(
            compared.query,
            None if itself else compared.gallery,
            compared.labels,
            None if itself else compared.gallery_labels,
            compared.items,
            None if itself else compared.gallery_items,
            own,
            chosen,
            moves_gallery,
            self._key,
        )[0]
        return value

    def matrices(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[PairWeights, PairWeights]:
        """`scores` and `weights` of all pairs of a batch, [B, G] each."""
        check_gallery(ref_emb, ref_labels)
        if ref_emb is embeddings:
            ref_emb = ref_labels = None
        return streaming.dense(self, self._compared(embeddings, labels, ref_emb, ref_labels, own=ref_emb is None))

    def _compared(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None, own: bool
    ) -> streaming.Compared:
        query, labels = self._space(embeddings, labels)
        items = _like(query, self.items(embeddings, labels))
        if ref_emb is None or ref_labels is None:
            return streaming.Compared(query, query, labels, labels, items, items, own)
        gallery, ref_labels = self._space(ref_emb, ref_labels, "ref_emb, ref_labels")
        if ref_emb.shape[1] != embeddings.shape[1]:
            raise InputError(f"ref_emb must be [G, {embeddings.shape[1]}] to be compared, got {list(ref_emb.shape)}.")
        ref_labels = ref_labels.to(query.device)
        gallery_items = _like(query, self.items(ref_emb, ref_labels, of_gallery=True))
        return streaming.Compared(query, gallery.to(query), labels, ref_labels, items, gallery_items, own)

    def _space(self, embeddings: Tensor, labels: Tensor, names: str = "embeddings, labels") -> tuple[Tensor, Tensor]:
        check_embeddings(embeddings, labels, names=names)
        scaled = unit(embeddings) if self.unit_length else at_least_float32(embeddings)
        return scaled, labels.to(embeddings.device)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(inspect.signature(cls.__init__).parameters)[1:]  # Python 3.10 would take those of __new__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._names())})"


def _like(query: Tensor, items: Tensor | None) -> Tensor | None:
    return None if items is None else items.to(query)
