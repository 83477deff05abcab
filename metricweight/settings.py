"""Settings: typed, strict, read from a recipe and from `key.sub=value` words."""

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from torch import Tensor, nn

from metricweight.checks import InputError, nearest
from metricweight.emphasis import Weighting
from metricweight.losses.table import LOSSES, Loss
from metricweight.models.backbones import Backbone
from metricweight.recipes import recipes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Strict):
    source: Literal["glyphs", "digits", "folder"] = Field(description="built-in pictures, or your own in data.root")
    root: Path | None = Field(None, description="folder of class folders, CSV with path and label, or manifest")
    size: int = Field(32, ge=8, description="height and width of what the network sees, in pixels")
    transform: Literal["distort", "crop", "none"] = Field(
        "none",
        description="distort: glyphs askew, also in tests; crop: random crop and flip, centre in tests",
    )
    order: Literal["random", "given"] = Field("random", description="how classes are dealt out; given: the last test")
    test: float = Field(
        0.5, gt=0, lt=1, description="share of the classes that are tested on, where the data have no splits"
    )
    validation: float = Field(0.1, ge=0, lt=1, description="share of the other classes that are validated on")
    seed: int = Field(0, ge=0, lt=2**63, description="of the split and of the fixed distortion of test images")

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path | None) -> Path | None:
        """So that a saved setting means the same from any folder."""
        return root and root.expanduser().resolve()


class ModelSettings(_Strict):
    backbone: Backbone = "small_cnn"
    pretrained: bool = Field(False, description="start from ImageNet weights, fetched once")
    embedding_size: int = Field(64, ge=1, description="D")


class BatchSettings(_Strict):
    classes: int | None = Field(None, ge=1, description="classes per batch; null: all there are, 32 at most")
    images: int = Field(4, ge=1, description="images per class")


class OptimizerSettings(_Strict):
    """AdamW; the rate rises to its peak over the warm-up and falls to zero along a cosine."""

    learning_rate: float = Field(0.002, gt=0, description="peak of AdamW's rate")
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.2, ge=0, le=1, description="share of the steps over which the rate rises")


class Settings(_Strict):
    data: DataSettings
    model: ModelSettings = ModelSettings()
    loss: dict[str, Any] = Field(description="name, and the arguments of that loss")
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    steps: int = Field(600, ge=1, description="batches to train on")
    validations: int = Field(5, ge=0, description="how often to look at the validation classes, and save")
    ks: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="the K of Recall@K; null: those of the protocol"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, batches and training distortion")

    @property
    def loss_row(self) -> Loss:
        return LOSSES[self.loss["name"]]

    def build_loss(self) -> nn.Module:
        return self.loss_row.build(**_without_name(self.loss))

    def yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read(recipe: str, words: Iterable[str] = ()) -> Settings:
    """The settings of a recipe, changed by words such as `loss.margin=0.3`.

    recipe  the name of a packaged recipe, or the path of a YAML file
    words   the later counts. `loss.name=` of another loss than the recipe's drops the recipe's arguments of that

    Raises InputError for a recipe or setting that is not known, naming the nearest, and for a value of the wrong
    type or out of range.
    """
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
    words = list(words)
    names = [word.partition("=")[2] for word in words if word.startswith("loss.name=")]
    if names and isinstance(values.get("loss"), dict) and values["loss"].get("name") != names[-1]:
        values["loss"] = {}
    for word in words:
        _set(values, word)
    return resolve(values)


