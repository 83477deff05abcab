import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CPU_AND_CUDA = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's cache; the glyphs are drawn once per session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def metricweight(monkeypatch, capfd, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in an empty folder: exit code, standard output, standard error."""
    from metricweight.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metricweight", *map(str, words)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of about eight pictures, embedded four at once."""
    from metricweight.training import embedding, pictures

    monkeypatch.setattr(embedding, "PART", 8)
    monkeypatch.setattr(pictures, "BLOCK", 4)


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures were embedded at once, each time."""
    from metricweight.training import embedding

    sizes, own = [], embedding.embedded

    def counted(network, images, *more):
        sizes.append(len(images))
        return own(network, images, *more)

    monkeypatch.setattr(embedding, "embedded", counted)
    return sizes


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A short finished run on the digits, trained by the installed command."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    words = [sys.executable, "-m", "metricweight", "train", "digits", "steps=6", "--out", str(run)]
    subprocess.run(words, check=True, capture_output=True)
    return run
