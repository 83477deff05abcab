"""`metricweight train --dry-run`: everything that a training needs, tried once; nothing is written."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricweight.data.tracklets import ClipSampler
from metricweight.progress import say
from metricweight.settings import Settings, explain
from metricweight.training.distributed import joined
from metricweight.training.engine import Training, gradients, prepared
from metricweight.training.judging import check_judging
from metricweight.training.loop import coming, drawn
from metricweight.training.pictures import classes_of, items_of, read_all
from metricweight.training.statistics import weight_statistics


def dry_run(settings: Settings, origins: Mapping[str, str], as_json: bool) -> None:
    """Says what a training would do: its settings and where each comes from, data, network, steps and memory; and what
    its first batch comes to, of which nothing is kept.

    Raises InputError for whatever would make the training fail later, as far as that can be known.
    """
    with joined(settings.device) as processes:
        t = prepared(settings, processes)
        check_judging(t)
        read_all(t.images, np.concatenate(list(t.splits.values())), t.settings.data, t.processes)
        found = {"data": _data(t), "network": _network(t), "steps": _steps(t), "batch": _batch(t)}
        settings = t.settings
        del t
    if not processes.first:
        return
    if as_json:
        print(json.dumps({"settings": settings.model_dump(mode="json"), "origins": dict(origins), **found}, indent=2))
        return
    say(explain(settings, origins))
    say(f"\n{_table(found['data'])}\n")
    for name in ("network", "steps", "batch"):
        say("\n".join(f"{key:24} {_shown(value)}" for key, value in _readable(found[name])))
    say("\nThis would work: nothing was written.")


def _data(t: Training) -> dict[str, dict[str, int]]:
    table = {}
    for name, indices in t.splits.items():
        sizes = np.array(list(classes_of(t.images, indices, name).values()), dtype=np.int64)
        some = len(sizes) > 0
        tracklets = {} if t.images.tracklets is None else {"tracklets": len(items_of(t.images, indices).first)}
        table[name] = {
            "images": len(indices),
            **tracklets,
            "classes": len(sizes),
            "smallest class": int(sizes.min()) if some else 0,
            "largest class": int(sizes.max()) if some else 0,
        }
    return table


def _network(t: Training) -> dict[str, Any]:
    parts = {"backbone": t.model.backbone, "head": t.model.heads, **t.objective.parts()}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    learned = sum(p.numel() for group in t.optimizer.param_groups for p in group["params"])
    return {
        "backbone": t.settings.model.backbone,
        "parameters": counts,
        "learned": learned,
        "device": t.processes.device,
    }


def _steps(t: Training) -> dict[str, Any]:
    asked, batches = t.settings.tracklets, t.settings.batch.accumulate
    frames, items = 1, len(t.splits["train"])
    if isinstance(t.sampler, ClipSampler):
        frames, items = t.sampler.frames, t.sampler.tracklets
    facts: dict[str, Any] = {
        "steps": t.settings.steps,
        "batch": f"{t.settings.batch.classes} classes x {drawn(t)}",
        "images_per_step": t.sampler.size * batches,
        "epochs": round(t.settings.steps * t.sampler.size // frames * batches / items, 2),
        "processes": t.processes.size,
    }
    if t.images.tracklets is not None:
        facts |= {"learned_from": asked.learned, "judged_by": asked.seen}
    return facts


def _batch(t: Training) -> dict[str, Any]:
    """What the first batch comes to, and the memory that it took."""
    with closing(coming(t)) as batches:
        micro = [next(batches)]
    held: dict[int, int] = {}

    def packed(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    cuda = t.processes.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with nullcontext() if cuda else torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        done = gradients(t, micro)
    learned = [p for group in t.optimizer.param_groups for p in group["params"]]
    states = {"sgd": 1, "adam": 2, "adamw": 2}[t.settings.optimizer.name]
    weights = sum(p.numel() * p.element_size() for p in t.model.parameters())
    for_learning = sum(p.numel() * p.element_size() for p in learned) * (1 + states)
    peak = torch.cuda.max_memory_allocated() if cuda else sum(held.values()) + weights
    scale = t.scaler.get_scale()
    norms = {
        name: math.sqrt(sum(float((p.grad / scale).square().sum()) for p in part.parameters() if p.grad is not None))
        for name, part in (("backbone", t.model.backbone), ("head", t.model.heads), *t.objective.parts().items())
    }
    facts = weight_statistics(t.objective, done.judged, done.embeddings, done.gradient, done.labels, t.step)
    spread = facts["spread"] or 0.0
    risk = "high" if spread < 0.05 else "some" if spread < 0.2 else "low"
    return {
        "memory_bytes": peak + for_learning,
        "loss": float(done.loss),
        "gradient_norms": norms,
        **facts,
        "collapse_risk": f"{risk} (the embeddings of the batch are spread by {spread:.3f}; 0 is one point)",
    }


def _table(data: Mapping[str, Mapping[str, int]]) -> str:
    import pandas as pd

    return pd.DataFrame(data).T.to_string()


def _readable(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if key == "memory_bytes":
            yield "memory", f"about {value / 2**20:,.0f} MiB beside the pictures"
        else:
            yield key.replace("_", " "), value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(below)}" for key, below in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