def resolve(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; what is left out gets its default, and the `total` of a loss the steps."""
    loss = values.get("loss")
    if isinstance(loss, str):
        raise InputError(f"setting loss is a group of settings; its name is loss.name={loss}.")
    if not isinstance(loss, dict) or loss.get("name") not in LOSSES:
        given = loss.get("name") if isinstance(loss, dict) else loss
        raise InputError(
            f"setting loss.name: {given!r} is not a loss{nearest(str(given), LOSSES)} Known: {', '.join(LOSSES)}."
        )
    arguments = _arguments(LOSSES[loss["name"]])
    given = _without_name(loss)
    keys = [*_keys(Settings), "loss.name", *(f"loss.{key}" for key in _keys(arguments))]
    problems = [*_problems(Settings, {**values, "loss": {}}, keys), *_problems(arguments, given, keys, prefix="loss.")]
    if problems:
        raise InputError("\n".join(problems))
    settings = Settings.model_validate({**values, "loss": {}})
    if "total" in arguments.model_fields:
        given = {"total": settings.steps, **given}
    if "dim" in arguments.model_fields:
        given = {"dim": settings.model.embedding_size, **given}
    made = {"name": loss["name"], **arguments.model_validate(given).model_dump()}
    settings = settings.model_copy(update={"loss": made})
    settings.build_loss()  # which knows what a type does not, such as a share above 1
    return settings


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
    made: Weighting = LOSSES[name].make(**arguments.model_validate(values).model_dump())
    return made


def weighting_spec(settings: Settings) -> str:
    """The loss of some settings as a word that `weighting` takes: its name, and what differs from the defaults."""
    defaults = settings.loss_row.defaults
    changed = {key: value for key, value in _without_name(settings.loss).items() if value != defaults[key]}
    words = ",".join(f"{key}={_word(value)}" for key, value in changed.items())
    return ":".join(filter(None, [settings.loss_row.name, words]))


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
        notes.append("In training, loss.total is the number of steps unless it is given.")
    paper = f", {'arXiv:' * row.paper[:4].isdigit()}{row.paper}" if row.paper else ""
    head = f"{name}: {row.kind}{paper}\nweights: {row.weights}"
    return "\n\n".join(
        [head, inspect.getdoc(row.make) or "", "\n".join(["On the command line:", *(f"  {x}" for x in words)]), *notes]
    )


def explain(settings: Settings) -> str:
    """Every setting with its value, as it would be written on the command line, and what it means."""
    rows = [(f"{key}={_word(value)}", what) for key, value, what in _rows(settings)]
    width = max(len(word) for word, _ in rows)
    return "\n".join(f"{word:{width}}  {what}".rstrip() for word, what in rows)


def _rows(model: BaseModel, prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from ((f"{prefix}{name}.{key}", below, "") for key, below in value.items())
        else:
            yield prefix + name, value, field.description or ""


def _word(value: Any) -> str:
    if value is None or isinstance(value, (bool, list)):
        return "null" if value is None else str(value).lower().replace(" ", "")
    return str(value)


def _without_name(loss: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in loss.items() if key != "name"}


def _defaults(row: Loss, short: bool = False) -> list[str]:
    """The arguments of a loss that are settings, as words; `short`: numbers to four digits."""
    values = {key: row.defaults[key] for key in _keys(_arguments(row))}
    rounded = {key: f"{value:.4g}" for key, value in values.items() if short and isinstance(value, float)}
    return [f"{key}={_word(value)}" for key, value in {**values, **rounded}.items()]


def _arguments(row: Loss) -> type[BaseModel]:
    """The settings of a loss beside its name: the arguments of what makes it, but for tensors and modules."""
    parameters = inspect.signature(row.make, eval_str=True).parameters.values()
    fields: dict[str, Any] = {p.name: (p.annotation, p.default) for p in parameters if _is_plain(p.annotation)}
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
        return [_plain(e, keys, prefix) for e in error.errors()]
    return []


def _plain(error: Any, keys: Sequence[str], prefix: str) -> str:
    key = prefix + ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown setting {key}{nearest(key, keys)}"
    if error["type"] == "missing":
        return f"setting {key} is needed; give {key}=..."
    if error["type"] == "list_type":
        return f"setting {key}: should be a list such as [1,2]; got {error['input']!r}."
    return f"setting {key}: {error['msg'].removeprefix('Input ')}; got {error['input']!r}."


def _set(values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise InputError(f"expected a setting such as steps=600, got '{word}'.")
    if not text:
        raise InputError(f"setting {key} is given no value; write {key}=VALUE, or {key}=null for none.")
    *groups, last = key.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise InputError(f"unknown setting {key}: {group} is a value and has nothing below it.")
    values[last] = _value(text, f"setting {key}={text}")


def _value(text: str, what: str) -> Any:
    """A word is text, and its setting says what it must be. Only null and [lists] need YAML."""
    return _yaml(text, what) if text == "null" or text.startswith("[") else text


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
