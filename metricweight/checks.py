"""What entry points require of what they are given, and the words they fail with: asked, came, do."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line must answer before torch is loaded
    from torch import Tensor


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one plain sentence, ready to be shown."""


class Interrupted(Exception):  # noqa: N818  (nothing went wrong)
    """The user stopped a program; the message says what there is now."""


def nearest(word: str, known: Iterable[str]) -> str:
    """How to end a sentence about `word`: '; did you mean X?' with the nearest known word, or '.' if none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."


def check_embeddings(
    embeddings: "Tensor", labels: "Tensor", *, names: str = "embeddings, labels", shape: str = "[B, D]"
) -> None:
    """Shapes and dtypes only: looking at values would make a GPU wait.

    embeddings  [B, D]  floating point
    labels      [B]     integers of any size
    """
    embeddings_name, labels_name = names.split(", ")
    for name, given in ((embeddings_name, embeddings), (labels_name, labels)):
        if not hasattr(given, "is_floating_point"):
            raise InputError(f"{name} must be a tensor, got {type(given).__name__}; torch.as_tensor makes one of it.")
    if embeddings.ndim != 2 or not embeddings.shape[1] or not embeddings.is_floating_point():
        raise InputError(
            f"{embeddings_name} must be {shape} of a floating dtype, "
            f"got {list(embeddings.shape)} of {embeddings.dtype}."
        )
    if labels.shape != embeddings.shape[:1]:
        raise InputError(
            f"{labels_name} must be [{len(embeddings)}] to match {embeddings_name} {list(embeddings.shape)}, "
            f"got {list(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"{labels_name} must be integers, got {labels.dtype}; convert them with .long().")


def check_gallery(ref_emb: "Tensor | None", ref_labels: "Tensor | None") -> None:
    """Both or neither."""
    if (ref_emb is None) != (ref_labels is None):
        raise InputError("ref_emb and ref_labels belong together; pass both or neither.")


def check_logits(logits: "Tensor", labels: "Tensor") -> None:
    """Shapes and dtypes only: looking at values would make a GPU wait.

    logits  [B, C]  floating point, at least two classes
    labels  [B]     integers
    """
    check_embeddings(logits, labels, names="logits, labels", shape="[B, C]")
    if logits.shape[1] < 2:
        raise InputError(f"logits must be [B, C] with at least 2 classes, got {list(logits.shape)}.")
