"""From pictures to embeddings, and what is written down of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.data.images import Images
from metricweight.data.loader import Wanted, batches
from metricweight.data.split import Indices
from metricweight.files import write_arrays
from metricweight.progress import say, track
from metricweight.settings import DataSettings
from metricweight.training import checkpoint
from metricweight.training.distributed import Processes
from metricweight.training.engine import autocast
from metricweight.training.pictures import blocks_of, items_of, load_images, splits_of, view_of, workers_of

SPLITS = ("train", "validation", "test")


def embed(run: Path, data: str | None, split: str | None, out: Path | None, overwrite: bool) -> Path:
    """Writes the embeddings of pictures, by the network of a run, and returns the file.

    data   "glyphs", "digits", a folder of class folders, a CSV or a manifest; None: the data of the run
    split  "train", "validation", "test" or "all"; None: test for the data of the run and for data that have a test half
           of their own, all for other data
    out    an .npz file; None: RUN/embeddings[-DATA][-SPLIT].npz, without DATA for that of the run, without SPLIT if
           it was not given
    """
    if split not in (*SPLITS, "all", None):
        raise InputError(f"--split is {', '.join(SPLITS)} or all, got '{split}'.")
    model, settings, state = checkpoint.load(run)
    channels = state["channels"]
    source = settings.data if data is None else _other(settings.data, data)
    own = (source.source, source.root) == (settings.data.source, settings.data.root)
    named = [] if own else [source.root.stem if source.root else source.source]
    out = out or run / ("-".join(["embeddings", *named, *filter(None, [split])]) + ".npz")
    if out.suffix != ".npz":
        raise InputError(f"--out must be an .npz file, got {out}.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; add --overwrite to replace it, or choose another --out.")
    images = load_images(source, channels)
    split = split or ("test" if own or "test" in images.splits else "all")
    if images.channels != channels:
        raise InputError(f"the network of {run} looks at {_colour(channels)} pictures; {data} has others.")
    indices = np.arange(len(images)) if split == "all" else splits_of(images, source)[split]
    if not len(indices):
        raise InputError(f"there are no {split} classes, since data.{split}={getattr(source, split)}.")
    device = "cpu" if settings.device == "cpu" or not torch.cuda.is_available() else "cuda"
    embeddings, indices = embed_images(
        {"": model}, images, indices, source, Processes(device=device), "embedding", settings.precision
    )
    found = embeddings[""]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(out, found, images, indices, split)
    say(f"{len(found):,} embeddings of {found.shape[1]} numbers ({split} classes) are in {out}. How good they are:")
    say(f"  metricweight evaluate {out}")
    return out


def embed_images(
    networks: Mapping[str, nn.Module],
    images: Images,
    indices: Indices,
    data: DataSettings,
    processes: Processes,
    what: str | None,
    precision: str = "fp32",
    flip: bool = False,
) -> tuple[dict[str, NDArray[np.float32]], Indices]:
    """Embeddings [I, D] by each network of the items of the images at `indices`, seen as in a test: that of a tracklet
    is the mean of those of its frames. Each picture is read once; processes share the work, and all have the result.

    what       name of the progress bar, if any
    precision  in which the networks work
    flip       the mean of each picture's and its mirror image's embedding

    Beside them, the indices of the images whose items are in it: damaged pictures may have been left out.
    """
    of = items_of(images, indices).of
    place = np.empty(len(images), np.int64)
    place[indices] = np.arange(len(indices))
    counts = torch.zeros(int(of.max()) + 1)
    sums: dict[str, Tensor] = {}
    for network in networks.values():
        network.to(processes.device).eval()
    wanted = [Wanted(block) for block in blocks_of(indices[processes.rows(len(indices))])]
    coming = batches(
        images, view_of(data), wanted, workers=workers_of(images, data), damaged=data.damaged, cache=data.cache,
        pin=processes.device != "cpu",
    )  # fmt: skip
    with torch.inference_mode():
        for batch in track(coming, what, total=len(wanted)):
            seen = batch.images.to(processes.device, non_blocking=True)
            where = torch.from_numpy(of[place[batch.indices]])
            counts.index_add_(0, where, torch.ones(len(where)))
            for name, network in networks.items():
                found = embedded(network, seen, precision, flip).cpu()
                if name not in sums:
                    sums[name] = found.new_zeros(len(counts), found.shape[1])
                sums[name].index_add_(0, where, found)
            for bad in batch.damaged:
                say(f"left out: {bad}")
    processes.add_up(counts)
    there = counts > 0
    means = {name: (processes.add_up(total) / counts[:, None])[there].numpy() for name, total in sums.items()}
    return means, indices[there.numpy()[of]]


def embedded(network: nn.Module, images: Tensor, precision: str = "fp32", flip: bool = False) -> Tensor:
    """Embeddings [B, D] in float32."""
    with autocast(precision, images.device.type):
        found: Tensor = network(images)
        if flip:
            found = (found.float() + network(images.flip(-1)).float()) / 2
    return found.float()


def write_embeddings(path: Path, embeddings: NDArray[np.float32], images: Images, indices: Indices, split: str) -> None:
    """An .npz file with embeddings [I, D], labels [I], names [I], and the split, of the items of the images.

    Labels are positions in `classes`, the names of the classes. In a test half that is judged by queries and a gallery,
    labels are the numbers of the source instead, beside `queries`, the name of the `protocol`, and `cameras` where
    there are any. A tracklet has the name of its first frame.
    """
    first = items_of(images, indices).first
    names = np.array([images.names[i] for i in first])
    if images.roles is None or split != "test":
        more = {"labels": images.labels[first], "classes": np.array(images.classes)}
    else:
        roles = images.roles
        more = {
            "labels": roles.numbers[first],
            "queries": roles.queries[first],
            "protocol": np.array(roles.protocol),
        }
        if (roles.cameras[first] >= 0).any():
            more["cameras"] = roles.cameras[first]
    write_arrays(path, embeddings=embeddings, names=names, split=np.array(split), **more)


def _other(own: DataSettings, data: str) -> DataSettings:
    """Settings for other data, seen as the run saw its own."""
    builtin = data in ("glyphs", "digits")
    source = data if builtin else "folder"
    transform = "none" if own.transform == "distort" and source != own.source else own.transform
    change = {"source": source, "root": None if builtin else data, "transform": transform}
    return DataSettings.model_validate({**own.model_dump(), **change})


def _colour(channels: int) -> str:
    return "grey" if channels == 1 else "colour"
