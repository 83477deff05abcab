"""Recipes say where they come from, and run."""

import importlib
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torchvision.models import get_model_weights

from metricweight.checks import InputError
from metricweight.data.transforms import scaled
from metricweight.models.heads import embedder
from metricweight.recipes import About, Result, describe, listing, recipes
from metricweight.settings import read
from metricweight.training.tracklets import objective_for

DATASETS = importlib.import_module("metricweight._data_tools.table").DATASETS
RECIPES = recipes()
WITH_DATA = [name for name, recipe in RECIPES.items() if recipe.needs_data]
ON_A_REPLICA = [name for name in WITH_DATA if "--replica" in RECIPES[name].commands[0]]
ON_ALL_OF_IT = [name for name in WITH_DATA if name not in ON_A_REPLICA]
CLASSES = {  # that are trained on
    "cub200": 100, "cars196": 98, "sop": 11_318, "inshop": 3_997, "market1501": 751,
    "cifar10": 10, "cifar100": 100, "clothing1m": 14, "mars": 625,
}  # fmt: skip
PICTURES = {
    "cub200": 5_864, "cars196": 8_054, "sop": 59_551, "inshop": 25_882, "market1501": 12_936,
    "cifar10": 50_000, "cifar100": 50_000, "clothing1m": 1_000_000, "mars": 509_914,
}  # fmt: skip
NOISY = [f"{way}_{data}" for way in ("dm", "imae") for data in ("cifar10", "cifar100", "clothing1m")]
PUBLISHED = {  # as the papers, their posters, slides, logs and READMEs have it
    "rll_cub": "R@1 61.3, R@2 72.7, R@4 82.7, R@8 89.4, NMI 66.1",
    "rll_cars": "R@1 82.1, R@2 89.3, R@4 93.7, R@8 96.7, NMI 71.8",
    "rll_sop": "R@1 79.8, R@10 91.3, R@100 96.3, NMI 90.4",
    "rll_simpler_sop": "R@1 78.6, R@10 90.5, R@100 95.9",
    "rll_simpler_inshop": "R@1 89.9, R@10 97.6, R@20 98.3, R@30 98.7, R@40 98.9, R@50 99.0",
    "osm_cub": "R@1 55.3, R@2 67.3, R@4 77.5, R@8 85.8, R@16 91.8, R@32 95.4",
    "osm_cars": "R@1 74.0, R@2 83.8, R@4 90.2, R@8 94.8, R@16 97.3, R@32 98.6",
    "dm_cifar10": "accuracy 80.0",
    "dm_cifar100": "accuracy 61.0",
    "dm_clothing1m": "accuracy 73.3",
    "imae_cifar10": "accuracy 82.2",
    "imae_cifar100": "accuracy 54.7",
    "imae_clothing1m": "accuracy 73.2",
    "r50_gem_cub": "R@1 69.2",
    "r50_gem_cars": "R@1 89.3",
    "r50_gem_sop": "R@1 81.1",
    "r50_gem_inshop": "R@1 90.6",
    "vit_dino_cub": "R@1 80.9",
    "vit_dino_cars": "R@1 89.2",
    "vit_dino_sop": "R@1 85.1",
    "vit_dino_inshop": "R@1 92.4",
    "market1501": "R@1 92.0, mAP 81.7",
    "mars": "R@1 87.1, R@5 95.9, R@20 98.2, mAP 81.3",
    "osm_mars": "R@1 84.7, R@5 94.1, R@20 97.0, mAP 72.4",
    "dm_mars": "R@1 84.3, mAP 72.8",
    "imae_mars": "R@1 83.5, mAP 70.9",
}


def settings_of(name):
    """The settings of a recipe as its file has them, without defaults."""
    return yaml.safe_load(RECIPES[name].text)


