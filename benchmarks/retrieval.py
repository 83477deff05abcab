"""Speed and memory of exact evaluation, beside faiss, pytorch-metric-learning (PML), torchmetrics and plain torch.

    python benchmarks/retrieval.py                 all of it: half an hour on 2 cores
    python benchmarks/retrieval.py sop growth      some of it: sop, classes, mars, growth, large
    python benchmarks/retrieval.py sop --device cuda

Embeddings are made of a centre for each class and noise. All contestants of a table run in turn, round after round, in
one process; the smallest time of each counts. Memory is what a process held at its peak beyond what it held with the
embeddings loaded and everything imported and compiled, each contestant in a process of its own. Our times are those
of `evaluate`, from embeddings to a report with intervals, all metrics.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metricweight.retrieval import evaluate

SOP = (60_502, 512)
SOP_CLASSES = 11_316
SOP_KS = (1, 10, 100, 1000)
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def clusters(n: int, d: int, classes: int, noise: float, device: str = "cpu") -> tuple[Any, Ints]:
    """Classes of 2 and more, as in Stanford Online Products; unit length."""
    random = np.random.default_rng(0)
    rest = random.integers(0, classes, n - 2 * classes)
    labels = random.permutation(np.concatenate([np.arange(classes), np.arange(classes), rest]))
    centres = random.standard_normal((classes, d), dtype=np.float32)
    x = centres[labels] + noise * random.standard_normal((n, d), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return (torch.from_numpy(x).to(device), labels) if device != "cpu" else (x, labels)


def ours(x: Any, labels: Ints) -> dict[str, float]:
    largest = len(x) - 1
    return evaluate(x, labels, ks=[k for k in SOP_KS if k <= largest]).metrics


def faiss_top_1(x: Any, labels: Ints) -> None:
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    index.search(x, 1)


def pml(x: Any, labels: Ints, k: int | str | None) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=include, k=k, device=torch.device("cpu"))
    found: dict[str, float] = calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(labels))
    return found


def plain_torch(x: Any, labels: Ints) -> list[float]:
    """Recall@K alone, by products and top-k of blocks."""
    e, y = torch.as_tensor(x), torch.as_tensor(labels).to(torch.as_tensor(x).device)
    hits = torch.zeros(len(SOP_KS), device=e.device)
    for start in range(0, len(e), 500):
        similarity = e[start : start + 500] @ e.T
        rows = torch.arange(len(similarity), device=e.device)
        similarity[rows, start + rows] = -torch.inf
        nearest = similarity.topk(min(SOP_KS[-1], len(e) - 1)).indices
        hit = y[nearest] == y[start : start + 500, None]
        hits += torch.stack([hit[:, :k].any(1).sum() for k in SOP_KS])
    return (hits / len(e)).tolist()


def torchmetrics_map(x: Any, labels: Ints) -> float:
    """The mean average precision of all pairs, which have to be listed one by one."""
    from torchmetrics.retrieval import RetrievalMAP

    e, y = torch.from_numpy(x), torch.from_numpy(labels)
    n = len(e)
    others = ~torch.eye(n, dtype=torch.bool)
    similarity = (e @ e.T + 2)[others]  # it takes scores of 0 and below for misses
    target = (y[:, None] == y)[others]
    queries = torch.arange(n)[:, None].expand(n, n)[others]
    return float(RetrievalMAP(empty_target_action="skip")(similarity, target, indexes=queries))


CONTESTANTS: dict[str, Callable[[Any, Ints], object]] = {
    "ours: R@1,10,100,1000, MAP@R, R-precision, mAP, mINP, MRR, intervals": ours,
    "faiss IndexFlatIP, top 1 alone": faiss_top_1,
    "PML, k=max_bin_count: R@1, MAP@R, R-precision": lambda x, y: pml(x, y, "max_bin_count"),
    "PML, default": lambda x, y: pml(x, y, None),
    "plain torch in blocks, R@1,10,100,1000": plain_torch,
    "torchmetrics RetrievalMAP": torchmetrics_map,
}
MOST = {"PML, default": 10_000, "torchmetrics RetrievalMAP": 1000}  # items; beyond, memory grows without end


def timed(runs: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """The smallest time of each, in seconds, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: min(of) for name, of in times.items()}


def warm_up(name: str, device: str) -> None:
    """Whatever is imported, compiled or started once."""
    for classes in (400, 10):
        CONTESTANTS[name](*clusters(1001, 32, classes, 1.0, device))


def peak(name: str, n: int, d: int, classes: int, noise: float) -> float:
    """MB beyond what was held with the embeddings loaded, in this process."""
    warm_up(name, "cpu")
    x, labels = clusters(n, d, classes, noise)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    CONTESTANTS[name](x, labels)
    return (_status("VmHWM") - before) / 2**10


