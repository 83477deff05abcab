"""How well embeddings find their own kind: embeddings in, report out.

**Recall@K is the share of queries with at least one item of their label among their first K neighbours** (any hit),
as this field uses the word; it is not the share of relevant items found. Letters in shapes: Q queries, G gallery,
K neighbours, D embedding size.
"""
