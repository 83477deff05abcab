"""From pictures to embeddings, and what is written down of them."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError, Interrupted, nearest
from metricweight.data.embeddings import PARTS, part_name, parts
from metricweight.data.images import Files, Images
from metricweight.data.loader import Batch, Wanted
from metricweight.data.split import Indices
from metricweight.files import write_arrays
from metricweight.models.backbones import BACKBONES
from metricweight.models.heads import Embedder, embedder
from metricweight.models.weights import checksum
from metricweight.progress import say, track
from metricweight.settings import DataSettings, Settings, TrackletSettings, changed, read
from metricweight.training import checkpoint
from metricweight.training.distributed import Processes, joined
from metricweight.training.engine import autocast
from metricweight.training.objective import Objective
from metricweight.training.pictures import (
    BLOCK,
    blocks_of,
    items_of,
    load_images,
    seen,
    splits_of,
    view_of,
    with_pixels,
)
from metricweight.training.tracklets import Fuse, TrackletObjective, frames_judged, fuser, means, rebuilt

SPLITS = ("train", "validation", "test")
PART = 16 * BLOCK  # pictures that are embedded before they are written down


class Asked(NamedTuple):
    """What is to be embedded, by what.

    settings  with the data that are to be embedded
    model     None: the backbone of the settings, whose channels are those of the pictures
    channels  of the pictures that the model looks at, where there is a model
    stem      where the embeddings go if nothing is said, without the split and without .npz
    own       the data are those that the model was trained on
    objective what the model was trained by, where tracklets are judged by what it has learned
    """

    settings: Settings
    model: Embedder | None
    channels: int | None
    stem: Path
    own: bool
    objective: Objective | TrackletObjective | None = None


def embed(
    what: str,
    words: Sequence[str] = (),
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    flip: bool = False,
    shards: bool = False,
) -> Path:
    """Writes the embeddings of pictures, by the network of a run or by a backbone without training, and returns where.

    what    folder of a run, a checkpoint in it, or the name of a backbone
    words   settings of a backbone, which are those of the recipe `folder` but for the features as they are, and
            pictures of the size that the backbone was made for; of a run those alone by which tracklets are judged,
            tracklets.test_clip, test_frames and test_fusion
    data    "glyphs", "digits", a folder of class folders, a CSV or a manifest; None: the data of the run
    split   "train", "validation", "test" or "all"; None: test for the data of the run and for data that have a test
            half of their own, all for other data
    out     an .npz file, or a folder of parts; None: RUN/embeddings[-STEP][-DATA][-SPLIT].npz, without DATA for that of
            the run, without SPLIT if it was not given; or BACKBONE-DATA[-SPLIT].npz
    flip    the mean of each picture's and its mirror image's embedding
    shards  leave the parts in a folder as they are

    Parts of PART pictures are written to OUT.parts, or to the folder `out`, and what was stopped goes on after them.
    Parts of another network, of other pictures or settings are not mixed: InputError, or they are made anew where
    `overwrite` says that what is there may go. Started by torchrun, processes share the work.
    """
    if split not in (*SPLITS, "all", None):
        raise InputError(f"--split is {', '.join(SPLITS)} or all, got '{split}'.")
    asked = _asked(what, words, data)
    stem = asked.stem.name if split is None else f"{asked.stem.name}-{split}"
    out = out or asked.stem.with_name(stem if shards else f"{stem}.npz")
    _check_free(out, shards, overwrite)
    settings, fuse = asked.settings, fuser(asked.settings, asked.objective)
    with joined(settings.device) as processes:
        images = load_images(settings.data, asked.channels)
        if asked.channels not in (None, images.channels):
            raise InputError(f"the network of {what} looks at {_colour(asked.channels)} pictures; {data} has others.")
        split = split or ("test" if asked.own or "test" in images.splits else "all")
        indices = np.arange(len(images)) if split == "all" else splits_of(images, settings.data)[split]
        if not len(indices):
            raise InputError(f"there are no {split} classes, since data.{split}={getattr(settings.data, split)}.")
        model = asked.model or _backbone(settings, images.channels, processes)
        settings = settings if asked.model else with_pixels(settings, images.channels)
        indices = frames_judged(images, indices, settings.tracklets)
        _embed(model, asked.objective, fuse, settings, images, indices, split, flip, out, shards, overwrite, processes)
    return out


def _asked(what: str, words: Sequence[str], data: str | None) -> Asked:
    """Finds what is meant by the first word of a command line, and what is to be embedded by it."""
    path = Path(what)
    if path.is_file() or (path / "checkpoint.pt").is_file():
        return _of_run(path, words, data)
    if what in BACKBONES or what.startswith("timm:"):
        return _of_backbone(what, words, data)
    raise InputError(
        f"{what} holds no checkpoint.pt, and is neither a checkpoint nor a backbone{nearest(what, BACKBONES)} Give the "
        f"folder that `metricweight train` wrote, a checkpoint in it, or one of {', '.join(BACKBONES)}, timm:NAME."
    )


def _of_run(path: Path, words: Sequence[str], data: str | None) -> Asked:
    for word in words:
        if not word.startswith("tracklets.test_"):
            raise InputError(
                f"{word}: a run has its own settings; only tracklets.test_clip, test_frames and test_fusion can be "
                "others. Words are for a backbone."
            )
    model, settings, found = checkpoint.load(path)
    settings = changed(settings, words)
    learned = settings.tracklets.test_fusion in ("quality", "self_attention")
    objective = rebuilt(settings, found, model) if learned else None
    source = settings.data if data is None else _other(settings.data, data)
    own = (source.source, source.root) == (settings.data.source, settings.data.root)
    state = path if path.is_file() and path.name != "checkpoint.pt" else None
    folder = path if path.is_dir() else path.parent
    home = folder.parent if folder.name == checkpoint.STATES else folder
    names = ["embeddings", *([state.stem] if state else []), *([] if own else [_name(source)])]
    device = "cpu" if settings.device == "cpu" else "auto"  # it may have been trained elsewhere
    settings = settings.model_copy(update={"data": source, "device": device})
    return Asked(settings, model, found["channels"], home / "-".join(names), own, objective)


def _of_backbone(name: str, words: Sequence[str], data: str | None) -> Asked:
    if data is None:
        raise InputError(f"{name} is a backbone, which has no data of its own; say what it shall embed with --data.")
    for word in words:
        if word.startswith(("data.root=", "data.source=", "model.backbone=", "model.embedding_size=")):
            raise InputError(
                f"{word} cannot be set here: --data says what is embedded, the first word by which backbone, and the "
                "embeddings are its features as they are."
            )
    size = BACKBONES[name].size if name in BACKBONES else 224
    own = [f"model.backbone={name}", "model.embedding_size=null"]
    settings = read("folder", [f"data.size={size}", *words, *own])
    settings = settings.model_copy(update={"data": _other(settings.data, data)})
    return Asked(settings, None, None, Path(re.sub(r"[^\w.-]+", "-", f"{name}-{_name(settings.data)}")), own=False)


def _backbone(settings: Settings, channels: int, processes: Processes) -> Embedder:
    torch.manual_seed(settings.seed)
    with processes.first_alone():  # so that weights are fetched once
        model = embedder(channels, **settings.model.model_dump())
    start = model.origin.get("weights", "random weights; model.pretrained=true or model.weights=FILE gives others")
    say(f"{settings.model.backbone} as it is: {start}.")
    return model


def _check_free(out: Path, shards: bool, overwrite: bool) -> None:
    if shards and out.suffix == ".npz":
        raise InputError(f"--shards makes a folder; give another --out than {out}.")
    if not shards and out.suffix != ".npz":
        raise InputError(f"--out must be an .npz file, got {out}.")
    if shards and out.is_file():
        raise InputError(f"{out} is a file; --shards makes a folder, so choose another --out.")
    if shards and out.is_dir() and not any(out.glob(PARTS)) and any(out.glob("[!.]*")):
        raise InputError(f"{out} is a folder of other things than embeddings; choose another --out.")
    if not shards and out.exists() and not overwrite:
        raise InputError(f"{out} is already there; add --overwrite to replace it, or choose another --out.")


def _embed(
    model: Embedder,
    objective: nn.Module | None,
    fuse: Fuse,
    settings: Settings,
    images: Images,
    indices: Indices,
    split: str,
    flip: bool,
    out: Path,
    shards: bool,
    overwrite: bool,
    processes: Processes,
) -> None:
    """Makes the parts that are not there yet, and one file of all, unless they are to stay as they are."""
    cuts = cut_by_items(images, indices)
    folder = out if shards else out.with_name(f"{out.name}.parts")
    stamp = _stamp(model, objective, settings, images, cuts, split, flip)
    shapes = processes.tell(_there(folder, len(cuts), stamp, overwrite) if processes.first else {})
    left = [number for number in range(len(cuts)) if number not in shapes]
    if shards and not left and not overwrite:
        raise InputError(f"{out} is already there, with all parts; add --overwrite, or choose another --out.")
    if shapes:
        say(f"{len(shapes)} of {len(cuts)} parts are there already{'; the work goes on with the others' * bool(left)}.")
    made = _by_parts(
        {"": model}, images, [cuts[number] for number in left], settings.data, processes, "embedding",
        settings.precision, flip, {"": fuse},
    )  # fmt: skip
    try:
        for number, part in zip(left, made, strict=True):
            found = part.embeddings[""]
            if processes.first:
                more = {"stamp": np.array(json.dumps(stamp)), "part": np.array([number, len(cuts)])}
                known = _described(part, "", images, split, flip, settings.tracklets)
                write_arrays(folder / part_name(number), embeddings=found, **known, **more)
            shapes[number] = found.shape
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {len(shapes)} of {len(cuts)} parts are in {folder}. The same command goes on with the others."
        ) from None
    finally:
        if processes.first:
            with suppress(OSError):
                folder.rmdir()  # which only an empty folder allows
    if processes.first:
        _finish(folder, out, shards, shapes.values(), sum(len(items_of(images, cut).first) for cut in cuts), split)


def _finish(folder: Path, out: Path, shards: bool, shapes: Iterable[tuple[int, ...]], items: int, split: str) -> None:
    """Puts the parts together, and says what there is now."""
    count, size = sum(rows for rows, _ in shapes), max(dim for _, dim in shapes)
    if not count:
        raise InputError("none of the pictures can be read, so nothing can be embedded.")
    if not shards:
        write_arrays(folder / out.name, **parts(folder, folder / "embeddings.npy"))
        os.replace(folder / out.name, out)
        shutil.rmtree(folder)
    if count < items:
        say(f"{items - count:,} of {items:,} could not be read and were left out.")
    say(f"{count:,} embeddings of {size} numbers ({split} classes) are in {out}. How good they are:")
    say(f"  metricweight evaluate {out}")


def _stamp(
    model: Embedder,
    objective: nn.Module | None,
    settings: Settings,
    images: Images,
    cuts: Sequence[Indices],
    split: str,
    flip: bool,
) -> dict[str, str]:
    """What parts have in common that may stand in one file, each as a checksum: what differs can be named."""
    asked, data, device = settings.model.model_dump(mode="json"), settings.data, settings.device
    for origin in ("pretrained", "weights"):  # the weights themselves are looked at
        del asked[origin]
    device = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    judged = settings.tracklets.seen if images.tracklets is not None else None
    view = [repr(view_of(data)), data.damaged, split, flip, settings.precision, device, PART, BLOCK, judged]
    rows = np.concatenate(cuts)
    arrays: list[NDArray[Any]] = [rows, images.labels[rows]]
    if (roles := images.roles) is not None:
        arrays += [x[rows] for x in (roles.numbers, roles.queries, roles.cameras)]
    if images.tracklets is not None:
        arrays.append(images.tracklets[rows])
    if isinstance(images.picture, Files):
        arrays += [np.array([images.picture.states[i] for i in rows])]
    return {
        "network": _hash(asked, checksum(model), *([] if objective is None else [checksum(objective)])),
        "pictures": _hash(images.stamp, roles and roles.protocol, *arrays),
        "settings": _hash(view),
    }


def _hash(*facts: Any) -> str:
    found = hashlib.sha256()
    for fact in facts:
        found.update(fact.tobytes() if isinstance(fact, np.ndarray) else json.dumps(fact).encode())
    return found.hexdigest()


def _there(folder: Path, count: int, stamp: Mapping[str, str], overwrite: bool) -> dict[int, tuple[int, ...]]:
    """The parts that a folder has already, with the shape of their embeddings; the folder is made if it is not there.

    Raises InputError for parts that have another stamp; with `overwrite`, they are taken away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half_written in folder.glob(".part-*.npz.*"):
        half_written.unlink(missing_ok=True)  # the process that wrote it was killed
    found: dict[int, tuple[int, ...]] = {}
    for path in sorted(folder.glob(PARTS)):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                part = {name: arrays[name] for name in arrays.files}
            its = json.loads(str(part.get("stamp", "{}")))
        except Exception:  # a damaged file fails in many ways; it is made anew
            continue
        if its == stamp and path.name == part_name(int(part["part"][0])) and part["part"][1] == count:
            found[int(part["part"][0])] = part["embeddings"].shape
        elif overwrite:
            path.unlink()
        else:
            other = [name for name in stamp if its.get(name) != stamp[name]] or ["number"]
            raise InputError(
                f"{path} is no part of what was asked for, but of other {' and '.join(other)}; add --overwrite to "
                "replace it, or choose another --out."
            )
    return found


