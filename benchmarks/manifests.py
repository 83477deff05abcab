"""Time and memory of manifests of a million rows, beside what pandas takes to read and write the same table unchecked.

    python benchmarks/manifests.py              1,000,000 rows
    python benchmarks/manifests.py 250000

The table is MARS-like: paths of about 50 characters, tracklets of 60 frames. Each line is measured in a process of its
own; MB is its peak beyond what it held with everything imported.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metricweight.data import manifest
from metricweight.data.manifest import About, Manifest

WORK = {
    "pandas, read .csv": lambda file: pd.read_csv(file.with_suffix(".csv"), keep_default_na=False),
    "read and check .csv": lambda file: manifest.read(file.with_suffix(".csv")),
    "pandas, read .parquet": lambda file: pd.read_parquet(file.with_suffix(".parquet")),
    "read and check .parquet": lambda file: manifest.read(file.with_suffix(".parquet")),
    "read, filter, count .parquet": lambda file: _filtered(file.with_suffix(".parquet")),
    "read .parquet, write .csv": lambda file: _written(file.with_suffix(".parquet"), ".csv"),
    "read .parquet, write .parquet": lambda file: _written(file.with_suffix(".parquet"), ".parquet"),
}


def frames(rows: int) -> Manifest:
    """Tracklets of 60 frames, 13 tracklets a person, 6 cameras; the first half trains."""
    i = np.arange(rows)
    tracklet, frame = i // 60, i % 60
    person, camera = tracklet // 13, tracklet % 6 + 1
    places = zip(person, camera, tracklet, frame, strict=True)
    names = [f"bbox_train/{p:04d}/{p:04d}C{c}T{t:06d}F{f:03d}.jpg" for p, c, t, f in places]
    split = np.where(person < person[-1] // 2, "train", "test")
    columns = {"path": names, "label": person, "split": split, "camera": camera, "tracklet": tracklet, "frame": frame}
    table = manifest.complete(pd.DataFrame(columns), str, "frames")
    return Manifest(table, Path(), About("frames"))


def _filtered(file: Path) -> Any:
    return manifest.counts(manifest.matching(manifest.read(file), "split == 'test' and camera == 3").table)


def _written(file: Path, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest.write(manifest.read(file), Path(folder, f"again{suffix}"))


def measure(name: str, file: Path) -> None:
    import pyarrow.parquet  # noqa: F401  (what is loaded on first use is not counted)

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    held = _status("VmRSS")
    started = time.perf_counter()
    WORK[name](file)
    seconds = time.perf_counter() - started
    more = (_status("VmHWM") - held) / 2**10
    print(f"| {name} | {seconds:.2f} | {more:.0f} |", flush=True)


def _status(field: str) -> int:
    """A field of /proc/self/status, in KB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def main() -> None:
    if len(sys.argv) > 2:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "frames")
        for suffix in manifest.TABLES:
            manifest.write(frames(rows), file.with_suffix(suffix))
        print(f"{rows:,} rows, pandas {pd.__version__}\n\n| | s | MB |\n|:--|--:|--:|", flush=True)
        for name in WORK:
            subprocess.run([sys.executable, __file__, name, str(file)], check=True)


if __name__ == "__main__":
    main()
