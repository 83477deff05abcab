"""What the scale of Instance Cross Entropy does, on the built-in glyphs.

    python benchmarks/instance_scale.py

Trains the recipe `glyphs` with each scale and looks at the validation classes, which are held out of the training
half; the test classes play no part. `share of the hardest` is how much of an anchor's push on its negatives falls on
the one that weighs most, over a batch of 32 classes x 4 of the trained network's embeddings: 1 is hard mining, 1/124
is none.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from metricweight.data.sampler import ClassBalancedSampler
from metricweight.miners import InstanceMiner
from metricweight.training.checkpoint import load
from metricweight.training.distributed import Processes
from metricweight.training.embedding import embed_images
from metricweight.training.pictures import load_images, splits_of


def share_of_the_hardest(run: Path, scale: float) -> float:
    model, settings, _ = load(run)
    images = load_images(settings.data)
    chosen = splits_of(images, settings.data)["train"]
    labels = images.labels[chosen]
    batch = chosen[ClassBalancedSampler(labels, 32, 4, seed=0).batch(0)]
    embeddings = torch.from_numpy(
        embed_images({"": model}, images, batch, settings.data, Processes(), None).embeddings[""]
    )
    negative = InstanceMiner(scale).scores(embeddings, torch.from_numpy(images.labels[batch])).negative
    return (negative.amax(1) / negative.sum(1)).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=600)
    words = parser.parse_args()
    print(f"torch {torch.__version__}, {words.steps} steps, {time.strftime('%Y-%m-%d')}\n")
    print("| scale | validation R@1, % | MAP@R, % | share of the hardest |\n|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for scale in words.scales:
            run = Path(folder) / f"{scale:g}"
            settings = ["loss.name=instance_cross_entropy", f"loss.scale={scale}", f"steps={words.steps}"]
            train = [sys.executable, "-m", "metricweight", "train", "glyphs", *settings, "--out", str(run)]
            subprocess.run(train, check=True, capture_output=True)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            found = next(line for line in reversed(lines) if "validation" in line)["validation"]
            print(
                f"| {scale:g} | {100 * found['recall@1']:.1f} | {100 * found['map@r']:.1f} | "
                f"{share_of_the_hardest(run, scale):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