class Embedded(NamedTuple):
    """Some items of the images, by each of some networks.

    embeddings  [I, D] of each network, by name
    first       [I, D] the same of the first frame of each item alone, the first that can be read
    indices     of the images of these items; those of an item stand together
    """

    embeddings: dict[str, NDArray[np.float32]]
    first: dict[str, NDArray[np.float32]]
    indices: Indices


def embed_images(
    networks: Mapping[str, nn.Module],
    images: Images,
    indices: Indices,
    data: DataSettings,
    processes: Processes,
    what: str | None,
    precision: str = "fp32",
    flip: bool = False,
    fuse: Mapping[str, Fuse] | None = None,
) -> Embedded:
    """Embeddings by each network of the items of the images at `indices`, seen as in a test. Each picture is read once;
    processes share the work, and all have the result, which is the same for any number of them.

    what       name of the progress bar, if any
    precision  in which the networks work
    flip       the mean of each picture's and its mirror image's embedding
    fuse       how the frames of a tracklet become one embedding, by the name of the network; else their mean

    Damaged pictures may have been left out. Raises InputError where none can be read.
    """
    made = _by_parts(
        networks, images, cut_by_items(images, indices), data, processes, what, precision, flip, fuse or {}
    )
    found = [part for part in made if len(part.indices)]
    if not found:
        raise InputError("none of the pictures can be read, so nothing can be embedded.")
    return Embedded(
        {name: np.concatenate([part.embeddings[name] for part in found]) for name in networks},
        {name: np.concatenate([part.first[name] for part in found]) for name in networks},
        np.concatenate([part.indices for part in found]),
    )