def _status(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def peak_elsewhere(name: str, n: int, d: int, classes: int, noise: float) -> float:
    words = [sys.executable, "-W", "ignore", __file__, "--peak", name, str(n), str(d), str(classes), str(noise)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def sop(rounds: int, device: str) -> None:
    """Stanford Online Products in size, with embeddings that find a fair part, and with some that find hardly any."""
    print("\n| items | noise | R@1 | | s | x faiss | MB |\n|--:|--:|--:|:--|--:|--:|--:|", flush=True)
    for n, noise in ((SOP[0], 2.4), (SOP[0], 4.0), (10_000, 2.4), (1000, 2.4)):
        classes = SOP_CLASSES * n // SOP[0]
        x, labels = clusters(n, SOP[1], classes, noise, device)
        names = [name for name in CONTESTANTS if n <= MOST.get(name, n)]
        if n == SOP[0] and noise == 4.0:
            names = names[:2]
        if device == "cuda":
            names = [name for name in names if name.startswith(("ours", "plain"))]
        for name in names:
            warm_up(name, device)
        found = timed({name: partial(CONTESTANTS[name], x, labels) for name in names}, rounds, device)
        recall = 100 * ours(x, labels)["recall@1"]
        reference = found.get("faiss IndexFlatIP, top 1 alone", float("nan"))
        for name in CONTESTANTS:
            if name not in names:
                if noise == 2.4 and device == "cpu":
                    print(f"| {n:,} | {noise} | | {name} | not run | | |")
                continue
            memory = f"{peak_elsewhere(name, n, SOP[1], classes, noise):.0f}" if device == "cpu" else ""
            ratio = found[name] / reference
            print(
                f"| {n:,} | {noise} | {recall:.1f} | {name} | {found[name]:.2f} | {ratio:.2f} | {memory} |", flush=True
            )


def classes(rounds: int, device: str) -> None:
    """Few large classes: 10 of 2,000 items, 128 numbers each, beside the product of all pairs."""
    print("\n| 10 classes x 2,000 x 128 | s | x matmul |\n|:--|--:|--:|")
    for noise in (0.5, 4.0):
        random = np.random.default_rng(0)
        labels = np.arange(20_000) % 10
        centres = random.standard_normal((10, 128), dtype=np.float32)
        x = centres[labels] + noise * random.standard_normal((20_000, 128), dtype=np.float32)

        def matmul(x: Floats = x) -> None:
            for start in range(0, len(x), 1000):
                x[start : start + 1000] @ x.T

        def counting(x: Floats = x, labels: Ints = labels) -> None:
            from metricweight.retrieval.points import together
            from metricweight.retrieval.ranking import Search, ranks

            queries, gallery = together(x, None, "cosine")
            for _ in ranks(Search(queries, gallery, labels, labels, np.arange(len(x)))):
                pass

        runs = {
            "the product": matmul,
            "ours: exact ranks of all positives": counting,
            "ours: the report": lambda x=x, labels=labels: ours(x, labels),
        }  # type: ignore[misc]
        counting()
        found = timed(runs, rounds)
        recall = 100 * ours(x, labels)["recall@1"]
        for name, seconds in found.items():
            print(f"| noise {noise}, R@1 {recall:.1f}, {name} | {seconds:.2f} | {seconds / found['the product']:.1f} |")


def mars(rounds: int, device: str) -> None:
    """1,980 queries, 12,180 tracklets, 1,024 numbers, six cameras: the three protocols."""
    random = np.random.default_rng(0)
    labels = np.concatenate([np.full(870, -1), np.zeros(3248, dtype=np.int64), 2 + random.integers(0, 634, 8062)])
    cameras = random.integers(1, 7, len(labels))
    _, first = np.unique(np.stack([labels, cameras], axis=1)[4118:], axis=0, return_index=True)
    queries = np.zeros(len(labels), dtype=bool)
    queries[4118 + first[:1980]] = True
    centres = random.standard_normal((640, 1024), dtype=np.float32)
    x = centres[labels] + 3 * random.standard_normal((len(labels), 1024), dtype=np.float32)
    names = ("mars-official", "mars-ap3d", "mars-torchreid")
    runs = {
        name: lambda name=name: evaluate(x, labels, cameras=cameras, queries=queries, protocol=name)  # type: ignore[misc]
        for name in names
    }
    for run in runs.values():
        run()
    found = timed(runs, rounds)
    print("\n| MARS in size | s |\n|:--|--:|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"| all three | {sum(found.values()):.2f} |")


def growth(rounds: int, device: str) -> None:
    """From 5,000 items to the size of Stanford Online Products."""
    print("\n| items | s | us per item and 1,000 others | MB |\n|--:|--:|--:|--:|")
    name = next(iter(CONTESTANTS))
    warm_up(name, device)
    for n in (5000, 10_000, 20_000, 40_000, SOP[0]):
        x, labels = clusters(n, SOP[1], SOP_CLASSES * n // SOP[0], 2.4, device)
        seconds = timed({name: partial(ours, x, labels)}, rounds, device)[name]
        memory = peak_elsewhere(name, n, SOP[1], SOP_CLASSES * n // SOP[0], 2.4)
        print(f"| {n:,} | {seconds:.2f} | {1e9 * seconds / n / n:.2f} | {memory:.0f} |", flush=True)


def large(rounds: int, device: str) -> None:
    """250,000 x 128 within the memory that is given by default, 1 GiB."""
    name = next(iter(CONTESTANTS))
    warm_up(name, device)
    x, labels = clusters(250_000, 128, 50_000, 1.5, device)
    seconds = timed({name: partial(ours, x, labels)}, 1)[name]
    memory = peak_elsewhere(name, 250_000, 128, 50_000, 1.5)
    recall = 100 * ours(x, labels)["recall@1"]
    print(f"\n250,000 x 128, 50,000 classes: {seconds:.0f} s, {memory:.0f} MB, R@1 {recall:.1f}")


PARTS = {"sop": sop, "classes": classes, "mars": mars, "growth": growth, "large": large}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.peak:
        name, n, d, count, noise = words.peak
        print(peak(name, int(n), int(d), int(count), float(noise)))
        return
    where = torch.cuda.get_device_name() if words.device == "cuda" else f"{os.cpu_count()} CPU cores"
    versions = f"torch {torch.__version__}, numpy {np.__version__}"
    print(f"{versions}, {where}, {words.rounds} rounds, {time.strftime('%Y-%m-%d')}")
    for part in words.parts or PARTS:
        PARTS[part](words.rounds, words.device)


if __name__ == "__main__":
    main()
