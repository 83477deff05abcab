"""The README is true: its commands and code run. `.ci/run` runs the two lines of set-up."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import metricweight as mw
from metricweight.losses import LOSSES

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
SET_UP = [line for line in COMMANDS if ".venv" in line]
SHORT = {  # what makes a training command of the README short
    "glyphs": ["steps=2", "validations=1", "data.test=0.02", "data.validation=0.02"],
    "folder": ["steps=2", "validations=1", "data.validation=0", "ks=[1,2]", "batch.classes=2", "data.size=32"],
}
SHORT["runs/mine/settings.yaml"] = []
SHORT["people"] = ["steps=2"]
SHORT["osm_mars"] = [
    "steps=1", "data.size=32", "data.transform=none", "model.backbone=small_cnn", "model.pretrained=false",
    "model.levels=[high]", "model.embedding_size=16",
]  # fmt: skip


def test_the_two_lines_of_set_up_are_the_ones_that_ci_runs():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text().splitlines()
    train, test, activate = SET_UP
    assert f'bash -c "{train}"' in ci
    assert f'bash -c "{test}"' in ci
    assert activate == ". .venv/bin/activate"


@pytest.fixture
def a_user(tmp_path):
    """A folder with the files that the README speaks of."""
    random = np.random.default_rng(0)
    rows = []
    for species in range(6):
        for number in range(4):
            for folder in ("other_photos", "photos"):
                path = tmp_path / folder / f"species {species}" / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
            rows.append({"path": path.relative_to(tmp_path), "label": species})
    pd.DataFrame(rows).to_csv(tmp_path / "photos.csv", index=False)
    embeddings, labels = random.standard_normal((40, 4)), np.arange(40) % 8
    np.savez(tmp_path / "embeddings.npz", embeddings=embeddings, labels=labels)
    np.save(tmp_path / "embeddings.npy", embeddings)
    tracklets = {"labels": np.arange(120) % 15 - 1, "cameras": np.arange(120) // 15 % 4, "queries": np.arange(120) < 30}
    np.savez(tmp_path / "tracklets.npz", embeddings=random.standard_normal((120, 4)), **tracklets)
    np.savez(tmp_path / "queries.npz", embeddings=embeddings[:10], labels=labels[:10])
    np.savez(tmp_path / "gallery.npz", embeddings=random.standard_normal((60, 4)), labels=np.arange(60) % 8)
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    pd.DataFrame(embeddings).add_prefix("e").assign(species=labels).to_csv(tmp_path / "table.csv", index=False)


def test_every_command_runs_in_the_order_in_which_it_is_read(metricweight, a_user):
    ran = 0
    for line in COMMANDS:
        if line in SET_UP:
            continue
        program, *words = shlex.split(line)
        if "train" in words:
            words += SHORT[words[words.index("train") + 1]]
        if program == "torchrun":
            subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, capture_output=True)
            continue
        assert program == "metricweight"
        code, out, err = metricweight(*words)
        assert code == 0, f"{line}: {err}"
        assert out
        ran += 1
    assert ran >= 10


def test_every_block_of_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert "R@1" in capsys.readouterr().out


def test_every_row_of_its_table_is_a_row_of_the_list_of_losses():
    table = [line for line in README.splitlines() if "`mw.losses." in line or "`mw.emphasis." in line]
    rows = [line for line in table if line.startswith("| `")]
    for line in rows:
        name, maker, kind, weights, paper = (cell.strip() for cell in line.strip("|").split("|"))
        row = LOSSES[name.strip("`")]
        assert eval(maker.strip("`"), {"mw": mw}) is row.make
        assert (kind, weights) == (row.kind, row.weights)
        arxiv = f"[{row.paper}](https://arxiv.org/abs/{row.paper})"
        assert paper == (arxiv if row.paper[:4].isdigit() else row.paper)
    assert len(rows) >= 21


def test_its_links_lead_to_files_and_nothing_is_left_to_be_filled_in():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (Path(__file__).parents[1] / link).is_file(), link
    assert not re.findall(r"^[A-Z_]{4,}$|\b(?:TODO|TIME|VERDICT|[A-Z]+_(?:WORDS|TABLE))\b", README, re.MULTILINE)


def test_every_command_line_verb_is_in_the_readme():
    from metricweight.cli import app

    for command in app.registered_commands:
        assert f"metricweight {command.callback.__name__}" in README