def cut_by_items(images: Images, indices: Indices) -> list[Indices]:
    """The images at `indices` in parts, item by item; a part is of the items that begin within PART images."""
    of = items_of(images, indices).of
    together = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[together], prepend=-1))
    return np.split(indices[together], starts[np.flatnonzero(np.diff(starts // PART)) + 1])


def _by_parts(
    networks: Mapping[str, nn.Module],
    images: Images,
    cuts: Sequence[Indices],
    data: DataSettings,
    processes: Processes,
    what: str | None,
    precision: str,
    flip: bool,
    fuse: Mapping[str, Fuse],
) -> Iterator[Embedded]:
    """The embeddings of each part in turn. Never are more than BLOCK pictures embedded at once."""
    for network in networks.values():
        network.to(processes.device).eval()
    mine = [blocks_of(cut)[processes.rank :: processes.size] for cut in cuts]
    wanted = [Wanted(block) for blocks in mine for block in blocks]
    coming = seen(images, data, wanted, processes)
    with closing(track(coming, what, total=len(wanted))) as tracked:  # type: ignore[type-var]
        for cut, blocks in zip(cuts, mine, strict=True):
            yield _part(networks, images, cut, islice(tracked, len(blocks)), processes, precision, flip, fuse)


def _part(
    networks: Mapping[str, nn.Module],
    images: Images,
    cut: Indices,
    coming: Iterable[Batch],
    processes: Processes,
    precision: str,
    flip: bool,
    fuse: Mapping[str, Fuse],
) -> Embedded:
    """The items of a part, of which this process embeds some pictures. All of its frames are held, no more."""
    place = np.empty(len(images), np.int64)
    place[cut] = np.arange(len(cut))
    there = torch.zeros(len(cut))
    frames: dict[str, Tensor] = {}
    damaged: list[str] = []
    for batch in coming:
        damaged += batch.damaged
        if not len(batch.indices):
            continue
        pictures = batch.images.to(processes.device, non_blocking=True)
        where = torch.from_numpy(place[batch.indices])
        there[where] = 1
        for name, network in networks.items():
            found = embedded(network, pictures, precision, flip).cpu()
            if name not in frames:
                frames[name] = found.new_zeros(len(cut), found.shape[1])
            frames[name][where] = found
    everybodys = processes.all_tell(({name: x.shape[1] for name, x in frames.items()}, damaged))
    for bad in (bad for _, some in everybodys for bad in some):
        say(f"{bad} It is left out.")
    widths: dict[str, int] = {name: width for some, _ in everybodys for name, width in some.items()}
    read = processes.add_up(there) > 0
    cut = cut[read.numpy()]
    items = items_of(images, cut)
    of, starts = torch.from_numpy(items.of), torch.from_numpy(np.flatnonzero(np.diff(items.of, prepend=-1)))
    fused, first = {}, {}
    for name in networks:
        x = frames.pop(name) if name in frames else torch.zeros(len(there), widths.get(name, 0))
        x = processes.add_up(x)[read]
        fused[name] = fuse.get(name, means)(x, of, len(starts)).numpy() if len(starts) else x.numpy()
        first[name] = fused[name] if images.tracklets is None else x[starts].numpy()
    return Embedded(fused, first, cut)


@torch.inference_mode()
def embedded(network: nn.Module, images: Tensor, precision: str = "fp32", flip: bool = False) -> Tensor:
    """Embeddings [B, D] in float32. Where a GPU has too little memory for so many images, half as many at a time."""
    try:
        with autocast(precision, images.device.type):
            found: Tensor = network(images)
            if flip:
                found = (found.float() + network(images.flip(-1)).float()) / 2
        return found.float()
    except torch.cuda.OutOfMemoryError as error:
        if len(images) == 1:
            raise InputError(f"out of memory with a single picture ({error}); lower data.size.") from None
    halves = torch.tensor_split(images, 2)  # here, where the memory of what failed is free again
    return torch.cat([embedded(network, half, precision, flip) for half in halves])


def write_embeddings(
    path: Path, found: Embedded, name: str, images: Images, split: str, flip: bool, asked: TrackletSettings
) -> None:
    """An .npz file with the embeddings by one of the networks, and what is known of the items."""
    write_arrays(path, embeddings=found.embeddings[name], **_described(found, name, images, split, flip, asked))


def _described(
    found: Embedded, name: str, images: Images, split: str, flip: bool, asked: TrackletSettings
) -> dict[str, NDArray[Any]]:
    """What an .npz file says beside embeddings: labels [I], names [I], the split, and whether each is the mean of two.

    Labels are positions in `classes`, the names of the classes. In a test half that is judged by queries and a gallery,
    labels are the numbers of the source instead, beside `queries`, the name of the `protocol`, and `cameras` where
    there are any. A tracklet has the name of its first frame; where there are some, `seen` says what of them was
    embedded, and `query_images` [Q, D] is the first frame alone of each query.
    """
    first, roles = items_of(images, found.indices).first, images.roles
    more: dict[str, NDArray[Any]] = {}
    if images.tracklets is not None:
        more["seen"] = np.array(asked.seen)
    if roles is None or split != "test":
        more |= {"labels": images.labels[first], "classes": np.array(images.classes)}
    else:
        queries = roles.queries[first]
        more |= {"labels": roles.numbers[first], "queries": queries, "protocol": np.array(roles.protocol)}
        if (roles.cameras[images.splits["test"]] >= 0).any():
            more["cameras"] = roles.cameras[first]
        if images.tracklets is not None:
            more["query_images"] = found.first[name][queries]
    names = np.array([images.names[i] for i in first], dtype=str)
    return {"names": names, "split": np.array(split), "flip": np.array(flip), **more}


def _other(own: DataSettings, data: str) -> DataSettings:
    """Settings for other data, seen as the run saw its own."""
    builtin = data in ("glyphs", "digits")
    source = data if builtin else "folder"
    transform = "none" if own.transform == "distort" and source != own.source else own.transform
    change = {"source": source, "root": None if builtin else data, "transform": transform}
    return DataSettings.model_validate({**own.model_dump(), **change})


def _name(data: DataSettings) -> str:
    return data.root.stem if data.root else data.source


def _colour(channels: int | None) -> str:
    return "grey" if channels == 1 else "colour"
