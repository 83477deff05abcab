"""Settings: typed, strict, read from a recipe and from `key.sub=value` words."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from metricweight.checks import InputError, nearest
from metricweight.losses.table import LOSSES, Loss
from metricweight.models.backbones import Backbone
from metricweight.recipes import recipes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Strict):
    source: Literal["glyphs", "digits", "folder"] = Field(description="built-in pictures, or your own in data.root")
    root: Path | None = Field(None, description="folder of class folders, or CSV with path and label")
    size: int = Field(32, ge=8, description="height and width of what the network sees, in pixels")
    transform: Literal["distort", "crop", "none"] = Field(
        "none",
        description="distort: glyphs askew, also in tests; crop: random crop and flip, centre in tests",
    )
    order: Literal["random", "given"] = Field("random", description="how classes are dealt out; given: the last test")
    test: float = Field(0.5, gt=0, lt=1, description="share of the classes that are tested on")
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
    ks: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4, 8], min_length=1, description="the K of Recall@K")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, batches and training distortion")

    def build_loss(self) -> Any:
        return LOSSES[self.loss["name"]].build(**{k: v for k, v in self.loss.items() if k != "name"})

    def yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read(recipe: str, words: Iterable[str] = ()) -> Settings:
    """The settings of a recipe, changed by words such as `loss.margin=0.3`.

    recipe  the name of a packaged recipe, or the path of a YAML file

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
    for word in words:
        _set(values, word)
    return resolve(values)


def resolve(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; what is left out gets its default."""
    loss = values.get("loss")
    if isinstance(loss, str):
        raise InputError(f"setting loss is a group of settings; its name is loss.name={loss}.")
    if not isinstance(loss, dict) or loss.get("name") not in LOSSES:
        given = loss.get("name") if isinstance(loss, dict) else loss
        raise InputError(
            f"setting loss.name: {given!r} is not a loss{nearest(str(given), LOSSES)} Known: {', '.join(LOSSES)}."
        )
    arguments = _arguments(LOSSES[loss["name"]])
    keys = [*_keys(Settings), *(f"loss.{key}" for key in _keys(arguments))]
    problems = [*_problems(Settings, {**values, "loss": {}}, keys), *_problems(arguments, loss, keys, prefix="loss.")]
    if problems:
        raise InputError("\n".join(problems))
    return Settings.model_validate({**values, "loss": arguments.model_validate(loss).model_dump()})


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


def _arguments(row: Loss) -> type[BaseModel]:
    """The settings of a loss: its name, and the arguments of what builds it."""
    parameters = inspect.signature(row.build, eval_str=True).parameters.values()
    fields: dict[str, Any] = {p.name: (p.annotation, p.default) for p in parameters}
    return create_model(row.name, __base__=_Strict, name=(str, ...), **fields)


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
    # A word is text, and its setting says what it must be. Only null and [lists] need YAML.
    values[last] = _yaml(text, f"setting {key}={text}") if text == "null" or text.startswith("[") else text


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None
