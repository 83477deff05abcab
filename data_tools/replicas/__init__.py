"""Tiny copies of the data sets, in the real layouts, with real pictures and the traps of the real thing.

They let anyone try the whole path without the data: `metricweight prepare NAME --replica DIR`.
"""

import json
from pathlib import Path

from metricweight.files import write_text

MARK = "replica.json"  # in the folder of a replica: what there must be, instead of the real counts


def mark(folder: Path, name: str, counts: object) -> None:
    """Says in a folder that it is a replica of a data set, and what it holds."""
    write_text(folder / MARK, json.dumps({"dataset": name, "counts": counts}, indent=1) + "\n")


def marked(folder: Path) -> dict[str, dict[str, dict[str, int]]] | None:
    """What `mark` wrote; None where the folder is no replica."""
    if not (folder / MARK).is_file():
        return None
    found: dict[str, dict[str, dict[str, int]]] = json.loads((folder / MARK).read_text(encoding="utf-8"))
    return found
