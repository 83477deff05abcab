"""Settings that ship with the package: one YAML file per recipe, its first line what it does."""

from importlib.resources import files
from typing import NamedTuple


class Recipe(NamedTuple):
    what: str  # it does, in a line
    text: str  # YAML


def recipes() -> dict[str, Recipe]:
    """The recipes by name."""
    found = {}
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            text = file.read_text(encoding="utf-8")
            found[file.name.removesuffix(".yaml")] = Recipe(text.splitlines()[0].lstrip("# "), text)
    return found
