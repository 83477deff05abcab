"""Settings: typed, strict, read from a recipe and from `key.sub=value` words."""

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from torch import Tensor, nn

from metricweight.checks import InputError, nearest
from metricweight.data.sampler import SamplerRule
from metricweight.data.tracklets import Clip, TestClip
from metricweight.data.transforms import PixelsName, TransformName
from metricweight.emphasis import UnitMean, Weighting, chain
from metricweight.losses.table import LOSSES, DerivativeLoss, Loss
from metricweight.models.backbones import Level
from metricweight.models.pooling import Pooling
from metricweight.models.sets import Fusion, TestFusion
from metricweight.recipes import recipes

KINDS = ("pair", "example", "target")
LISTS = ("plus", "frame_losses")  # groups that are lists of losses
Side = Annotated[int, Field(ge=8)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Strict):
    source: Literal["glyphs", "digits", "folder"] = Field(description="built-in pictures, or your own in data.root")
    root: Path | None = Field(None, description="folder of class folders, CSV with path and label, or manifest")
    size: Side | tuple[Side, Side] = Field(32, description="of what the network sees, in pixels; or [height,width]")
    transform: TransformName = Field(
        "none", description="how pictures are cut and changed: `metricweight options transforms`"
    )
    pixels: PixelsName | None = Field(
        None, description="scale and order of colours; null: as pretrained weights expect, else imagenet, grey half"
    )
    workers: int | None = Field(
        None, ge=0, description="processes that read pictures; 0: none, a thread; null: one per core, 8 at most"
    )
    cache: Path | None = Field(None, description="folder where decoded pictures are kept for the next epoch and run")
    damaged: Literal["fatal", "skip"] = Field("fatal", description="what a picture that cannot be read is; see README")
    order: Literal["random", "given"] = Field("random", description="how classes are dealt out; given: the last test")
    test: float = Field(
        0.5, gt=0, lt=1, description="share of the classes that are tested on, where the data have no splits"
    )
    validation: float = Field(0.1, ge=0, lt=1, description="share of the other classes that are validated on")
    seed: int = Field(0, ge=0, lt=2**63, description="of the split and of the fixed distortion of test images")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @field_validator("root", "cache")
    @classmethod
    def _absolute(cls, root: Path | None) -> Path | None:
        """So that a saved setting means the same from any folder."""
        return root and root.expanduser().resolve()


class ModelSettings(_Strict):
    backbone: str = Field("small_cnn", description="a name that `metricweight options backbones` lists, or timm:NAME")
    pretrained: bool = Field(False, description="start from the weights of torchvision or timm, fetched once")
    weights: Path | None = Field(None, description="start from this file of weights (a state dict)")
    embedding_size: int | None = Field(64, ge=1, description="D of each level; null: the features as they are")
    levels: list[Level] = Field(
        ["high"], min_length=1, description="depths that get an embedding each, of low,middle,high"
    )
    pooling: Pooling | None = Field(None, description="avg, max, avg+max or gem; null: what the backbone does")
    layer_norm: bool = Field(False, description="features to zero mean and unit variance before the linear layer")
    last_stride: int = Field(2, ge=1, le=2, description="of a ResNet's last stage; 1 keeps larger maps, for people")
    frozen: list[str] = Field([], description="parts of the backbone that stay as they are, such as [conv1,layer1]")
    frozen_batch_norm: bool = Field(False, description="batch normalisation keeps its statistics, scale and offset")

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: Path | None) -> Path | None:
        return weights and weights.expanduser().resolve()


