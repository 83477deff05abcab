"""MATLAB 5 files with the types that MATLAB gives them, the same each time."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = 116  # bytes of free text at the beginning of the file


def save_mat(path: Path, variables: Mapping[str, Any]) -> None:
    """Writes variables to a compressed .mat file.

    SciPy puts the time into the header, which is replaced here by a text that never changes.
    """
    from scipy.io import savemat

    written = io.BytesIO()
    savemat(written, dict(variables), do_compression=True, oned_as="row")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = b"MATLAB 5.0 MAT-file, Platform: GLNXA64, Created on: Thu Jan  1 00:00:00 1970".ljust(HEADER)
    path.write_bytes(text + written.getvalue()[HEADER:])


def structs(names: Sequence[str], rows: Sequence[Sequence[str | int]]) -> NDArray[Any]:
    """A struct array, 1 x N: texts as rows of characters, whole numbers from 0 on as 1 x 1 of the smallest type."""
    made = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for i, row in enumerate(rows):
        made[0, i] = tuple(
            value if isinstance(value, str) else np.array([[value]], dtype=np.min_scalar_type(value)) for value in row
        )
    return made


def cell(texts: Sequence[str]) -> NDArray[Any]:
    """A cell array of texts, 1 x N."""
    made = np.empty((1, len(texts)), dtype=object)
    made[0, :] = texts
    return made