def test_there_is_a_recipe_for_each_method_and_data_set_and_those_without_data_come_first():
    assert list(RECIPES)[:3] == ["digits", "folder", "glyphs"]
    many = {"rll": "cub cars sop inshop", "rll_simpler": "sop inshop", "osm": "cub cars mars", "ice": "cub cars sop"}
    many |= {"r50_gem": "cub cars sop inshop", "vit_dino": "cub cars sop inshop"}
    many |= dict.fromkeys(("dm", "imae"), "cifar10 cifar100 clothing1m mars") | {"id_quality": "mars"}
    of_methods = {f"{way}_{data}" for way, all_ in many.items() for data in all_.split()}
    assert set(ON_ALL_OF_IT) == {"market1501", "mars"} | of_methods


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from_beside_its_settings(name):
    recipe, about = RECIPES[name], RECIPES[name].about
    assert "about" not in settings_of(name)
    assert yaml.safe_load(recipe.told).keys() == {"about"}
    assert read(name)  # and so every setting of it is known
    assert 20 < len(recipe.what) <= 118
    assert all(sentence.endswith(".") for sentence in [*about.source, *about.uncertain])
    assert (about.data is not None) == recipe.needs_data == (len(about.uncertain) > 0)
    assert isinstance(about.published, Result) == (name in PUBLISHED)
    assert (about.obtained is not None) == (name in ("glyphs", "people"))


@pytest.mark.parametrize("name", ON_A_REPLICA)
def test_the_commands_of_a_recipe_for_a_replica_write_it_and_train_on_it(name):
    data, (first, last) = RECIPES[name].about.data, RECIPES[name].commands
    assert DATASETS[data].replica is not None
    assert re.fullmatch(rf"metricweight prepare {data} --replica DIR( --size \d+)?", first)
    assert last == f"metricweight train {name} data.root=DIR/manifest.csv"
    assert not read(name).model.pretrained


@pytest.mark.parametrize("name", ON_ALL_OF_IT)
def test_its_commands_make_its_manifest_and_train_on_it(name):
    data, (first, *between, last) = RECIPES[name].about.data, RECIPES[name].commands
    assert DATASETS[data].replica is not None
    assert first == f"metricweight prepare {data} --root DIR --out {data}.csv"
    made = f"{data}.csv"
    for command in between:
        assert command.startswith(f"metricweight noise {made} --kind sym_excl --rate 0.4 ")
        made = command.split("--out ")[1]
    assert last == f"metricweight train {name} data.root={made}"
    assert bool(between) == ("cifar" in name)
    settings = read(name)
    assert (settings.data.source, settings.data.root) == ("folder", None)


@pytest.mark.parametrize("name", ON_ALL_OF_IT)
def test_its_batches_and_milestones_fit_its_data(name):
    settings, data = read(name), RECIPES[name].about.data
    held_out = max(2, round(settings.data.validation * CLASSES[data])) if settings.data.validation else 0
    assert settings.batch.classes <= CLASSES[data] - held_out
    size = settings.batch.classes * settings.batch.images * (settings.tracklets.frames or 1)
    assert size % (settings.batch.chunk or 1) == 0
    assert settings.steps * size > 2 * PICTURES[data]  # each picture is seen twice at least
    milestones = settings.optimizer.milestones
    assert milestones == sorted(set(milestones))
    assert all(milestone < settings.steps for milestone in milestones)
    assert bool(milestones) == (settings.optimizer.schedule == "steps")
    validated = settings.data.validation > 0 or data == "clothing1m"  # which has validation pictures of its own
    assert settings.checkpoints.choose == ("validation" if validated else "last")


def test_published_numbers_are_those_that_were_published():
    said = {name: x.words() for name, recipe in RECIPES.items() if isinstance(x := recipe.about.published, Result)}
    assert said == PUBLISHED


def test_every_published_number_has_its_condition():
    for name in PUBLISHED:
        condition = RECIPES[name].about.published.condition
        assert re.search(r"GoogLeNet-V[12]|ResNet-(44|50|56)|ViT-S/16", condition), name
    assert "whole pictures" in RECIPES["osm_cars"].about.published.condition
    assert "40 % symmetric noise" in RECIPES["dm_cifar100"].about.published.condition


@pytest.mark.parametrize("name", NOISY)
def test_a_recipe_whose_paper_reports_accuracy_says_that_retrieval_stands_beside_it(name):
    assert "accuracy" in RECIPES[name].about.published.numbers
    assert any("the accuracy of the classifier, which the report has" in x for x in RECIPES[name].about.uncertain)


