"""Losses on pairs, one file per paper: formula, coordinate, normalisation, defaults, reference.

Each is a class of its hyper-parameters with one method, `terms`: what it makes of a block of distances or
similarities. `pair_loss.PairLoss` says how it is called and what it tells of its weights:

    weights(x, positive, negative, query=None, gallery=None)   the complete |dL/dx_ij|, before it is normalised
    scores(...)                                                the mining factor alone

They are numbers, not functions of the embeddings: no gradient flows through them.
"""