class TrackletSettings(_Strict):
    """Tracklets of a manifest: the clips that are learned from, and what a tracklet is judged by."""

    frames: int | None = Field(
        None, ge=1, description="frames of a training clip; null: frames are learned from one by one, as pictures"
    )
    clip: Clip = Field("random", description="which frames a training clip has: `metricweight options clips`")
    stride: int = Field(1, ge=1, description="of clip=consecutive: how many frames further the next one is")
    fusion: Fusion = Field(
        "mean", description="how a training clip becomes one embedding: `metricweight options fusions`"
    )
    test_clip: TestClip = Field("all", description="by which frames a tracklet is judged: all, first or evenly")
    test_frames: int | None = Field(None, ge=1, description="how many, of test_clip=first and evenly")
    test_fusion: TestFusion = Field(
        "mean", description="how these become one embedding: mean, max, quality or self_attention"
    )

    @property
    def learned(self) -> str:
        """What is learned from, in words."""
        if self.frames is None:
            return "single frames"
        stride = f" with stride {self.stride}" if self.clip == "consecutive" else ""
        return f"clips of {self.frames} frames, {self.clip}{stride}, fused by {self.fusion}"

    @property
    def seen(self) -> str:
        """What a tracklet is judged by, in words."""
        clips = {
            "all": "all frames",
            "first": f"first {self.test_frames} frames",
            "evenly": f"{self.test_frames} frames evenly",
        }
        fusions = {"quality": "largest class probability as quality", "self_attention": "self-attention"}
        return f"{clips[self.test_clip]}, {fusions.get(self.test_fusion, self.test_fusion)}"