@pytest.mark.parametrize("name", [*NOISY, "dm_mars", "imae_mars"])
def test_weights_of_a_batch_of_noisy_labels_are_divided_by_their_sum_so_that_the_rates_are_those_of_the_papers(name):
    """The gradient of example i is w_i / sum_k w_k times a direction of absolute values that sum to 1."""
    settings = read(name)
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    labels = torch.arange(7) % 5
    settings.build_loss()(logits, labels).backward()
    p = logits.detach().softmax(1)[torch.arange(7), labels]
    power = {"dm_cifar10": 0.5, "dm_cifar100": 0.5, "dm_mars": 0.5}.get(name, 1)
    beta = {"dm_clothing1m": 2}.get(name, 8)
    w = torch.exp(beta * p**power * (1 - p))
    torch.testing.assert_close(logits.grad.abs().sum(1), w / w.sum(), rtol=1e-6, atol=0)
    optimizer = settings.optimizer
    data = name.partition("_")[2]
    rates = {
        "cifar10": (0.1, 5e-4, [15_000, 22_000], 0.1, 30_000),
        "cifar100": (0.1, 5e-4, [15_000, 22_000], 0.1, 30_000),
        "clothing1m": (0.01, 2e-5, [10_000, 15_000], 0.1, 20_000),
        "mars": (0.01, 5e-4, [10_000, 20_000, 30_000, 40_000], 0.5, 50_000),
    }
    asked = (optimizer.learning_rate, optimizer.weight_decay, optimizer.milestones, optimizer.decay, settings.steps)
    assert asked == rates[data]
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    network = {"cifar10": "resnet56", "cifar100": "resnet44", "clothing1m": "resnet50", "mars": "googlenet"}
    assert settings.model.backbone == network[data]
    assert (settings.model.embedding_size, settings.model.pretrained) == (None, data in ("clothing1m", "mars"))


