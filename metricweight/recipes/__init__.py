"""Settings that ship with the package: one YAML file per recipe.

The first line says what it does, the comment below it with which commands. Its last group, `about`, is no setting: it
says where the settings come from, what is not known of them, what was published and what was obtained.
"""

import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from metricweight.checks import InputError, nearest

WIDTH = 120
METRICS = {"recall@": "R@", "map@r": "MAP@R", "map": "mAP", "nmi": "NMI", "accuracy": "accuracy"}


class Result(BaseModel):
    """Numbers in %, the headline first, and under which condition they are: `{recall@1: 55.3, with: raw pictures}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, float] = Field(init=False)
    condition: str = Field(alias="with", min_length=1)

    @property
    def numbers(self) -> Mapping[str, float]:
        """By metric: recall@K, map (the protocol's; the condition says whether another), map@r, nmi, accuracy."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _are_of_metrics(self) -> "Result":
        for metric, number in self.numbers.items():
            if not re.fullmatch(r"recall@[1-9]\d*|map|map@r|nmi|accuracy", metric) or not 0 < number < 100:
                raise ValueError(f"{metric}: {number} is not a metric with a number in %")
        if not self.numbers:
            raise ValueError("there is no number")
        return self

    def words(self, first: bool = False) -> str:
        """Such as `R@1 55.3, R@2 67.3`; `first`: the headline alone."""
        named = [f"{_short(metric)} {number}" for metric, number in self.numbers.items()]
        return named[0] if first else ", ".join(named)


class About(BaseModel):
    """What a recipe says of itself.

    data       the name of the converter that makes its manifest; None: built-in pictures, or one's own
    source     where the method and where the settings come from
    uncertain  what is not known, or stands in for something else, a sentence each
    published  by others, with their condition; or why there is no number
    obtained   here; None: not run
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: str | None
    source: list[str] = Field(min_length=1)
    uncertain: list[str]
    published: Result | str | None
    obtained: Result | None


class Recipe(NamedTuple):
    what: str  # it does, in a line
    text: str  # YAML of the settings
    told: str  # YAML of the group `about`

    @property
    def about(self) -> About:
        return About.model_validate(yaml.safe_load(self.told)["about"])

    @property
    def needs_data(self) -> bool:
        """Whether a data set is to be prepared for it first."""
        return any(command.startswith("metricweight prepare") for command in self.commands)

    @property
    def commands(self) -> list[str]:
        """The command lines of the comment at its head."""
        return [line[4:] for line in self.text.splitlines() if line.startswith("#   metricweight ")]


def recipes() -> dict[str, Recipe]:
    """The recipes by name: those that need no data set first."""
    found = {}
    for file in files(__name__).iterdir():
        if file.name.endswith(".yaml"):
            text, about, told = file.read_text(encoding="utf-8").partition("\nabout:\n")
            what = text.splitlines()[0].lstrip("# ")
            found[file.name.removesuffix(".yaml")] = Recipe(what, f"{text}\n", f"{about}{told}")
    return dict(sorted(found.items(), key=lambda item: (item[1].needs_data, item[0])))


def listing() -> str:
    """A line each: name, data set, published headline, what was obtained here, what it does; how to run them below."""
    rows = [("recipe", "data", "published", "here", "")]
    for name, recipe in recipes().items():
        about = recipe.about
        published = about.published.words(first=True) if isinstance(about.published, Result) else "-"
        obtained = about.obtained.words(first=True) if about.obtained else "not run"
        rows.append((name, about.data or "-", published, obtained, recipe.what))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    lines: list[str] = []
    for *cells, what in rows:
        head = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=True))
        lines += textwrap.wrap(head + what, WIDTH, subsequent_indent=" " * indent, drop_whitespace=True)
    how = [
        "Published numbers are in %, each under a condition of its own: metricweight recipes NAME tells it, with the",
        "source of the settings, what is uncertain of them, and every setting. To run one:",
        "",
        "  metricweight prepare DATA --root DIR --out DATA.csv",
        "  metricweight train NAME data.root=DATA.csv",
        "",
        "Without a data set: metricweight train NAME; folder also needs data.root=DIR.",
    ]
    return "\n".join([*lines, "", *how])


def describe(name: str) -> str:
    """What a recipe says of itself, and the commands that run it. Raises InputError for a name that is not known."""
    known = recipes()
    if name not in known:
        raise InputError(f"unknown recipe '{name}'{nearest(name, known)} Known: {', '.join(known)}.")
    recipe = known[name]
    about = recipe.about
    lines = [f"{name}: {recipe.what}", "", *(f"  {command}" for command in recipe.commands), ""]
    lines += _told("published", [_result(about.published) if about.published else "none"])
    lines += _told("here", [_result(about.obtained) if about.obtained else "not run"])
    lines += _told("source", about.source)
    lines += _told("uncertain", about.uncertain)
    return "\n".join(lines)


def _result(result: Result | str) -> str:
    return result if isinstance(result, str) else f"{result.words()} ({result.condition})"


def _told(head: str, sentences: list[str]) -> list[str]:
    lines: list[str] = []
    for sentence in sentences:
        start = f"{head if not lines else '':11}"
        lines += textwrap.wrap(start + sentence, WIDTH, subsequent_indent=" " * 13, break_on_hyphens=False)
    return lines


def _short(metric: str) -> str:
    known = next(name for name in METRICS if metric.startswith(name))
    return METRICS[known] + metric.removeprefix(known)