class BatchSettings(_Strict):
    classes: int | None = Field(None, ge=1, description="classes per batch; null: all there are, 32 at most")
    images: int = Field(4, ge=1, description="images per class; with tracklets.frames, tracklets per class")
    rule: SamplerRule = Field(
        "ranked_list", description="how classes and images are drawn: `metricweight options samplers`"
    )
    chunk: int | None = Field(
        None, ge=1, description="images that are on the device at once: two passes, exact; null: the whole batch"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged into one step")


class OptimizerSettings(_Strict):
    """The rate rises to its peak over the warm-up, then follows the schedule."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(0.002, gt=0, description="peak of the rate")
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    warmup: float = Field(0.2, ge=0, le=1, description="share of the steps over which the rate rises")
    schedule: Literal["cosine", "steps", "constant"] = Field("cosine", description="cosine falls to 0 at the end")
    milestones: list[Annotated[int, Field(ge=1)]] = Field([], description="of schedule=steps: where the rate falls")
    decay: float = Field(0.1, gt=0, le=1, description="of schedule=steps: the factor by which it falls")
    factors: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="of the rate for a part: head, classifier, attention, or a part of the backbone"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient; null: any")


class AttentionSettings(_Strict):
    """Class-aware attention of online_soft_mining: contexts of the training classes, learned beside the network."""

    form: Literal["poster", "released"] | None = Field(None, description="poster or released; null: no attention")
    weight: float = Field(1.0, gt=0, description="of the classification loss that it learns by")


class MemorySettings(_Strict):
    """Cross-batch memory of a loss on pairs."""

    size: int = Field(0, ge=0, description="embeddings of earlier batches that are compared with; 0: none")
    start: int = Field(0, ge=0, description="the step from which on they are")


class CheckpointSettings(_Strict):
    every: int | None = Field(
        None, ge=1, description="steps between more checkpoints than those at each validation and every ten minutes"
    )
    keep: int = Field(2, ge=2, description="how many of the last to keep; an earlier one serves where one is damaged")
    choose: Literal["validation", "last", "test"] = Field(
        "validation", description="which network is reported; test marks the report as chosen on the test classes"
    )


class Settings(_Strict):
    data: DataSettings
    model: ModelSettings = ModelSettings()
    loss: dict[str, Any] = Field(
        description="name, and the arguments of that loss; a number of kind example may be [from,to] over the steps"
    )
    plus: list[dict[str, Any]] = Field(
        [], description="losses that are added, as [{name: cce, weight: 0.5}]: name, weight and arguments of each"
    )
    frame_losses: list[dict[str, Any]] = Field(
        [], description="as plus, of the single frames of clips; loss and plus are of whole clips then"
    )
    attention: AttentionSettings = AttentionSettings()
    memory: MemorySettings = MemorySettings()
    miner: dict[str, Any] | None = Field(
        None, description="only pairs that a loss on pairs gives a score above 0: its name and arguments"
    )
    weighting: dict[str, Any] | None = Field(
        None, description="weighs each embedding's gradient: name and arguments of a loss of kind example"
    )
    tracklets: TrackletSettings = TrackletSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    steps: int = Field(600, ge=1, description="batches to train on")
    validations: int = Field(5, ge=0, description="how often to look at the validation classes, and save")
    checkpoints: CheckpointSettings = CheckpointSettings()
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the network; losses stay in fp32")
    compile: bool = Field(False, description="compile the network with torch.compile")
    channels_last: bool = Field(False, description="memory format that many GPUs prefer")
    sync_batch_norm: bool = Field(False, description="batch normalisation over the batches of all processes")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the average of weights that is tested; null: none"
    )
    tensorboard: bool = Field(False, description="also log to RUN/tensorboard")
    ks: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="the K of Recall@K; null: those of the protocol"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, batches and training distortion")

    @property
    def of_pictures(self) -> list[dict[str, Any]]:
        """The losses of single pictures, which the p of a log is of; where there are none, those of whole clips."""
        return self.frame_losses or [self.loss, *self.plus]

    def weighed_by(self, rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """What weighs examples over their p: `weighting`, else the first of some losses of kind "example"; or None."""
        return self.weighting or next((part for part in rows if LOSSES[part["name"]].kind == "example"), None)

    @property
    def loss_row(self) -> Loss:
        return LOSSES[self.loss["name"]]

    def build_loss(self) -> nn.Module:
        """The loss as it is at the first step."""
        return build(at(self.loss, 0))

    def yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read(recipe: str, words: Iterable[str] = ()) -> Settings:
    """The settings of a recipe, changed by words such as `loss.margin=0.3`.

    recipe  the name of a packaged recipe, or the path of a YAML file
    words   the later counts. `loss.name=` of another loss than the recipe's drops the recipe's arguments of that

    Raises InputError for a recipe or setting that is not known, naming the nearest, and for a value of the wrong
    type or out of range.
    """
    values = _recipe(recipe)
    words = list(words)
    for group in ("loss", "miner", "weighting"):
        names = [word.partition("=")[2] for word in words if word.startswith(f"{group}.name=")]
        if names and isinstance(values.get(group), dict) and values[group].get("name") != names[-1]:
            values[group] = {}
    _drop_what_belongs_to_others(values, words)
    for word in words:
        _set(values, word)
    return _useful(resolve(values))


def changed(settings: Settings, words: Iterable[str]) -> Settings:
    """Some settings, changed by words, as `read` does it."""
    values, words = settings.model_dump(), list(words)
    if not words:
        return settings
    _drop_what_belongs_to_others(values, words)
    for word in words:
        _set(values, word)
    return _useful(resolve(values))


def _useful(settings: Settings) -> Settings:
    """The settings; raises InputError where something is set that would do nothing."""
    if useless := list(_without_effect(settings)):
        raise InputError("\n".join(useless))
    return settings


def _drop_what_belongs_to_others(values: dict[str, Any], words: Sequence[str]) -> None:
    """Another schedule, optimiser or kind of clip than the recipe's leaves behind what the recipe says of its own."""
    tracklets, given = values.get("tracklets"), dict(word.partition("=")[::2] for word in words)
    if isinstance(tracklets, dict):
        if given.get("tracklets.test_clip") == "all":
            tracklets.pop("test_frames", None)
        if given.get("tracklets.clip", "consecutive") != "consecutive":
            tracklets.pop("stride", None)
        if given.get("tracklets.frames") in ("1", "null"):
            for name in ("stride", "fusion", *(["clip"] if given["tracklets.frames"] == "null" else [])):
                tracklets.pop(name, None)
    optimizer = values.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    for key, own in (("schedule", ("milestones", "decay")), ("name", ("momentum",))):
        asked = [word.partition("=")[2] for word in words if word.startswith(f"optimizer.{key}=")]
        if asked and asked[-1] != optimizer.get(key, OptimizerSettings.model_fields[key].default):
            for name in own:
                optimizer.pop(name, None)


def origins(recipe: str, words: Iterable[str] = ()) -> dict[str, str]:
    """Where each setting of `read(recipe, words)` has its value from: "command line", "recipe" or "default"."""
    given = [word.partition("=")[0] for word in words]
    written = list(_written(_recipe(recipe)))

    def said(keys: list[str], key: str) -> bool:
        return any(key == other or other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in keys)

    return {
        key: "command line" if said(given, key) else "recipe" if said(written, key) else "default"
        for key in flat(read(recipe, words))
    }


def _written(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _written(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _recipe(recipe: str) -> dict[str, Any]:
    """The values that a recipe gives."""
    known = recipes()
    if recipe in known:
        text = known[recipe].text
    elif recipe.endswith((".yaml", ".yml")):
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the recipe {recipe} cannot be read: {error}.") from None
    elif Path(recipe, "settings.yaml").is_file():
        raise InputError(f"{recipe} is a run; to train with its settings: metricweight train {recipe}/settings.yaml")
    elif Path(recipe).is_dir():
        raise InputError(
            f"{recipe} is a folder; to train on its pictures: metricweight train folder data.root={recipe}"
        )
    else:
        raise InputError(
            f"unknown recipe '{recipe}'{nearest(recipe, known)} Known: {', '.join(known)}; or the path of a .yaml file."
        )
    values = _yaml(text, f"the recipe {recipe}")
    if not isinstance(values, dict):
        raise InputError(f"the recipe {recipe} holds no settings; it needs lines such as 'steps: 600'.")
    values.pop("about", None)  # what a recipe says of itself
    return values


def resolve(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; what is left out gets its default, the `total` of a loss all batches."""
    parts = dict(_parts(values))
    named = {group: _named(group, part, kinds) for group, (part, kinds) in parts.items()}
    keys = [*_keys(Settings), *(f"{group}.{key}" for group, row in named.items() for key in ("name", *_keys(row)))]
    plain = {**values, "loss": {}, **{name: [] for name in LISTS}, "miner": None, "weighting": None}
    problems = _problems(Settings, plain, keys)
    for group, row in named.items():
        ends = (_problems(row, _without_name(end), keys, prefix=f"{group}.") for end in _ends(parts[group][0]))
        problems += dict.fromkeys(itertools.chain(*ends))  # once, where both ends have it
    if problems:
        raise InputError("\n".join(problems))
    settings = Settings.model_validate(plain)
    total = settings.steps * settings.batch.accumulate  # a loss counts batches
    from_elsewhere = {"total": total, "dim": settings.model.embedding_size}
    made: dict[str, Any] = {group: _made(group, parts[group][0], row, from_elsewhere) for group, row in named.items()}
    lists = {name: [made.pop(group) for group in list(made) if group.startswith(f"{name}.")] for name in LISTS}
    settings = settings.model_copy(update={**made, **lists})
    return settings


def _without_effect(settings: Settings) -> Iterable[str]:
    """What is set and would do nothing, a sentence each."""
    optimizer, fields = settings.optimizer, OptimizerSettings.model_fields
    if optimizer.schedule != "steps":
        for key in ("milestones", "decay"):
            if getattr(optimizer, key) != (default := fields[key].default):
                yield (
                    f"setting optimizer.{key} is of optimizer.schedule=steps, and it is {optimizer.schedule}; "
                    f"set optimizer.{key}={_word(default)}, or that schedule."
                )
    elif not optimizer.milestones:
        yield "setting optimizer.schedule=steps needs optimizer.milestones, where the rate falls, such as [100,200]."
    if optimizer.name != "sgd" and optimizer.momentum != fields["momentum"].default:
        yield f"setting optimizer.momentum is of optimizer.name=sgd, and it is {optimizer.name}; leave it at 0.9."
    if settings.attention.form is None and settings.attention.weight != 1:
        yield "setting attention.weight is of an attention, and attention.form is null; set it to poster or released."
    if settings.memory.start and not settings.memory.size:
        yield "setting memory.start is of a memory, and memory.size is 0; give it a size."
    if settings.memory.size and settings.memory.start >= settings.steps:
        yield f"setting memory.start={settings.memory.start} is not reached in {settings.steps} steps; lower it."
    yield from _without_clips(settings)


def _without_clips(settings: Settings) -> Iterable[str]:
    """What is said of tracklets that would do nothing, or lacks what it needs."""
    asked, fields = settings.tracklets, TrackletSettings.model_fields
    if asked.frames is None:
        for key in ("clip", "stride", "fusion"):
            if getattr(asked, key) != fields[key].default:
                yield f"setting tracklets.{key} is of clips, and tracklets.frames is null; set it to their length."
        if settings.frame_losses:
            yield "setting frame_losses is of clips, and tracklets.frames is null; set it, or use loss and plus."
    if asked.frames == 1:
        for key in ("stride", "fusion"):
            if getattr(asked, key) != fields[key].default:
                yield f"setting tracklets.{key} is of several frames, and tracklets.frames is 1; leave it out."
    if asked.stride != 1 and asked.clip != "consecutive":
        yield f"setting tracklets.stride is of tracklets.clip=consecutive, and it is {asked.clip}; leave it out."
    if asked.test_clip == "all" and asked.test_frames is not None:
        yield "setting tracklets.test_frames is of test_clip=first or evenly, and all frames are taken; leave it out."
    if asked.test_clip != "all" and asked.test_frames is None:
        yield f"setting tracklets.test_clip={asked.test_clip} needs a number of frames; set tracklets.test_frames."
    if asked.test_fusion == "self_attention" and asked.fusion != "self_attention":
        yield (
            "setting tracklets.test_fusion=self_attention needs an attention that is trained, by "
            f"tracklets.fusion=self_attention; it is {asked.fusion}."
        )


def build(part: Mapping[str, Any]) -> nn.Module:
    """The loss of a name and its arguments, as settings have them at one step."""
    row = LOSSES[part["name"]]
    return DerivativeLoss(example_weighting(part)) if row.kind == "example" else row.build(**arguments(part))


def example_weighting(part: Mapping[str, Any]) -> Weighting:
    """The weighting of a loss of kind "example"; `normalise` scales a batch's weights to mean 1."""
    made: Weighting = LOSSES[part["name"]].make(**arguments(part))
    return chain(made, UnitMean()) if part.get("normalise") else made


def arguments(part: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a loss of the settings: what stands beside its name, its weight in a sum, and `normalise`."""
    beside = ("name", "weight", "normalise") if LOSSES[part["name"]].kind == "example" else ("name", "weight")
    return {key: value for key, value in part.items() if key not in beside}


def at(part: Mapping[str, Any], progress: float) -> dict[str, Any]:
    """A loss of the settings when so much of the training is done, from 0 to 1: [from, to] moves linearly."""
    return {
        key: (1 - progress) * value[0] + progress * value[1] if isinstance(value, list) else value
        for key, value in part.items()
    }


def _made(group: str, part: Mapping[str, Any], row: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """A loss with all its arguments. What `given` holds are defaults of those that it takes."""
    known = {key: value for key, value in given.items() if key in row.model_fields}
    ends = [row.model_validate(known | _without_name(end)).model_dump() for end in _ends(part)]
    for end in ends:  # which know what a type does not, such as a share above 1
        build({"name": part["name"], **end} | ({"dim": 2} if end.get("dim", 0) is None else {}))  # known only later
    for key in part:
        if len(ends) == 2 and _moves(key, part[key]):
            first, last = (end[key] for end in ends)
            if not (isinstance(first, float) and isinstance(last, float)):
                raise InputError(f"setting {group}.{key}: goes from one number to another; got {part[key]!r}.")
            ends[0][key] = [first, last]
    return {"name": part["name"], **ends[0]}


def _ends(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A loss as it is at the first step and at the last, where numbers of it are [from, to]; else as it is."""
    moving = {key: value for key, value in part.items() if _moves(key, value)}
    if LOSSES[part["name"]].kind != "example" or not moving:
        return [part]
    return [{**part, **{key: value[end] for key, value in moving.items()}} for end in (0, 1)]


def _moves(key: str, value: Any) -> bool:
    return key != "weight" and isinstance(value, (list, tuple)) and len(value) == 2


def _parts(values: Mapping[str, Any]) -> Iterable[tuple[str, tuple[Any, tuple[str, ...]]]]:
    """The groups of settings that name a loss, with the kinds that each may be of."""
    yield "loss", (values.get("loss"), KINDS)
    for name in LISTS:
        listed = values.get(name) or []
        if not isinstance(listed, list):
            raise InputError(f"setting {name}: should be a list such as [{{name: cce, weight: 0.5}}]; got {listed!r}.")
        yield from ((f"{name}.{i}", (part, KINDS)) for i, part in enumerate(listed))
    for group, kinds in (("miner", ("pair",)), ("weighting", ("example",))):
        if values.get(group) is not None:
            yield group, (values[group], kinds)


def _named(group: str, part: Any, kinds: Sequence[str]) -> type[BaseModel]:
    """The model of the arguments of a part, which names a loss of one of some kinds."""
    if isinstance(part, str):
        raise InputError(f"setting {group} is a group of settings; its name is {group}.name={part}.")
    known = [row.name for row in LOSSES.values() if row.kind in kinds]
    name = part.get("name") if isinstance(part, dict) else part
    if name not in known:
        what = "a loss" if kinds == KINDS else f"a loss of kind {' or '.join(kinds)}"
        raise InputError(
            f"setting {group}.name: {name!r} is not {what}{nearest(str(name), known)} Known: {', '.join(known)}."
        )
    row = _arguments(LOSSES[name])
    if group.partition(".")[0] in LISTS:
        row = create_model(row.__name__, __base__=row, weight=(Annotated[float, Field(gt=0)], 1.0))
    return row


def weighting(spec: str) -> Weighting:
    """The weighting of a word such as `dm:mode=0.67,beta=12`: the name of a loss of kind "example", and its arguments.

    Raises InputError for a name or argument that is not known, naming the nearest, and for a value that cannot be.
    """
    name, colon, text = spec.partition(":")
    known = [row.name for row in LOSSES.values() if row.kind == "example"]
    if name in LOSSES and name not in known:
        kind = LOSSES[name].kind
        why = "weighs pairs, not examples" if kind == "pair" else "revises the target, not the weight"
        raise InputError(f"'{name}' {why}, so it has no curve over p. Those that have: {', '.join(known)}.")
    if name not in known:
        raise InputError(f"'{name}' is not an example weighting{nearest(name, known)} Known: {', '.join(known)}.")
    values: dict[str, Any] = {}
    for word in text.split(",") if colon else []:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise InputError(f"expected a weighting such as dm:mode=0.67,beta=12, got '{spec}'.")
        values[key] = _value(value, spec)
    arguments = _arguments(LOSSES[name])
    prefix = f"{name}:"
    problems = _problems(arguments, values, [prefix + key for key in _keys(arguments)], prefix)
    if problems:
        raise InputError("\n".join(problems))
    return example_weighting({"name": name, **arguments.model_validate(values).model_dump()})


def weighting_spec(part: Mapping[str, Any]) -> str:
    """A loss of the settings as a word that `weighting` takes: its name, and what differs from the defaults.

    Where its arguments move, what they come to.
    """
    defaults = LOSSES[part["name"]].defaults
    changed = {key: value for key, value in arguments(at(part, 1)).items() if value != defaults[key]}
    words = ",".join(f"{key}={_word(value)}" for key, value in changed.items())
    return ":".join(filter(None, [part["name"], words]))


def list_losses(width: int | None = None) -> str:
    """All losses as a table, a line each; with a `width`, defaults that do not fit go on below."""
    rows = [("name", "kind", "paper", "weights", "defaults")]
    rows += [(x.name, x.kind, x.paper, x.weights, " ".join(_defaults(x, short=True))) for x in LOSSES.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    left = None if width is None else max(24, width - sum(widths) - 2 * len(widths))
    lines = []
    for *cells, last in rows:
        parts = textwrap.wrap(last, left, break_long_words=False, break_on_hyphens=False) if left else [last]
        for i, part in enumerate(parts or [""]):
            shown = cells if i == 0 else [""] * len(cells)
            lines.append("  ".join([*map(str.ljust, shown, widths), part]).rstrip())
    return "\n".join(lines)


def explain_loss(name: str) -> str:
    """What a loss is, and its arguments as they would be written on the command line."""
    if name not in LOSSES:
        raise InputError(f"'{name}' is not a loss{nearest(name, LOSSES)} Known: {', '.join(LOSSES)}.")
    row = LOSSES[name]
    words = [f"loss.name={name}", *(f"loss.{word}" for word in _defaults(row))]
    notes = [
        f"Not a setting, given in Python only: {key}." for key in row.defaults if key not in _keys(_arguments(row))
    ]
    if "total" in row.defaults:
        notes.append("In training, loss.total is the number of batches, steps x batch.accumulate, unless it is given.")
    paper = f", {'arXiv:' * row.paper[:4].isdigit()}{row.paper}" if row.paper else ""
    head = f"{name}: {row.kind}{paper}\nweights: {row.weights}"
    return "\n\n".join(
        [head, inspect.getdoc(row.make) or "", "\n".join(["On the command line:", *(f"  {x}" for x in words)]), *notes]
    )


def flat(settings: Settings) -> dict[str, str]:
    """Every setting by its whole name, with its value as a word of the command line."""
    return {key: _word(value) for key, value, _ in _rows(settings)}


def explain(settings: Settings, origins: Mapping[str, str] | None = None) -> str:
    """Every setting with its value, as it would be written on the command line, and what it means; or its origin."""
    told = origins or {}
    rows = [(f"{key}={_word(value)}", told.get(key, what)) for key, value, what in _rows(settings)]
    width = max(len(word) for word, _ in rows if len(word) <= 60)
    return "\n".join(f"{word:{width}}  {what}".rstrip() for word, what in rows)


def _rows(model: BaseModel, prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value:
            yield from ((f"{prefix}{name}.{key}", below, "") for key, below in value.items())
        else:
            yield prefix + name, value, field.description or ""


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple, dict)):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().replace(", ", ",")
    return str(value)


def _without_name(loss: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in loss.items() if key != "name"}


def _defaults(row: Loss, short: bool = False) -> list[str]:
    """The arguments of a loss that are settings, as words; `short`: numbers to four digits."""
    values = {key: field.default for key, field in _arguments(row).model_fields.items()}
    rounded = {key: f"{value:.4g}" for key, value in values.items() if short and isinstance(value, float)}
    return [f"{key}={_word(value)}" for key, value in {**values, **rounded}.items()]


def _arguments(row: Loss) -> type[BaseModel]:
    """The settings of a loss beside its name: the arguments of what makes it, but for tensors and modules; and of one
    that weighs examples, whether the weights of a batch are scaled to mean 1."""
    parameters = inspect.signature(row.make, eval_str=True).parameters.values()
    fields: dict[str, Any] = {p.name: (p.annotation, p.default) for p in parameters if _is_plain(p.annotation)}
    if row.kind == "example":
        fields["normalise"] = (bool, False)
    return create_model(row.name, __base__=_Strict, **fields)


def _is_plain(annotation: Any) -> bool:
    kinds = [annotation, *get_args(annotation)]
    return not any(inspect.isclass(kind) and issubclass(kind, (Tensor, nn.Module)) for kind in kinds)


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _problems(model: type[BaseModel], values: Any, keys: Sequence[str], prefix: str = "") -> list[str]:
    """What is wrong with some values, a sentence each."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return list(dict.fromkeys(_plain(e, keys, prefix) for e in error.errors()))
    return []


def _plain(error: Any, keys: Sequence[str], prefix: str) -> str:
    key = prefix + ".".join(map(str, error["loc"]))
    if error["loc"][:2] == ("data", "size"):  # a number or two, of which pydantic complains one by one
        return "setting data.size: should be a number of pixels, 8 or more, or [height,width]."
    if error["type"] == "extra_forbidden":
        return f"unknown setting {key}{nearest(key, keys)}"
    if error["type"] == "missing":
        return f"setting {key} is needed; give {key}=..."
    if error["type"] == "list_type":
        return f"setting {key}: should be a list such as [1,2] or [a,b]; got {error['input']!r}."
    if error["type"] == "dict_type":
        return f"setting {key}: should be a group such as {{head: 10}}; got {error['input']!r}."
    if error["type"] == "literal_error":
        close = nearest(str(error["input"]), re.findall("'([^']*)'", error["msg"]))
        return f"setting {key}: {error['msg'].removeprefix('Input ')}; got {error['input']!r}{close}"
    return f"setting {key}: {error['msg'].removeprefix('Input ')}; got {error['input']!r}."


def _set(values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(f"expected a setting such as steps=600, got '{word}'.")
    if not text:
        raise InputError(f"setting {key} is given no value; write {key}=VALUE, or {key}=null for none.")
    *groups, last = key.split(".")
    group: Any = values
    for name in groups:
        if isinstance(group, list):  # as in plus.0.weight
            group = group[int(name)] if name.isdecimal() and int(name) < len(group) else None
        else:
            group[name] = {} if group.get(name) is None else group[name]
            group = group[name]
        if not isinstance(group, (dict, list)):
            raise InputError(f"unknown setting {key}: {name} is a value and has nothing below it.")
    if isinstance(group, list):
        raise InputError(f"unknown setting {key}; it is a list: write {'.'.join(groups)}=[...], or .0. before a name.")
    group[last] = _value(text, f"setting {key}={text}")


def _value(text: str, what: str) -> Any:
    """A word is text, and its setting says what it must be. Only null, [lists] and {groups} need YAML."""
    return _yaml(text, what) if text == "null" or text.startswith(("[", "{")) else text


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