@pytest.mark.parametrize("name", WITH_DATA)
def test_pixels_are_on_the_scale_of_the_weights_that_the_network_starts_from(name):
    """The weights of torchvision's GoogLeNet came from elsewhere and know pixels from -1 to 1: that is what its own
    `transform_input`, which is left out here, makes of the ImageNet scale."""
    settings = read(name)
    if not settings.model.pretrained:
        return
    word = settings.model.backbone
    if word.startswith("timm:"):
        known = pytest.importorskip("timm").models.get_pretrained_cfg(word.removeprefix("timm:"))
        mean, deviation = known.mean, known.std
    elif word == "googlenet":
        mean = deviation = (0.5, 0.5, 0.5)
    else:
        known = get_model_weights(word).IMAGENET1K_V1.transforms()
        mean, deviation = known.mean, known.std
    colours = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = (colours - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    torch.testing.assert_close(scaled(colours, settings.data.pixels), expected)


def test_settings_are_those_of_the_papers():
    """Facts of the released settings, some from each method."""
    sop = read("rll_sop")
    assert (sop.batch.classes, sop.batch.images, sop.steps) == (60, 3, 20_000)
    assert (sop.loss["alpha"], sop.loss["margin"], sop.loss["negative_temperature"]) == (1.2, 0.4, 10)
    assert (sop.optimizer.learning_rate, sop.optimizer.weight_decay, sop.optimizer.decay) == (0.01, 1e-5, 0.5)
    assert (sop.model.levels, sop.model.embedding_size) == (["low", "middle", "high"], 512)
    inshop = read("rll_simpler_inshop")
    assert (inshop.model.embedding_size, inshop.loss["alpha"], inshop.loss["negative_temperature"]) == (128, None, 12)
    assert inshop.optimizer.milestones == [12_000, 24_000]
    cars = read("osm_cars")
    assert (cars.loss["sigma"], cars.loss["margin"], cars.attention.form) == (0.8, 1.2, "released")
    assert (cars.batch.classes, cars.batch.images, cars.optimizer.learning_rate) == (8, 7, 0.001)
    assert read("dm_cifar100").loss["mode"] == 0.5 / (0.5 + 1)  # lambda 1/2
    assert read("dm_clothing1m").loss["mode"] == 1 / (1 + 1)  # lambda 1
    market = read("market1501")
    assert (market.data.shape, market.model.last_stride, market.batch.rule) == ((256, 128), 1, "identity")


@pytest.mark.parametrize("name", ["osm_mars", "id_quality_mars"])
def test_settings_for_tracklets_are_those_of_the_released_code(name):
    settings = read(name)
    batch, of, optimizer = settings.batch, settings.tracklets, settings.optimizer
    assert (batch.classes, batch.images, of.frames, of.clip) == (3, 2, 9, "random")
    assert batch.rule == "balanced"  # with replacement: both tracklets may be the same one
    rates = (optimizer.name, optimizer.learning_rate, optimizer.weight_decay, optimizer.decay, optimizer.milestones)
    assert rates == ("sgd", 0.001, 0.0005, 0.5, [20_000, 30_000, 40_000, 50_000])
    assert (settings.steps, settings.model.levels, settings.model.embedding_size) == (60_000, ["middle"], 1024)
    assert of.seen == "all frames, mean"


@pytest.mark.parametrize("name", ["osm_mars", "id_quality_mars"])
def test_losses_of_tracklets_are_those_of_the_released_code(name):
    """Of 54 frames and of the 6 clips that they make, by how sure the classifier of frames is of each. All weights are
    constants; the gradient is what is compared, since a loss of kind example has no value of its own."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(2 * 9)
    objective = objective_for(read(name), torch.arange(5), levels=1, dim=8).double()
    x = (torch.randn(54, 8, generator=draw) + 2 * torch.eye(8)[labels]).double().requires_grad_()

    def normal(p, mean, sigma):
        return torch.exp(-((p.detach() - mean) ** 2) / (2 * sigma**2))

    def judged(judge, x, y):
        p = judge.class_logits(x).softmax(1)[torch.arange(len(y)), y]
        v, a = normal(p, 0.5, 0.18), normal(p, 1.0, 0.68)
        loss = (v * -p.log()).sum() / v.sum()
        if name == "osm_mars":
            i, j = torch.triu_indices(len(y), len(y), 1)
            d = (x[i] / x[i].norm(dim=1)[:, None] - x[j] / x[j].norm(dim=1)[:, None]).norm(dim=1)
            same, both, near = y[i] == y[j], torch.minimum(a[i], a[j]), (1.2 - d).clamp(min=0)
            pull, push = torch.exp(-(d.detach() ** 2) / 2) * both * same, near.detach() * both * ~same
            halves = 0.5 * (pull * d**2 / 2).sum() / pull.sum() + 0.5 * (push * near**2 / 2).sum() / push.sum()
            loss = loss + halves / len(i)  # 1,431 pairs of frames, 15 of clips
        return loss, a

    of_frames, a = judged(objective.frames, x, labels)
    a = a.reshape(6, 9, 1)
    clips = (a * x.reshape(6, 9, 8)).sum(1) / a.sum(1)
    of_clips, _ = judged(objective.sets, clips, labels[::9])
    (found,) = torch.autograd.grad(objective(x, labels, 0).loss, x)
    (expected,) = torch.autograd.grad(of_frames + of_clips, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


def test_the_baseline_for_tracklets_has_the_batch_and_the_epochs_of_its_sources():
    settings, market = read("mars"), read("market1501")
    batch, of, optimizer = settings.batch, settings.tracklets, settings.optimizer
    assert (batch.classes, batch.images, of.frames, of.clip, of.stride) == (8, 4, 4, "consecutive", 8)
    assert (of.fusion, of.seen, settings.frame_losses) == ("mean", "all frames, mean", [])
    assert batch.rule == "ranked_list"  # each of the people once in an epoch
    epoch = 625 // 8
    assert (settings.steps, optimizer.milestones) == (240 * epoch, [80 * epoch, 140 * epoch])
    assert round(optimizer.warmup * settings.steps / epoch) == 20
    for key in ("loss", "plus", "model"):
        assert getattr(settings, key) == getattr(market, key)
    same = ("name", "learning_rate", "weight_decay", "schedule", "decay")
    assert all(getattr(optimizer, key) == getattr(market.optimizer, key) for key in same)
    assert (settings.data.shape, settings.data.transform) == ((256, 128), "person")


@pytest.mark.parametrize("name", ["dm_mars", "imae_mars"])
def test_noisy_frames_of_tracklets_are_learned_from_as_180_pictures(name):
    settings = read(name)
    assert settings.tracklets.frames is None
    assert settings.tracklets.seen == "all frames, mean"
    assert settings.batch.classes * settings.batch.images == 180
    assert settings.batch.rule == "shuffle"
    assert any("not stated" in sentence for sentence in RECIPES[name].about.uncertain)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("mars", 2048),
        ("osm_mars", 1024),
        ("dm_mars", 1024),
        ("rll_cub", 3 * 512),
        ("rll_simpler_sop", 3 * 64),
        ("osm_cub", 1024),
        ("ice_cub", 512),
        ("r50_gem_cub", 512),
        ("vit_dino_cub", 384),
        ("market1501", 2048),
        ("dm_cifar10", 64),
        ("imae_cifar100", 64),
        ("dm_clothing1m", 2048),
    ],
)
def test_its_network_makes_embeddings_of_its_pictures(name, numbers):
    if name.startswith("vit"):
        pytest.importorskip("timm")
    settings = read(name, ["model.pretrained=false"])
    network = embedder(3, **settings.model.model_dump()).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, *settings.data.shape)).shape == (1, numbers)


@pytest.mark.parametrize(
    "values",
    [
        {"recall@1": 74.0},  # under no condition
        {"with": "raw pictures"},
        {"recall@1": 174.0, "with": "raw pictures"},
        {"recal@1": 74.0, "with": "raw pictures"},
        {"recall@0": 74.0, "with": "raw pictures"},
        {"recall@1": "high", "with": "raw pictures"},
    ],
)
def test_a_result_is_numbers_in_percent_and_a_condition(values):
    with pytest.raises(ValidationError):
        Result.model_validate(values)
    good = Result.model_validate({"recall@1": 74, "map@r": 30.5, "with": "raw pictures"})
    assert (good.words(), good.words(first=True)) == ("R@1 74.0, MAP@R 30.5", "R@1 74.0")


def test_what_was_obtained_on_the_glyphs_is_what_the_readme_says():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    trained = re.search(r"^\| trained +\|(.*)\|$", readme, re.MULTILINE)
    recall_1, recall_2, recall_4, recall_8, map_at_r = (float(x.split()[0]) for x in trained[1].split("|")[:5])
    said = RECIPES["glyphs"].about.obtained.words()
    assert said == f"R@1 {recall_1}, R@2 {recall_2}, R@4 {recall_4}, R@8 {recall_8}, MAP@R {map_at_r}"


def test_a_recipe_of_ones_own_may_say_what_it_likes_of_itself(tmp_path):
    (tmp_path / "own.yaml").write_text(f"{RECIPES['osm_cub'].text}about: {{mine: yes}}\n")
    assert read(str(tmp_path / "own.yaml")) == read("osm_cub")


def test_what_a_recipe_says_of_itself_is_strict():
    values = yaml.safe_load(RECIPES["osm_cub"].told)["about"]
    assert About.model_validate(values) == RECIPES["osm_cub"].about
    for wrong in ({**values, "publised": None}, {k: v for k, v in values.items() if k != "source"}):
        with pytest.raises(ValidationError):
            About.model_validate(wrong)


def test_the_list_has_each_recipe_with_its_data_and_numbers_and_fits_120_columns():
    text = listing()
    assert max(map(len, text.splitlines())) <= 120
    lines = {line.split()[0]: line for line in text.splitlines() if line[:1].strip()}
    assert set(RECIPES) < set(lines)
    assert re.match(r"osm_cars +cars196 +R@1 74\.0 +not run +Online soft mining", lines["osm_cars"])
    assert re.match(r"ice_cub +cub200 +- +not run +Instance", lines["ice_cub"])
    assert re.match(r"glyphs +- +- +R@1 71\.29 +Ranked", lines["glyphs"])
    assert "metricweight train NAME data.root=DATA.csv" in text


def test_a_recipe_is_described_with_all_that_it_says_and_how_it_is_run():
    for name, recipe in RECIPES.items():
        text = describe(name)
        assert max(map(len, text.splitlines())) <= 120
        said = " ".join(text.split())
        for sentence in [recipe.what, *recipe.commands, *recipe.about.source, *recipe.about.uncertain]:
            assert " ".join(sentence.split()) in said
    assert "published R@1 55.3, R@2 67.3" in " ".join(describe("osm_cub").split())
    assert "here not run" in " ".join(describe("osm_cub").split())
    with pytest.raises(InputError, match=r"unknown recipe 'rll_cup'; did you mean rll_cub\?"):
        describe("rll_cup")


SMALL = textwrap.dedent("""
    steps=2 validations=1 checkpoints.every=null ks=[1,2] data.size=32 data.workers=0
    batch.classes=2 batch.images=2 batch.chunk=null
    model.backbone=small_cnn model.pretrained=false model.embedding_size=16 model.last_stride=2 model.frozen=[]
""").split()  # no weights are at hand, and a deep network at random makes all pictures alike
KEPT = {  # what a recipe is about
    "vit_dino_cub": ["batch.chunk=2", "model.frozen=[block1]"],
    "market1501": ["data.size=[64,32]", "model.embedding_size=null"],
    "mars": ["data.size=[64,32]", "model.embedding_size=null"],
    "dm_cifar10": ["model.embedding_size=null"],
    "dm_cifar100": ["model.backbone=resnet44", "model.embedding_size=null"],
}


def small(name):
    """The settings of a recipe, made small enough for a test."""
    settings = read(name)
    words = [*SMALL, *KEPT.get(name, [])]
    words += ["optimizer.milestones=[1]"] if settings.optimizer.schedule == "steps" else []
    words += ["data.validation=0.25"] if settings.data.validation else []
    return read(name, words)


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """The manifest of the replica of a data set, made once."""
    tools = importlib.import_module("metricweight._data_tools.prepare")
    source = importlib.import_module("metricweight._data_tools.source")
    made = {}

    def manifest(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tools.write_replica(name, folder / "raw", size=1 if name == "mars" else 2)  # MARS has many frames
            tools.prepare(name, folder / "raw", folder / "manifest.csv", source.Options(pictures=folder))
            made[name] = folder / "manifest.csv"
        return made[name]

    return manifest


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_recipe_trains_on_the_replica_of_its_data_and_ends_with_a_report(name, replica, tmp_path):
    from metricweight.training.loop import train

    settings = small(name)
    data = settings.data.model_copy(update={"root": replica(RECIPES[name].about.data)})
    train(settings.model_copy(update={"data": data}), name, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    trained = report["models"]["trained"]["test"]
    assert 0 <= trained["recall@1"] <= 1
    assert ("accuracy" in trained) == (name in NOISY)  # tested on the classes that it was trained on
    protocol = {"inshop": "inshop", "market1501": "market1501", "mars": "mars-official"}
    assert trained["stamp"]["protocol"]["name"] == protocol.get(RECIPES[name].about.data, "self")
    features = 64 if settings.model.backbone == "resnet44" else 4096
    with np.load(tmp_path / "run" / "embeddings.npz") as found:
        assert found["embeddings"].shape[1] == len(settings.model.levels) * (settings.model.embedding_size or features)
    assert "replica" in (replica(RECIPES[name].about.data).with_suffix(".csv.json")).read_text()


def test_what_was_obtained_of_people_is_what_the_readme_says():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| mars-official |"))
    mean_average_precision, recall = (float(row.split("|")[place].split("±")[0]) for place in (4, 6))
    numbers = RECIPES["people"].about.obtained.numbers
    assert numbers == {"recall@1": round(recall, 1), "map": round(mean_average_precision, 1)}
