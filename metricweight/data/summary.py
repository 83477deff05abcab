"""What a manifest holds, in words and in numbers."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricweight.data.manifest import Manifest, counts, ordinary, parts

if TYPE_CHECKING:
    import pandas as pd

BARS, WIDTH = 10, 40


def as_json(manifest: Manifest) -> str:
    """Name, root, protocol and the counts of each part, with `per_label`: {images: how many labels have as many}."""
    found = counts(manifest.table)
    for part, rows in parts(manifest.table).items():
        sizes = _images_per_label(manifest.table, rows).value_counts().sort_index()
        found[part]["per_label"] = {str(size): int(labels) for size, labels in sizes.items()}  # type: ignore[assignment]
    about = manifest.about
    facts: dict[str, Any] = {"name": about.name, "layout": about.layout, "protocol": about.protocol}
    return json.dumps({**facts, "root": str(manifest.root), "parts": found, "noise": about.noise}, indent=1)


def text(manifest: Manifest) -> str:
    """A table of the parts, and how many images the labels of each split have."""
    about, table = manifest.about, manifest.table
    head = f"{about.name}{f', {about.layout}' if about.layout else ''}: {len(table):,} rows, paths from {manifest.root}"
    head += "" if manifest.root.is_dir() else " (which is not there: say with --root where it is)"
    found = counts(table)
    tracklets = any("tracklets" in numbers for numbers in found.values())
    rows = [["", "images", "labels", *["tracklets"] * tracklets, "images per label: least", "median", "most"]]
    charts = []
    for part, chosen in parts(table).items():
        sizes = _images_per_label(table, chosen)
        spread = [sizes.min(), sizes.median(), sizes.max()] if len(sizes) else ["", "", ""]
        numbers = [found[part]["images"], found[part]["labels"], *[found[part].get("tracklets", 0)] * tracklets]
        rows.append([part, *(f"{x:,g}" if x != "" else "" for x in (*numbers, *spread))])
        if part in ("train", "validation", "test", "all") and len(sizes):
            charts.append(f"images per label, {part}\n{_histogram(sizes.to_numpy())}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    said = [f"protocol {about.protocol}", *([_noise(about.noise)] if about.noise else [])]
    return "\n\n".join([f"{head}\n{'; '.join(said)}", "\n".join(lines), *charts])


def _images_per_label(table: "pd.DataFrame", rows: "pd.Series[bool]") -> "pd.Series[int]":
    return table["label"][rows & ordinary(table)].value_counts()


def _histogram(sizes: NDArray[np.integer[Any]]) -> str:
    """A bar per number of images, or per range of them where there are many."""
    least, most = int(sizes.min()), int(sizes.max())
    step = max(1, -(-(most - least + 1) // BARS))
    edges = np.arange(least, most + step + 1, step)
    heights, _ = np.histogram(sizes, bins=edges)
    names = [str(low) if step == 1 else f"{low}-{low + step - 1}" for low in edges[:-1]]
    width, scale = max(map(len, names)), WIDTH / heights.max()
    return "\n".join(
        f"  {name:>{width}}  {'█' * max(round(height * scale), 1 if height else 0)} {height:,}".rstrip()
        for name, height in zip(names, heights, strict=True)
    )


def _noise(noise: Mapping[str, Any]) -> str:
    return f"noise {noise.get('kind', '')}, realised {noise.get('realised', 0):.4f}"
