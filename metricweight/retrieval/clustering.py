"""How well k-means clusters of embeddings agree with their labels.

These numbers measure k-means too, which starts once, at random items, as elsewhere in this field. Where two classes get
one start between them they stay joined, so that even perfect embeddings may come out well below 1.
"""

import numpy as np
from numpy.typing import NDArray

from metricweight.checks import InputError
from metricweight.retrieval.points import Points, Rows
from metricweight.retrieval.search import kmeans

Integers = NDArray[np.int64]


def clustering(points: Points, labels: Integers, *, rows: Rows = slice(None), seed: int = 1234) -> dict[str, float]:
    """`agreement` of labels [N] with as many clusters of points [N, D] as there are classes among the labels.

    rows  those that take part

    k-means on `Points.compared` with 20 iterations from one start, which is drawn by `seed`; every point takes part.
    Time is 20 N D times the number of classes.
    """
    if labels.shape != (len(points),):
        raise InputError(f"labels must be [{len(points)}], one for each point, got {list(labels.shape)}.")
    own = labels[rows]
    return agreement(own, kmeans(points.compared(rows), len(np.unique(own)), seed=seed))


def agreement(labels: Integers, clusters: Integers) -> dict[str, float]:
    """What labels [N] and clusters [N] have in common. 1 where they are the same partition, whatever the numbers.

        nmi          2 I / (H(labels) + H(clusters))     grows with the number of clusters even by chance
        ami          (I - E I) / ((H(labels) + H(clusters)) / 2 - E I)     0 by chance
        pairwise_f1  2 b / (l + c), for b pairs of one label and one cluster, l pairs of one label and c of one cluster:
                     the harmonic mean of precision b / c and recall b / l; 1 if no pair has anything in common

    I is their mutual information, H an entropy, and E I the mean of I over all permutations (Vinh, Epps and Bailey,
    Information theoretic measures for clusterings comparison, JMLR 2010).
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    if labels.shape != clusters.shape or labels.ndim != 1 or not len(labels):
        shapes = f"{list(labels.shape)} and {list(clusters.shape)}"
        raise InputError(f"labels and clusters must be [N] both, for one item at least, got {shapes}.")
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ami": float(adjusted_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "pairwise_f1": _pairwise_f1(labels, clusters),
    }


def _pairwise_f1(labels: Integers, clusters: Integers) -> float:
    _, label = np.unique(labels, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    both = _pairs(label * (cluster.max() + 1) + cluster)
    either = _pairs(label) + _pairs(cluster)
    return 2 * both / either if either else 1.0


def _pairs(group: Integers) -> int:
    """How many pairs of items are of one group."""
    _, sizes = np.unique(group, return_counts=True)
    return int((sizes * (sizes - 1) // 2).sum())
