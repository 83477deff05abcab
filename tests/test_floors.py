"""Imports point down, and nothing heavy is loaded before it is used."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import metricweight

PACKAGE = Path(metricweight.__file__).parent

FLOORS = [  # from the ground up; a module imports only from floors beneath its own, or from its own folder
    ["gradient", "checks", "files", "progress"],
    ["similarity", "pairs"],
    ["directions"],
    ["confidence"],
    ["streaming"],
    ["pair_weights", "emphasis"],
    ["losses"],
    ["miners", "memory", "pml"],
    ["retrieval"],
    ["data", "models", "recipes"],
    ["settings"],
    ["training", "curves"],
    ["reporting", "_data_tools"],
    ["cli"],
    ["__main__"],
]
NOT_FOR_RETRIEVAL = {"streaming", "pair_weights", "emphasis", "losses", "miners", "memory", "pml"}
ONE_FILE_ONLY = {  # package -> the only file, or files, that may import it
    "faiss": "retrieval/search.py",
    "pytorch_metric_learning": "pml.py",
    "matplotlib": "data/glyphs.py curves.py",
    "torchvision": "models/backbones.py models/weights.py data/transforms.py data/images.py",
    "timm": "models/backbones.py",
    "safetensors": "models/weights.py",
    "onnx": "training/export.py",
    "onnxruntime": "training/export.py",
    "sklearn": "data/images.py retrieval/clustering.py",
    "scipy": "retrieval/rerank.py",
    "numba": "retrieval/kernels.py",
    "threadpoolctl": "retrieval/ranking.py",
}
WITH_THEIR_FILE = {"pml.py": "pytorch_metric_learning", "kernels.py": "numba"}  # loaded when the file is


def floor(part):
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def imports(path):
    """(module, whether it is imported when the file is) for each import of a file."""
    tree = ast.parse(path.read_text())
    on_load = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in on_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "metricweight":
                yield from ((f"metricweight.{alias.name}", id(node) in on_load) for alias in node.names)
            else:
                yield node.module, id(node) in on_load


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module, _ in imports(path):
        if module.startswith("metricweight."):
            other = module.split(".")[1]
            assert other == own or floor(other) < floor(own), f"{own} imports {other}"
            assert not (own == "retrieval" and other in NOT_FOR_RETRIEVAL), f"retrieval imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_heavy_package_lives_in_one_file_and_is_loaded_there_when_it_is_used(path):
    for module, on_load in imports(path):
        package = module.split(".")[0]
        if package in ONE_FILE_ONLY:
            assert str(path.relative_to(PACKAGE)) in ONE_FILE_ONLY[package].split()
        if on_load and package in {*ONE_FILE_ONLY, "pandas"}:
            assert WITH_THEIR_FILE.get(path.name) == package, f"with {path}"


DATA_TOOLS = Path(importlib.import_module("metricweight._data_tools").__path__[0])


@pytest.mark.parametrize("path", sorted(DATA_TOOLS.rglob("*.py")), ids=lambda path: str(path.relative_to(DATA_TOOLS)))
def test_converters_stand_on_the_data_floor_and_load_what_is_heavy_when_they_use_it(path):
    tree = ast.parse(path.read_text())
    on_load = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "metricweight" and len(parts) > 1:
                assert parts[1] in ("checks", "files", "progress", "data"), name
            if id(node) in on_load:
                assert parts[0] not in {*ONE_FILE_ONLY, "pandas", "torch"}, name


def test_the_list_of_data_sets_is_made_without_torch_or_pandas():
    assert not {"torch", "pandas", "scipy"} & loaded_by("import metricweight._data_tools.prepare")


def loaded_by(code):
    """The packages that some code loads, in a fresh interpreter."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_library_loads_torch_and_nothing_else_that_is_heavy():
    use = "import metricweight as mw; mw.losses.RankedListLoss; mw.miners.RankedListMiner; mw.scale_gradient"
    more = loaded_by(use) - loaded_by("import torch") - set(sys.stdlib_module_names)
    assert more == {"metricweight"}


def test_an_evaluation_loads_numba_besides_with_all_that_numba_loads_and_a_small_package():
    use = """
import metricweight, numpy
assert metricweight.retrieval.evaluate(numpy.eye(4) + 1, [0, 0, 1, 1], ks=(1,)).json()
"""
    more = loaded_by(use) - loaded_by("import torch, numba, threadpoolctl") - set(sys.stdlib_module_names)
    assert {name for name in more if not name.startswith("_")} == {"metricweight"}


def test_the_command_line_answers_for_help_without_torch():
    assert not {"torch", "numpy", "pydantic"} & loaded_by("import metricweight.cli")


def test_every_part_of_the_package_is_installed():

    parts = {path.parent.relative_to(PACKAGE) for path in FILES}
    listed = Path(PACKAGE.parent / "setup.cfg").read_text()
    for part in parts - {Path(".")}:
        assert f"metricweight.{str(part).replace(os.sep, '.')}\n" in listed
