"""What all losses on pairs share: the calling convention of pytorch-metric-learning, and its edges."""

from torch import Tensor

from metricweight.checks import InputError, check_embeddings
from metricweight.pairs import IndicesTuple, Pairs, among, from_labels
from metricweight.similarity import euclidean, unit


def distances_and_pairs(
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: IndicesTuple | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    fixed_gallery: bool,
) -> tuple[Tensor, Pairs]:
    """The distances [B, G] of a batch to its gallery, and their pairs.

    embeddings     [B, D]  any length; they are scaled to unit length, in float32 at least, also under autocast
    labels         [B]     integers of any size
    indices_tuple  pairs or triplets of a miner: only these pairs are looked at
    ref_emb        [G, D]  the gallery, with its ref_labels [G]. Without it, or when it is `embeddings` itself,
                           the batch is its own gallery and nobody is paired with himself
    fixed_gallery  no gradient flows into the gallery
    """
    check_embeddings(embeddings, labels)
    labels = labels.to(embeddings.device)
    query = unit(embeddings)
    if (ref_emb is None) != (ref_labels is None):
        raise TypeError("ref_emb and ref_labels belong together; pass both or neither.")
    if ref_emb is None or ref_labels is None or ref_emb is embeddings:
        gallery, pairs = query, from_labels(labels)
    else:
        check_embeddings(ref_emb, ref_labels, names="ref_emb, ref_labels")
        if ref_emb.shape[1] != embeddings.shape[1]:
            raise InputError(f"ref_emb must be [G, {embeddings.shape[1]}] to be compared, got {list(ref_emb.shape)}.")
        gallery = unit(ref_emb).to(query.dtype)
        pairs = from_labels(labels, ref_labels.to(embeddings.device))
    if indices_tuple is not None:
        pairs = among(pairs, indices_tuple)
    return euclidean(query, gallery.detach() if fixed_gallery else gallery), pairs
