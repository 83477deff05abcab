"""Several processes share one evaluation, and say what one alone says."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from metricweight.retrieval import evaluate
from metricweight.retrieval.points import together
from metricweight.retrieval.ranking import Search, Share, ranks

pytestmark = pytest.mark.filterwarnings("ignore::metricweight.retrieval.report.EvaluationWarning")


def items(classes, count=2600):
    """Enough for several blocks of products; one class of many; ties."""
    random = np.random.default_rng(0)
    labels = random.integers(1, classes, count)
    labels[:120] = 0
    x = (random.standard_normal((classes, 12))[labels] + 1.5 * random.standard_normal((count, 12))).astype(np.float32)
    x[700:760] = x[1700:1760]
    return x, labels


def by_two_processes(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["-m", "metricweight", "evaluate", *map(str, words)]
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environment, check=False)


def test_two_processes_give_the_numbers_of_one_to_the_bit_and_one_of_them_prints(tmp_path):
    x, labels = items(200)
    np.savez(tmp_path / "x.npz", embeddings=x, labels=labels)
    done = by_two_processes(tmp_path / "x.npz", "--json", "--out", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["models"]["x"]["all"]  # two reports would not be JSON
    assert found == json.loads(json.dumps(evaluate(x, labels).as_dict()))
    assert done.stdout == (tmp_path / "here" / "x.report.json").read_text()
    assert len(list((tmp_path / "here").iterdir())) == 6


def test_queries_and_a_gallery_are_shared_too(tmp_path):
    x, labels = items(200)
    q, cameras = np.arange(2600) % 2 == 0, np.arange(2600) // 2 % 3
    np.savez(tmp_path / "q.npz", embeddings=x[q], labels=labels[q], cameras=cameras[q])
    np.savez(tmp_path / "g.npz", embeddings=x[~q], labels=labels[~q], cameras=cameras[~q])
    words = [tmp_path / "q.npz", "--gallery", tmp_path / "g.npz", "--protocol", "mars-official"]
    done = by_two_processes(*words, "--similarity", "euclidean", "--memory", "200MB")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "q.report.json").read_text())["models"]["q"]["all"]
    expected = evaluate(
        x[q], labels[q], gallery=x[~q], gallery_labels=labels[~q], cameras=cameras[q], gallery_cameras=cameras[~q],
        protocol="mars-official", similarity="euclidean",
    )  # fmt: skip
    assert found == json.loads(json.dumps(expected.as_dict()))
    assert done.stdout.count("Saved as") == 1
    assert done.stdout.count("| q ") == 1


def test_each_process_counts_a_part_and_the_parts_add_up_to_all():
    x, labels = items(200)
    points, gallery = together(x, None, "cosine")
    search = Search(points, gallery, labels, labels, np.arange(len(x)))

    def counted(rank, processes):
        counts = []
        list(ranks(search, share=Share(rank, processes, lambda numbers: counts.append(numbers.copy()))))
        return np.concatenate(counts)

    first, second, whole = counted(0, 2), counted(1, 2), counted(0, 1)
    assert np.array_equal(first + second, whole)
    assert 0.2 < first.sum() / whole.sum() < 0.8
