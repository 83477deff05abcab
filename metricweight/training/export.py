"""A network as an ONNX file that takes pictures as they are decoded, checked to give the embeddings of its run."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import metricweight
from metricweight.checks import InputError
from metricweight.data.images import Files, Images
from metricweight.data.split import Indices
from metricweight.data.transforms import BORDER, CAFFE, CROP, NCA, RESNET, TRANSFORMS, WHITE, Shape, View, scaled
from metricweight.files import whole_file
from metricweight.progress import say, track
from metricweight.retrieval.evaluation import evaluate
from metricweight.retrieval.report import EvaluationWarning
from metricweight.settings import DataSettings, Settings
from metricweight.training import checkpoint
from metricweight.training.embedding import _colour, _other
from metricweight.training.pictures import load_images, splits_of, view_of

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LARGEST = 2**31 - 2**24  # bytes of weights; a protocol buffer ends at 2 GiB

PICTURES = 512  # that the two are compared on
PER_CLASS = 8  # or more, where there are few classes
PROBED = 8  # of them are also seen one at a time, at another size, and beside their mirror images
BLOCK = 32  # pictures that are read at once
NUMBERS = 2**24  # pixels times channels that go through the file at once

COSINE = 0.9999  # of each picture's two embeddings, at least
POINTS = 0.001  # by which Recall@1 and MAP@R may differ, unless one query alone is more

Fit = Literal["cover", "cover, then its middle", "warp", "on white"]
FITS: dict[str, tuple[Fit, float]] = {  # how each transform fits a picture into multiples of (h, w) for a test
    "none": ("cover", 1),
    "crop": ("cover, then its middle", CROP),
    "distort": ("cover", 1),
    "ranked_list": ("on white", CAFFE),
    "ranked_list_simpler": ("warp", CAFFE),
    "multi_similarity": ("cover", CAFFE),
    "proxy_anchor": ("cover", RESNET),
    "proxy_nca": ("cover", NCA),
    "reality_check": ("cover", CAFFE),
    "norm_softmax": ("warp", RESNET),
    "person": ("warp", 1),
    "small": ("cover", 1),
}

Embed = Callable[[Tensor], NDArray[np.float32]]  # pictures uint8 [B, C, H, W] -> raw embeddings [B, D]


class Axis(NamedTuple):
    """What becomes of the rows, or of the columns, of pictures; integers [B], or [1] where it is the same for all.

    Of a picture, the `extent` pixels from `start` on are resized to `size`; pixel i of the result is pixel
    i + `offset` of these.
    """

    start: Tensor
    extent: Tensor
    size: Tensor
    offset: Tensor


class Preprocessing(nn.Module):
    """Test pictures as the network sees them: `View` as a function of tensors alone, so that it can be exported.

    Pictures uint8 [B, H, W, C], all of one size, whichever it is; the result is float32 [B, C, h, w]. Resizing is
    linear with antialiasing: the weight of pixel j for place x is max(0, 1 - |j - x| / max(1, scale)), divided by
    the sum of weights, where a picture is `scale` times as large as what it is resized to. It is done along rows,
    then along columns, each time rounded to whole numbers. `View` does the same by torchvision, whose weights are
    rounded; some values differ by 1 of 255.

    What a transform draws by chance in tests too (distort) is not done.
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.fit, ratio = FITS[view.transform]
        self.room: Shape = (round(view.shape[0] * ratio), round(view.shape[1] * ratio))

    def forward(self, pictures: Tensor) -> Tensor:
        images = pictures.permute(0, 3, 1, 2).float()
        rows, columns = self._axes(images)
        (h, w), (height, width) = self.view.shape, images.shape[2:]
        images = (images @ weights(columns, w, width)[:, None].mT + 0.5).floor().clamp(0, 255)
        images = (weights(rows, h, height)[:, None] @ images + 0.5).floor().clamp(0, 255)
        if self.fit == "on white":
            inside = _inside(rows, h)[:, None, :, None] & _inside(columns, w)[:, None, None, :]
            images = torch.where(inside, images, 255.0)
        return scaled(images / 255, self.view.pixels)

    def _axes(self, images: Tensor) -> tuple[Axis, Axis]:
        (h, w), (high, wide) = self.view.shape, self.room
        height, width = (torch.full((1,), side, dtype=torch.int64) for side in images.shape[2:])
        if self.fit == "on white":
            return self._on_white(images, height, width)
        if self.fit == "warp":
            sizes = (torch.full_like(height, high), torch.full_like(width, wide))
        else:  # one of the two is `high` or `wide`, the other more
            sizes = ((height * wide // width).clamp(min=high), (width * high // height).clamp(min=wide))
        if self.fit == "cover, then its middle":
            offsets = ((sizes[0] - high) // 2 + (high - h) // 2, (sizes[1] - wide) // 2 + (wide - w) // 2)
        else:
            offsets = ((sizes[0] - h) // 2, (sizes[1] - w) // 2)
        none = torch.zeros_like(height)
        return Axis(none, height, sizes[0], offsets[0]), Axis(none, width, sizes[1], offsets[1])

    def _on_white(self, images: Tensor, height: Tensor, width: Tensor) -> tuple[Axis, Axis]:
        """Each picture without its white border but for BORDER pixels, as large as fits into the room, centred."""
        (h, w), (high, wide) = self.view.shape, self.room
        red, green, blue = (images[:, i if images.shape[1] == 3 else 0] for i in range(3))
        drawn = (0.299 * red + 0.587 * green + 0.114 * blue) < WHITE
        top, tall = _box(drawn.any(2), height)
        left, broad = _box(drawn.any(1), width)
        scale = torch.minimum(high / tall.double(), wide / broad.double())
        tall_now, broad_now = (((x.double() * scale).round().long()).clamp(min=1) for x in (tall, broad))
        down = (high - h) // 2 - (high - tall_now) // 2
        right = (wide - w) // 2 - (wide - broad_now) // 2
        return Axis(top, tall, tall_now, down), Axis(left, broad, broad_now, right)


def _box(drawn: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Start and extent [B] of what is drawn [B, side], with BORDER more at both ends; all of it, where nothing is."""
    place = torch.arange(drawn.shape[1])
    first = (torch.where(drawn, place, side).amin(1) - BORDER).clamp(min=0)
    last = torch.where(drawn, place, -1).amax(1)
    start = torch.where(last < 0, torch.zeros_like(first), first)
    end = torch.where(last < 0, side, torch.minimum(last + 1 + BORDER, side))
    return start, end - start


def weights(axis: Axis, result: int, pixels: int) -> Tensor:
    """How much each of `pixels` counts in each of `result` places: [B, result, pixels]; sums of rows are 1."""
    start, extent, size, offset = (x[:, None, None] for x in axis)
    scale = extent / size
    middle = (torch.arange(result)[:, None] + offset + 0.5) * scale + start
    pixel = torch.arange(pixels)
    near = (1 - (pixel + 0.5 - middle).abs() / filter_width(scale)).clamp(min=0)
    near = near * ((pixel >= start) & (pixel < start + extent))
    return near / near.sum(2, keepdim=True).clamp(min=1e-6)


def filter_width(scale: Tensor) -> Tensor:
    """Half the width of the filter, in pixels of the picture: what shrinks is averaged over all that it shrinks."""
    return scale.clamp(min=1)


def _inside(axis: Axis, result: int) -> Tensor:
    """Which places [B, result] lie in what was resized, and not beside it."""
    place = torch.arange(result) + axis.offset[:, None]
    return (place >= 0) & (place < axis.size[:, None])


class Exported(nn.Module):
    """Pictures uint8 [B, H, W, C] to embeddings [B, D] of unit length, which retrieval compares, and to raw ones."""

    def __init__(self, network: nn.Module, view: View) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(view)
        self.network = network

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network(self.preprocessing(pictures))
        return functional.normalize(raw), raw


@dataclass(frozen=True)
class Parity:
    """How near the file comes to the network of the run, on the same pictures.

    pictures      how many were compared
    batches       the largest and the smallest number of pictures that went through the file at once
    sizes         of how many sizes they were
    cosine        the least of a picture's two embeddings
    worst         the picture that has it
    recall, map_r Recall@1 and MAP@R of the run's embeddings and of the file's, each picture among all others
    full_size     the least cosine where pictures that the run read shrunk are decoded in full; None: it read none so
    """

    pictures: int
    batches: tuple[int, int]
    sizes: int
    cosine: float
    worst: str
    recall: tuple[float, float]
    map_r: tuple[float, float]
    full_size: float | None = None

    def wrong(self) -> list[str]:
        """What differs by more than rounding, in words."""
        most = max(POINTS, 1 / self.pictures)
        found = []
        if not self.cosine >= COSINE:  # not a number is wrong too
            found.append(f"the cosine of the two embeddings of {self.worst} is {self.cosine:.6f}, below {COSINE}")
        for name, (before, after) in (("Recall@1", self.recall), ("MAP@R", self.map_r)):
            if not abs(before - after) <= most + 1e-9:
                found.append(f"{name} is {100 * after:.2f} % instead of {100 * before:.2f} %")
        return found


def export(run: Path, onnx: Path | None, data: str | None, overwrite: bool) -> Path:
    """Writes the network of a run as an ONNX file that decoded pictures can be given to, and returns the file.

    onnx  an .onnx file; None: RUN/model.onnx
    data  whose pictures it is checked on, as for `embed`; None: the test pictures of the run

    The file has all that `View` does to a test picture, but for what it draws by chance. It works in float32.

        pictures    uint8 [B, H, W, C], of any one size; C is 3, red first, or 1
        embeddings  float32 [B, D] of unit length: their inner products are the cosines that retrieval ranks by
        raw         float32 [B, D]; the embedding of a tracklet is the mean of those of its frames

    Raises InputError, and leaves no file, where the file's embeddings are not those of the network of the run (see
    `Parity`), and where the network cannot be exported.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"metricweight export needs {', '.join(missing)}: pip install 'metricweight[onnx]'")
    model, settings, state = checkpoint.load(run)
    out = onnx or run / "model.onnx"
    if out.suffix != ".onnx":
        raise InputError(f"--onnx must be an .onnx file, got {out}.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; add --overwrite to replace it, or choose another --onnx.")
    view = view_of(settings.data)
    source = settings.data if data is None else _other(settings.data, data)
    images, indices = _pictures(run, settings, source, state["channels"])
    proto = as_onnx(Exported(model, view), state["channels"], settings.model.backbone)
    parity = compared(
        model, view, run_by_onnxruntime(proto.SerializeToString()), images, indices, settings.data.damaged
    )
    if wrong := parity.wrong():
        raise InputError(
            f"the exported network does not give the embeddings of {run}: {'; '.join(wrong)}. Nothing was written. "
            f"Try other versions than {_versions()}."
        )
    for key, value in _described(settings, view, state, parity).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        file.write(proto.SerializeToString())
    say(_said(out, proto, view, state["channels"], settings, parity))
    return out


def _pictures(run: Path, settings: Settings, source: DataSettings, channels: int) -> tuple[Images, Indices]:
    """The pictures that it is checked on: some of each of some test classes that have two or more, drawn by a seed."""
    images = load_images(source, channels)
    if images.channels != channels:
        raise InputError(
            f"the network of {run} looks at {_colour(channels)} pictures; {source.root or source.source} has others."
        )
    own = (source.source, source.root) == (settings.data.source, settings.data.root)
    known = np.arange(len(images))
    if own or "test" in images.splits:
        known = splits_of(images, source)["test"]
    labels = images.labels[known]
    random = np.random.default_rng(0)
    classes, sizes = np.unique(labels, return_counts=True)
    classes, chosen = classes[sizes > 1], []
    most = max(PER_CLASS, PICTURES // max(1, len(classes)))
    for label in random.permutation(classes)[: PICTURES // 2].tolist():
        chosen += random.permutation(known[labels == label])[:most].tolist()
    if not chosen:
        raise InputError(f"no test class of {run} has two pictures to compare; give other pictures with --data.")
    return images, np.array(chosen[:PICTURES])


def as_onnx(network: nn.Module, channels: int, name: str) -> Any:
    """The network as an ONNX ModelProto; batch, height and width are free. name: of the backbone."""
    bytes_of_weights = sum(x.numel() * x.element_size() for x in network.state_dict().values())
    if bytes_of_weights > LARGEST:
        raise InputError(
            f"{name} has {bytes_of_weights / 2**30:.1f} GiB of weights; an ONNX file of one piece holds 2 GiB."
        )
    example = torch.zeros(2, 37, 41, channels, dtype=torch.uint8)  # unequal, so that no two are taken for the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own workings
        try:
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                input_names=["pictures"],
                output_names=["embeddings", "raw"],
                dynamic_shapes=({0: "batch", 1: "height", 2: "width"},),
                verbose=False,
            )
        except Exception as error:  # whatever a network does that the exporter does not know
            why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(f"torch {torch.__version__} cannot export {name}: {why[0]}") from error
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # lines and paths of the source that it came from
    return proto


def run_by_onnxruntime(model: bytes) -> Embed:
    """Embeds by a model, on the CPU."""
    from onnxruntime import InferenceSession

    try:
        session = InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each reason
        raise _not_run(error) from error

    def embed(pictures: Tensor) -> NDArray[np.float32]:
        given = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
        try:
            unit, raw = session.run(["embeddings", "raw"], {"pictures": given})
        except Exception as error:
            raise _not_run(error) from error
        if not np.allclose(unit, functional.normalize(torch.from_numpy(raw)).numpy(), atol=1e-5):
            raise InputError("the exported network's embeddings are not its raw ones at unit length.")
        found: NDArray[np.float32] = raw
        return found

    return embed


def _not_run(error: Exception) -> InputError:
    return InputError(f"onnxruntime {version('onnxruntime')} cannot run the exported network: {error}")


def compared(
    network: nn.Module, view: View, file: Embed, images: Images, indices: Indices, damaged: str = "fatal"
) -> Parity:
    """Embeds pictures by the network, which sees them through `View`, and by the file, which gets them as they are.

    The first are also given alone, at another size, and together with their mirror images. What `View` draws by
    chance is done beforehand, and both get the result in whole numbers. damaged: skip leaves those out.
    """
    run = _run_by_torch(network, view)
    of: list[int] = []
    by_run: list[NDArray[np.float32]] = []
    by_file: list[NDArray[np.float32]] = []
    cosines: list[tuple[float, str]] = []
    given: set[tuple[int, ...]] = set()
    for pictures, some in track(_batches(view, images, indices, damaged), "comparing"):
        first = zip(some, pictures[: max(0, PROBED - len(of))], strict=False)
        probes = [(i, probe) for i, picture in first for probe in _probes(picture)]
        by_run.append(run(pictures))
        by_file.append(file(pictures))
        of += some
        cosines += [
            (cosine, images.names[i]) for cosine, i in zip(_cosines(by_run[-1], by_file[-1]), some, strict=True)
        ]
        cosines += [(min(_cosines(run(probe), file(probe))), images.names[i]) for i, probe in probes]
        given.update(tuple(x.shape) for x in (pictures, *(probe for _, probe in probes)))
    if not of:
        raise InputError(
            "none of the pictures that the file would be compared on can be read; give others with --data."
        )
    before, after = (_report(np.concatenate(found), images.labels[of]) for found in (by_run, by_file))
    cosine, worst = min(cosines, key=lambda found: (found[0] == found[0], found[0]))  # what is not a number, first
    return Parity(
        pictures=len(of),
        batches=(max(shape[0] for shape in given), min(shape[0] for shape in given)),
        sizes=len({shape[2:] for shape in given}),
        cosine=cosine,
        worst=worst,
        recall=(before["recall@1"], after["recall@1"]),
        map_r=(before["map@r"], after["map@r"]),
        full_size=_full_size(run, file, images, of[:BLOCK]),
    )


def _run_by_torch(network: nn.Module, view: View) -> Embed:
    """Embeds as the run does, but for chance in tests."""
    plain = replace(view, transform="none") if TRANSFORMS[view.transform].drawn else view

    def embed(pictures: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = network(plain(list(pictures), [(0,)] * len(pictures), False)).numpy()
        return found

    return embed


def _batches(view: View, images: Images, indices: Indices, damaged: str) -> Iterator[tuple[Tensor, list[int]]]:
    """The pictures, in batches [B, C, H, W] of one size, with the index of each."""
    drawn = TRANSFORMS[view.transform].drawn
    for block in np.split(indices, range(BLOCK, len(indices), BLOCK)):
        alike: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for i in block.tolist():
            try:
                picture = images.picture(i)
            except InputError:
                if damaged == "fatal":
                    raise
                continue
            if drawn:
                picture = (drawn(view.prepare(picture)[None], [(view.seed, i)])[0] * 255).round().to(torch.uint8)
            alike.setdefault(tuple(picture.shape), []).append((i, picture))
        for shape, found in alike.items():
            most = max(1, NUMBERS // int(np.prod(shape)))
            for start in range(0, len(found), most):
                some = found[start : start + most]
                yield torch.stack([picture for _, picture in some]), [i for i, _ in some]


def _probes(picture: Tensor) -> list[Tensor]:
    """A picture alone, at another size, and with its mirror images, as batches [B, C, H, W]."""
    _, height, width = picture.shape
    rows, columns = torch.arange(height * 3 // 2) * height // (height * 3 // 2), torch.arange(2 * width) // 2
    mirrored = [picture, picture.flip(2), picture.flip(1), picture.flip(1, 2)]
    return [picture[None], picture[:, rows][:, :, columns][None], torch.stack(mirrored)]


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> list[float]:
    """Of rows [B, D]."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: list[float] = ((a * b).sum(1) / lengths).tolist()
    return found


def _report(embeddings: NDArray[np.float32], labels: Indices) -> Mapping[str, float]:
    """Recall@1 and MAP@R, each picture among all others; not a number where an embedding is not."""
    if not np.isfinite(embeddings).all():
        return {"recall@1": np.nan, "map@r": np.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)
        return evaluate(embeddings, labels, ks=[1]).metrics


def _full_size(run: Embed, file: Embed, images: Images, indices: Sequence[int]) -> float | None:
    """The least cosine of the run's embeddings of pictures that it read shrunk and the file's of them in full."""
    shrunk = images.picture
    if not isinstance(shrunk, Files) or shrunk.at_least is None:
        return None
    full = replace(shrunk, at_least=None)
    pairs = ((shrunk(i), full(i)) for i in indices)
    found = [_cosines(run(a[None]), file(b[None]))[0] for a, b in pairs if a.shape != b.shape]
    return min(found, default=None)


def _versions() -> str:
    return f"torch {torch.__version__}, onnxruntime {version('onnxruntime')}"


def _inside_words(view: View, channels: int) -> str:
    """What is in the file, and what is not, in words."""
    row, shape = TRANSFORMS[view.transform], f"{view.shape[0]} x {view.shape[1]}"
    pixels = view.pixels or ("half" if channels == 1 else "imagenet")
    text = (
        f"in the file: what {view.transform} does in tests (to {shape}), and the scale and order of colours ({pixels})"
    )
    if row.drawn:
        text += f"; not in it: the distortion that {view.transform} draws for each test picture"
    return text


def _described(settings: Settings, view: View, state: Mapping[str, Any], parity: Parity) -> dict[str, str]:
    """Metadata of the file; of paths on this machine, only the last part."""
    plain = settings.model_dump(mode="json")
    for group, key in (("data", "root"), ("data", "cache"), ("model", "weights")):
        if plain[group][key] is not None:
            plain[group][key] = Path(plain[group][key]).name
    return {
        "metricweight": metricweight.__version__,
        "settings": json.dumps(plain),
        "step": str(state["step"]),
        "preprocessing": _inside_words(view, state["channels"]),
        "pictures": f"uint8 [batch, height, width, {state['channels']}], "
        + ("grey" if state["channels"] == 1 else "red first")
        + ", turned as their EXIF tag says"
        + (f", large JPEGs shrunk by Pillow's draft to {view.needed} or more" if view.needed else ""),
        "comparison": f"cosine: inner products of embeddings; tracklets: {_of_tracklets(settings)}",
        "parity": json.dumps(asdict(replace(parity, worst=Path(parity.worst).name))),
        "versions": _versions(),
    }


def _said(out: Path, proto: Any, view: View, channels: int, settings: Settings, parity: Parity) -> str:
    """What is said of a file that was written."""
    dim = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    mode, order = ("L", "grey") if channels == 1 else ("RGB", "red first")
    pixels = "np.asarray(picture)[None, :, :, None]" if channels == 1 else "np.asarray(picture)[None]"
    lines = [
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {settings.model.backbone}",
        f"  pictures    uint8 [batch, height, width, {channels}], of any one size, {order}",
        f"  embeddings  float32 [batch, {dim}] of unit length; their inner products are cosines",
        f"  raw         float32 [batch, {dim}] before that; tracklets: {_of_tracklets(settings)}",
        f"  {_inside_words(view, channels)}",
        f"On {parity.pictures} pictures ({parity.sizes} sizes, 1 to {parity.batches[0]} at once), "
        f"file and run: cosine {parity.cosine:.6f} or more,",
        f"  Recall@1 {100 * parity.recall[1]:.2f} and {100 * parity.recall[0]:.2f} %, "
        f"MAP@R {100 * parity.map_r[1]:.2f} and {100 * parity.map_r[0]:.2f} %.",
    ]
    if settings.precision != "fp32":
        lines.append(f"  Both in float32; the run itself works in {settings.precision}.")
    draft = []
    if view.needed is not None:
        draft = [f'  picture.draft("RGB", ({view.needed}, {view.needed}))  # large JPEGs shrunk as they are read']
        lines.append("  The run reads large JPEGs shrunk, as the lines below do." + _without_it(parity))
    lines += [
        "In Python:",
        "  import numpy as np, onnxruntime",
        "  from PIL import Image, ImageOps",
        f'  model = onnxruntime.InferenceSession("{out}")',
        '  picture = Image.open("picture.jpg")',
        *draft,
        f'  picture = ImageOps.exif_transpose(picture).convert("{mode}")',
        f'  embeddings, raw = model.run(None, {{"pictures": {pixels}}})',
    ]
    return "\n".join(lines)


def _of_tracklets(settings: Settings) -> str:
    if settings.tracklets.test_fusion == "mean":
        return "the mean of their frames' raw embeddings"
    return f"of their frames' raw embeddings ({settings.tracklets.seen}), which is not in the file"


def _without_it(parity: Parity) -> str:
    return "" if parity.full_size is None else f" Read in full, the cosine can be {parity.full_size:.4f}."
