"""From pictures to embeddings: which pictures, how the network sees them, and what is written down."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.data import glyphs, transforms
from metricweight.data.images import Images, digits, from_manifest
from metricweight.data.split import Indices, split_by_class
from metricweight.files import write_arrays
from metricweight.progress import say, track
from metricweight.settings import DataSettings
from metricweight.training import checkpoint

BATCH = 256
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
    model, settings, channels = checkpoint.load(run)
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
    found = embed_images(model, images, indices, source, device, "embedding")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(out, found, images, indices, split)
    say(f"{len(found):,} embeddings of {found.shape[1]} numbers ({split} classes) are in {out}. How good they are:")
    say(f"  metricweight evaluate {out}")
    return out


def load_images(data: DataSettings, channels: int | None = None) -> Images:
    """The pictures that the settings name. `channels`: what a network that is there already looks at."""
    if data.source == "glyphs":
        if data.size != glyphs.SIZE:
            raise InputError(f"the glyphs are drawn {glyphs.SIZE} x {glyphs.SIZE}; data.size={data.size} cannot be.")
        found = glyphs.load(lambda faces: track(faces, "drawing glyphs"))
        for note in found.notes:
            say(note)
        say(f"glyphs: {found.merged} characters were merged into others that are drawn alike.")
        return found.images
    if data.source == "digits":
        return digits(data.size)
    if data.root is None:
        raise InputError(
            "setting data.root is needed: a folder of class folders, a CSV with path and label, or a manifest."
        )
    if data.transform == "distort":
        raise InputError("data.transform=distort is for the glyphs; use crop or none for pictures.")
    room = round(data.size * 8 / 7) if data.transform == "crop" else data.size
    return from_manifest(data.root, room, channels or 3)


def splits_of(images: Images, data: DataSettings) -> dict[str, Indices]:
    """Indices of "train", "validation" and "test": those of the data where they have a train and a test half, with
    classes of the former held out to validate on if it has none for that; else split by class."""
    own = images.splits
    if not {"train", "test"} <= own.keys():
        return split_by_class(
            images.labels, test=data.test, validation=data.validation, order=data.order, seed=data.seed
        )
    splits = {"validation": np.arange(0), **own}
    if "validation" not in own and data.validation:
        labels = images.labels[own["train"]]
        classes = len(np.unique(labels))
        if classes < 4:
            raise InputError(
                f"{classes} training classes are too few to hold two of them out to validate on; set data.validation=0."
            )
        share = max(data.validation, 2 / classes)
        held_out = split_by_class(labels, test=share, validation=0, order=data.order, seed=data.seed)
        splits["train"], splits["validation"] = (own["train"][held_out[name]] for name in ("train", "test"))
    return splits


def seen(images: Images, indices: Indices, data: DataSettings, training: tuple[int, int] | None = None) -> Tensor:
    """What a network sees of some images: float32 [B, C, S, S].

    training  (seed, step) of a training batch, which decides its distortion. Otherwise the distortion is that of
              each image, fixed, and crops are centred
    """
    pixels = images.read(indices)
    if training is None:
        keys: list[transforms.Key] = [(data.seed, int(index)) for index in indices]
    else:
        keys = [(*training, place) for place in range(len(indices))]
    if data.transform == "distort":
        return transforms.whiten(transforms.distort(pixels, keys))
    if data.transform == "crop":
        return transforms.whiten(transforms.crop(pixels, keys if training else None, data.size))
    return transforms.whiten(pixels.float() / 255)


def blocks_of(indices: Indices) -> list[Indices]:
    return np.split(indices, range(BATCH, len(indices), BATCH))


class Items(NamedTuple):
    """What is judged of some images: the images themselves, or the tracklets that they are the frames of.

    of     [N] which item each image is of
    first  [I] the first image of each item, which has its label, camera and name
    """

    of: Indices
    first: Indices


def items_of(images: Images, indices: Indices) -> Items:
    """The items of the images at `indices`, in the order in which these name them first."""
    alone = np.arange(len(indices))
    if images.roles is None:
        return Items(alone, indices)
    tracklets = images.roles.tracklets[indices]
    _, first, of = np.unique(np.where(tracklets < 0, -1 - alone, tracklets), return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return Items(place[of], indices[first[order]])


def embed_images(
    network: nn.Module, images: Images, indices: Indices, data: DataSettings, device: str, what: str | None
) -> NDArray[np.float32]:
    """Embeddings [I, D] of the items of the images at `indices`, seen as in a test: that of a tracklet is the mean of
    those of its frames. `what`: name of the progress bar, if any."""
    network = network.to(device).eval()
    of = torch.from_numpy(items_of(images, indices).of)
    counts = torch.bincount(of)
    sums: Tensor | None = None
    with torch.inference_mode():
        for block in track(blocks_of(np.arange(len(indices))), what):
            found = network(seen(images, indices[block], data).to(device)).cpu()
            sums = found.new_zeros(len(counts), found.shape[1]) if sums is None else sums
            sums.index_add_(0, of[block], found)
    assert sums is not None  # there is an image
    return (sums / counts[:, None]).numpy()


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
