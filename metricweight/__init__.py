"""Deep metric learning in which a loss is a direction times an example weight.

    derivative of a loss  =  direction (unit length, shared by many losses)  x  weight (a number per pair or example)

    scale_gradient, with_derivative    the two ways a derivative is touched
    losses                             what is trained with
    retrieval                          what it is judged by: embeddings in, report out

Importing this loads torch and nothing else that is heavy.
"""

from metricweight import losses, retrieval
from metricweight.gradient import scale_gradient, with_derivative

__version__ = "0.1.0"

__all__ = ["losses", "retrieval", "scale_gradient", "with_derivative"]
