"""Speed and memory of losses on pairs, beside pytorch-metric-learning (PML) and the matrix products they cannot avoid.

    python benchmarks/losses.py                        all sizes, wall time; then memory at the largest
    python benchmarks/losses.py --sizes 512 --rounds 9
    python benchmarks/losses.py --device cuda

Each time is forward and backward from embeddings [N, D], four to a class, float32, encoder excluded. All
contestants of a size run in turn, round after round, in one process; the smallest time of each counts, and ratios
of those are printed. The floor is E @ E.T and the two products of its backward pass. Memory is what the process (on
a GPU: torch) held at its peak beyond what it held before, each contestant in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_metric_learning
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from torch import Tensor

from metricweight import losses, miners
from metricweight.pml import attach

SIZES = [(n, d) for d in (128, 512) for n in (512, 2048, 4096)]

Contestant = Callable[[Tensor, Tensor], Tensor]


def contestants(name: str, n: int, d: int) -> dict[str, Contestant | str]:
    """Ours and PML's of one method; a text where it is not run."""
    attention = losses.ClassAwareAttention(n // 4, d)
    return {
        "ranked_list": {
            "ours": losses.RankedListLoss(),
            "ours, free gallery": losses.RankedListLoss(gallery="free"),
            "PML": pml.RankedListLoss(margin=0.4, Tn=10),
        },
        "online_soft_mining with attention": {
            "ours": losses.OnlineSoftMiningLoss(attention=attention),
            "PML (contrastive)": pml.ContrastiveLoss(),
        },
        "instance_cross_entropy": {
            "ours": losses.InstanceCrossEntropyLoss(),
            "PML (NT-Xent)": pml.NTXentLoss(temperature=1 / 16)
            if n <= 256
            else "not run: more than 4 GiB above N = 256",
        },
        "multi_similarity": {"ours": losses.MultiSimilarityLoss(), "PML": pml.MultiSimilarityLoss()},
        "contrastive": {
            "ours": losses.ContrastiveLoss(squared=False),
            "ours, squared": losses.ContrastiveLoss(),
            "PML": pml.ContrastiveLoss(),
        },
    }[name]  # type: ignore[return-value]


METHODS = [
    "ranked_list",
    "online_soft_mining with attention",
    "instance_cross_entropy",
    "multi_similarity",
    "contrastive",
]


def data(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Clusters that overlap: all kinds of pairs are active."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) // 4
    x = torch.randn(n // 4, d, generator=generator)[labels] + 0.7 * torch.randn(n, d, generator=generator)
    return x.to(device).requires_grad_(), labels.to(device)


def step(contestant: Contestant, x: Tensor, labels: Tensor) -> None:
    x.grad = None
    contestant(x, labels).backward()


def floor(x: Tensor, labels: Tensor) -> None:
    e = F.normalize(x.detach())
    similarity = e @ e.T
    similarity @ e
    similarity.T @ e


def seconds(run: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def timed(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """The smallest time of each, in ms, all in turn."""
    for run in runs.values():
        seconds(run, device)
    times = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(rounds)]
    return {name: 1e3 * min(of[name] for of in times) for name in runs}


def time_methods(n: int, d: int, rounds: int, device: str) -> list[str]:
    x, labels = data(n, d, device)
    runs: dict[str, Callable[[], object]] = {"floor": lambda: floor(x, labels)}
    for method in METHODS:
        for name, contestant in contestants(method, n, d).items():
            if not isinstance(contestant, str):
                moved = contestant.to(device)  # type: ignore[attr-defined]
                runs[f"{method}/{name}"] = lambda moved=moved: step(moved, x, labels)  # type: ignore[misc]
    found = timed(runs, rounds * 4096 // n, device)
    lines = []
    for method in METHODS:
        of = contestants(method, n, d)
        theirs = next(name for name in of if name.startswith("PML"))
        for name, contestant in of.items():
            if isinstance(contestant, str):
                lines.append(f"| {n} | {d} | {method} | {name} | {contestant} | | |")
                continue
            ms, reference = found[f"{method}/{name}"], found.get(f"{method}/{theirs}")
            ratio = f"{ms / reference:.2f}" if reference and name != theirs else ""
            lines.append(f"| {n} | {d} | {method} | {name} | {ms:.1f} | {ms / found['floor']:.1f} | {ratio} |")
    return lines


def time_attach(n: int, d: int, rounds: int, device: str) -> str:
    """What hooks cost: an attached loss against the loss and the miner, one after the other."""
    x, labels = data(n, d, device)
    plain, attached, miner = pml.ContrastiveLoss(), pml.ContrastiveLoss(), miners.OnlineSoftMiner()
    attach(attached, pair=miner)

    def both() -> None:
        positive, negative = miner.scores(x.detach(), labels)
        positive + negative
        step(plain, x, labels)

    runs = {"both": both, "attached": lambda: step(attached, x, labels)}
    found = timed(runs, rounds * 4096 // n, device)
    return f"| {n} | {d} | {found['both']:.1f} | {found['attached']:.1f} | {found['attached'] / found['both']:.2f} |"


def peak(method: str, name: str, n: int, d: int, device: str) -> float:
    """MB beyond what was held before, in this process."""
    contestant = contestants(method, n, d)[name]
    assert not isinstance(contestant, str)
    moved = contestant.to(device)  # type: ignore[attr-defined]
    step(moved, *data(64, d, device))  # libraries are loaded
    x, labels = data(n, d, device)
    x.grad = torch.zeros_like(x)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(moved, x, labels)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    floor(*data(n // 8, d, device))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    step(moved, x, labels)
    return (_status("VmHWM") - before) / 2**10


def _status(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def memory(n: int, d: int, device: str) -> list[str]:
    lines = []
    for method in METHODS:
        for name, contestant in contestants(method, n, d).items():
            if isinstance(contestant, str):
                lines.append(f"| {n} | {d} | {method} | {name} | {contestant} |")
                continue
            words = [sys.executable, "-W", "ignore", __file__, "--peak", method, name, str(n), str(d)]
            found = subprocess.run([*words, "--device", device], check=True, capture_output=True, text=True).stdout
            lines.append(f"| {n} | {d} | {method} | {name} | {float(found):.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="N; default 512 2048 4096")
    parser.add_argument("--rounds", type=int, default=7, help="at N = 4096; proportionally more at smaller N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.peak:
        method, name, n, d = words.peak
        print(peak(method, name, int(n), int(d), words.device))
        return
    sizes = [(n, d) for n, d in SIZES if n in (words.sizes or [n])]
    where = torch.cuda.get_device_name() if words.device == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"torch {torch.__version__}, PML {pytorch_metric_learning.__version__}, {where}, {words.rounds} rounds, "
          f"{time.strftime('%Y-%m-%d')}\n")  # fmt: skip
    print("| N | D | loss | | ms | x floor | x PML |\n|--:|--:|:--|:--|--:|--:|--:|")
    for n, d in sizes:
        print("\n".join(time_methods(n, d, words.rounds, words.device)), flush=True)
    print("\nWeights of `OnlineSoftMiner` in PML's contrastive loss:\n")
    print("| N | D | loss and miner, ms | attached, ms | ratio |\n|--:|--:|--:|--:|--:|")
    for n, d in sizes:
        print(time_attach(n, d, words.rounds, words.device), flush=True)
    print("\nPeak memory:\n\n| N | D | loss | | MB |\n|--:|--:|:--|:--|--:|")
    for d in (128, 512):
        print("\n".join(memory(max(n for n, _ in sizes), d, words.device)), flush=True)


if __name__ == "__main__":
    main()
