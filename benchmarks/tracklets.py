"""Ways in which the frames of a tracklet become one embedding, beside their mean, on a replica of MARS.

    python benchmarks/tracklets.py
    python benchmarks/tracklets.py --size 12 --seeds 5 --words steps=200

Trains the recipe `people` once for each way and seed; all else is the same, the batches too. Each is tested by
mars-official and compared with the mean of the same seed, query by query; what `metricweight compare` says is printed,
whatever it is. The first row is the network as it was before the training. The replica shows people who are drawn, some
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

TRAINED = ("mean", "max", "class_aware", "quality", "self_attention")
TESTED = ("max", "quality")  # the network that was trained by the mean is tested by these, too


def run(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "metricweight", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def evaluated(folder: Path, name: str, *test: str) -> str:
    """The report of a run whose tracklets are judged by some rule, as `compare` takes it."""
    out = folder / f"{name}.npz"
    run("embed", folder, *test, "--out", out)
    run("evaluate", out)
    return f"{folder / name}.report.json"


def told(a: str, b: str) -> str:
    """mAP of b, and the verdict on it beside a."""
    found = comparison.compare(comparison.load(a), comparison.load(b))
    row = found.table.loc[found.metric]
    return f"{100 * row['b']:.1f}, {found.verdict} ({100 * row['difference']:+.1f})"


def ways(folder: Path, words: list[str]) -> Iterator[tuple[str, str, str]]:
    """How a network was trained and tested, and what came of it, for one seed."""
    mean = ""
    for fusion in TRAINED:
        tested = "self_attention" if fusion == "self_attention" else "mean"
        own = [f"tracklets.fusion={fusion}", f"tracklets.test_fusion={tested}"]
        run("train", "people", *words, *own, "--out", folder / fusion)
        report = evaluated(folder / fusion, "own")
        if fusion != "mean":
            yield fusion, tested, told(mean, report)
            continue
        mean, both = report, folder / fusion / "report.json"
        yield "not at all", "mean", told(f"{both}:trained", f"{both}:untrained")
        yield "mean", "mean", told(mean, mean).partition(",")[0]
        for rule in TESTED:
            yield "mean", rule, told(mean, evaluated(folder / fusion, rule, f"tracklets.test_fusion={rule}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8, help="of the replica, which has n times six people in each half")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--words", nargs="*", default=[], help="changes to the recipe")
    asked = parser.parse_args()
    words = " ".join(asked.words) or "the recipe as it is"
    print(f"torch {torch.__version__}, replica of size {asked.size}, {words}, {time.strftime('%Y-%m-%d')}\n")
    rows: dict[tuple[str, str], list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch) / "mars.csv"
        run("prepare", "mars", "--replica", Path(scratch) / "mars", "--size", asked.size, "--out", manifest)
        for seed in range(asked.seeds):
            words = [f"data.root={manifest}", f"seed={seed}", *asked.words]
            for trained, tested, cell in ways(Path(scratch) / str(seed), words):
                rows.setdefault((trained, tested), []).append(cell)
                print(f"seed {seed}: trained by {trained}, tested by {tested}: {cell}", file=sys.stderr, flush=True)
    print(f"| trained by | tested by | {' | '.join(f'seed {seed}: mAP, %' for seed in range(asked.seeds))} |")
    print(f"|:--|:--|{':--|' * asked.seeds}")
    for pair, cells in rows.items():
        print(f"| {' | '.join([*pair, *cells])} |")


if __name__ == "__main__":
    main()
