"""Weights of pairs, one file per paper: formula, equation, defaults, reference.

Every function takes a matrix of distances or similarities, as the file says, and the pairs:

    distance            [Q, G]  between embeddings of unit length
    positive, negative  [Q, G]  bool; a pair in neither is not used

and returns `PairWeights`: the size of the loss's derivative with respect to each entry of that matrix, for one
query's loss. They are numbers, not functions of the embeddings: no gradient flows through them.
"""
