"""Ways in which tracklets are learned from and judged, beside plain means of frames, on a replica of MARS.

    python benchmarks/tracklets.py
    python benchmarks/tracklets.py --size 12 --seeds 3 4 --words steps=200

Trains the recipe `people` for each row of ROWS and each seed; all else is the same, the order of batches too. Each is
tested by mars-official and compared with the row `mean` of the same seed, query by query; what `metricweight compare`
says is printed, whatever it is: better or worse, where a test over queries and an interval over people agree, else
cannot tell. The first row is the network as it was before the training. The replica shows people who are drawn, some
frames of them covered or of somebody else: what helps here need not help on MARS.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from metricweight.retrieval import comparison

MEAN = ["tracklets.fusion=mean"]
SOFT = "{name: online_soft_mining, margin: 1.2, sigma: 1.0, form: released}"
PLAIN = ["attention.form=null", "attention.weight=1", *MEAN]


def of(name: str, *more: str, frames: str = "feature_learning") -> list[str]:
    """Another loss of clips and of frames, beside a classifier of frames."""
    loss = ", ".join([f"name: {name}", *more])
    return [f"loss={{{loss}}}", f"frame_losses=[{{{loss}}}, {{name: {frames}}}]", *PLAIN]


ROWS = {  # what is printed, then the words of the training, or None for that of `mean`, and those of the test
    "mean": (MEAN, []),
    "max": (["tracklets.fusion=max"], []),
    "max, tested by max": (["tracklets.fusion=max"], ["tracklets.test_fusion=max"]),
    "class_aware": ([], []),
    "quality": (["tracklets.fusion=quality"], []),
    "self_attention": (["tracklets.fusion=self_attention"], ["tracklets.test_fusion=self_attention"]),
    "mean, tested by max": (None, ["tracklets.test_fusion=max"]),
    "mean, tested by quality": (None, ["tracklets.test_fusion=quality"]),
    "mean, tested by 4 frames": (None, ["tracklets.test_clip=evenly", "tracklets.test_frames=4"]),
    "frames by cce": ([f"frame_losses=[{SOFT}, {{name: cce}}]", *MEAN], []),
    "frames by imae": ([f"frame_losses=[{SOFT}, {{name: imae}}]", *MEAN], []),
    "frames by dm": ([f"frame_losses=[{SOFT}, {{name: dm}}]", *MEAN], []),
    "poster form": (
        ["loss.form=poster", f"frame_losses=[{SOFT.replace('released', 'poster')}, {{name: feature_learning}}]",
         "attention.form=poster", *MEAN], []),
    "ranked_list": (of("ranked_list"), []),
    "instance_cross_entropy": (of("instance_cross_entropy"), []),
    "triplet, batch-hard": (of("triplet", "mining: batch_hard", "margin: 0.3"), []),
}  # fmt: skip


def run(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "metricweight", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def told(a: str, b: str) -> str:
    """mAP of b, and the verdict on it beside a."""
    found = comparison.compare(comparison.load(a), comparison.load(b), metric="map_trapezoid")
    row = found.table.loc[found.metric]
    return f"{100 * row['b']:.1f} ({100 * row['difference']:+.1f}, {found.verdict})"


def results(folder: Path, words: list[str]) -> Iterator[tuple[str, str]]:
    """What came of each row, for one seed."""
    trained: dict[str, Path] = {}  # by words, so that no network is trained twice
    mean = ""
    for number, (name, (own, test)) in enumerate(ROWS.items()):
        own = MEAN if own is None else own
        key = " ".join(own)
        if key not in trained:
            trained[key] = folder / f"run{number}"
            run("train", "people", *words, *own, *test, "--out", trained[key])
        out = trained[key] / f"row{number}.npz"
        run("embed", trained[key], *test, "--out", out)
        run("evaluate", out)
        report = str(out.with_suffix(".report.json"))
        if name == "mean":
            mean = report
            both = trained[key] / "report.json"
            yield "not trained", told(f"{both}:trained", f"{both}:untrained")
        yield name, told(mean, report) if name != "mean" else told(mean, report).partition(" ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8, help="of the replica, which has n times six people in each half")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--words", nargs="*", default=[], help="changes to the recipe")
    asked = parser.parse_args()
    words = " ".join(asked.words) or "the recipe as it is"
    print(f"torch {torch.__version__}, replica of size {asked.size}, {words}, {time.strftime('%Y-%m-%d')}\n")
    rows: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch) / "mars.csv"
        run("prepare", "mars", "--replica", Path(scratch) / "mars", "--size", asked.size, "--out", manifest)
        for seed in asked.seeds:
            given = [f"data.root={manifest}", f"seed={seed}", *asked.words]
            for name, cell in results(Path(scratch) / str(seed), given):
                rows.setdefault(name, []).append(cell)
                print(f"seed {seed}: {name}: {cell}", file=sys.stderr, flush=True)
    print(f"| | {' | '.join(f'mAP, seed {seed}' for seed in asked.seeds)} |")
    print(f"|:--|{':--|' * len(asked.seeds)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
