"""How well embeddings find their own kind: embeddings in, report out.

**Recall@K is the share of queries with at least one item of their label among their first K neighbours** (any hit),
as this field uses the word; it is not the share of relevant items found. Letters in shapes: Q queries, G gallery,
K neighbours, D embedding size.

evaluate         embeddings and labels to a `Report`, by the rules of a `Protocol`
PROTOCOLS        those that have a name
Rerank, Expand   what else `evaluate` can be asked for
"""

from metricweight.retrieval.evaluation import Expand, Rerank, evaluate
from metricweight.retrieval.protocol import PROTOCOLS, Protocol
from metricweight.retrieval.report import Report

__all__ = ["PROTOCOLS", "Expand", "Protocol", "Report", "Rerank", "evaluate"]
