"""Settings are typed and strict, and say what is wrong with them."""

from pathlib import Path

import pytest

from metricweight.checks import InputError
from metricweight.emphasis import Emphasis, GeneralisedCrossEntropy
from metricweight.losses import LOSSES, DerivativeLoss, OnlineSoftMiningLoss, RankedListLoss
from metricweight.recipes import recipes
from metricweight.settings import explain, explain_loss, list_losses, read, resolve, weighting, weighting_spec


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_resolves_and_reads_back_as_itself(recipe, tmp_path):
    settings = read(recipe)
    (tmp_path / "own.yaml").write_text(settings.yaml())
    assert read(str(tmp_path / "own.yaml")) == settings


def test_words_change_settings_of_every_type():
    words = ["loss.margin=0.3", "loss.alpha=1.1", "steps=7", "ks=[1,10]", "model.pretrained=true"]
    words += ["model.backbone=resnet18", "data.root=2024", "optimizer.learning_rate=1e-3", "loss.gallery=free"]
    settings = read("glyphs", words)
    assert (settings.loss["margin"], settings.loss["alpha"]) == (0.3, 1.1)
    assert settings.steps == 7
    assert settings.ks == [1, 10]
    assert settings.model.pretrained is True
    assert settings.data.root == Path("2024").absolute()
    assert read("folder", ["data.root=~/x"]).data.root == Path("~/x").expanduser()
    assert settings.optimizer.learning_rate == 0.001
    assert read("glyphs", ["loss.alpha=1.1", "loss.alpha=null"]).loss["alpha"] is None


def test_the_loss_is_built_with_its_settings():
    loss = read("glyphs", ["loss.margin=0.3", "loss.gallery=free"]).build_loss()
    assert isinstance(loss, RankedListLoss)
    assert (loss.margin, loss.gallery) == (0.3, "free")


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("glyfs", [], "unknown recipe 'glyfs'; did you mean glyphs?"),
        ("glyfs", [], "Known: digits, folder, glyphs"),
        ("none.yaml", [], "none.yaml cannot be read: .*No such file"),
        ("glyphs", ["loss.margn=0.3"], r"unknown setting loss.margn; did you mean loss.margin\?"),
        ("glyphs", ["stepz=3"], r"unknown setting stepz; did you mean steps\?"),
        ("glyphs", ["embedding_size=3"], r"unknown setting embedding_size; did you mean model.embedding_size\?"),
        ("glyphs", ["zzz.qqq=3"], r"unknown setting zzz"),
        ("glyphs", ["steps.more=3"], "steps is a value and has nothing below it"),
        ("glyphs", ["steps"], "expected a setting such as steps=600, got 'steps'"),
        ("glyphs", ["steps=many"], "setting steps: should be a valid integer.*got 'many'"),
        ("glyphs", ["ks=[1,"], r"setting ks=\[1, is not YAML"),
        ("glyphs", ["ks=1"], r"setting ks: should be a list such as .1,2. or .a,b.; got '1'"),
        ("glyphs", ["ks=[0]"], r"setting ks.0: should be greater than or equal to 1; got 0"),
        ("glyphs", ["ks=[]"], r"setting ks: List should have at least 1 item"),
        ("glyphs", ["seed=99999999999999999999999"], "setting seed: should be less than"),
        ("glyphs", ["loss.margin=nan"], "setting loss.margin: should be a finite number"),
        ("glyphs", ["data.root="], "setting data.root is given no value"),
        ("glyphs", ["loss=ranked_list"], "setting loss is a group of settings; its name is loss.name=ranked_list"),
        (".", [], "is a folder; to train on its pictures: metricweight train folder data.root="),
        ("glyphs", ["steps=0"], "setting steps: should be greater than or equal to 1; got '0'"),
        ("glyphs", ["loss.margin=wide"], "setting loss.margin: should be a valid number.*got 'wide'"),
        ("glyphs", ["loss.gallery=open"], "setting loss.gallery: should be 'fixed' or 'free'; got 'open'"),
        ("glyphs", ["loss.name=ranked_lost"], "'ranked_lost' is not a loss; did you mean ranked_list?"),
        (
            "glyphs",
            ["loss.name=imae", "loss.margin=0.3"],
            r"^unknown setting loss.margin; did you mean loss.normalise\?$",
        ),
        ("glyphs", ["loss.name=imae", "loss.temprature=4"], r"loss.temprature; did you mean loss.temperature\?"),
        ("glyphs", ["loss.name=online_soft_mining", "loss.attention=1"], "unknown setting loss.attention"),
        (
            "glyphs",
            ["optimizer.milestones=[2]"],
            "optimizer.milestones is of optimizer.schedule=steps, and it is cosine",
        ),
        ("glyphs", ["optimizer.decay=0.5"], "optimizer.decay is of optimizer.schedule=steps, and it is cosine"),
        ("glyphs", ["optimizer.schedule=steps"], "optimizer.schedule=steps needs optimizer.milestones"),
        ("glyphs", ["optimizer.momentum=0.5"], "optimizer.momentum is of optimizer.name=sgd, and it is adamw"),
        ("glyphs", ["attention.weight=2"], "attention.weight is of an attention, and attention.form is null"),
        ("glyphs", ["memory.start=5"], "memory.start is of a memory, and memory.size is 0"),
        ("glyphs", ["memory.size=5", "memory.start=5", "steps=5"], "memory.start=5 is not reached in 5 steps"),
        (
            "glyphs",
            ["data.size=4"],
            r"^setting data.size: should be a number of pixels, 8 or more, or .height,width..$",
        ),
        ("glyphs", ["data.size=[32]"], r"^setting data.size: should be a number of pixels"),
        ("glyphs", ["data.transform=crop2"], r"should be 'none'.*got 'crop2'; did you mean crop\?"),
        ("glyphs", ["optimizer.factors=5"], "should be a group such as {head: 10}; got '5'"),
        ("glyphs", ["loss.name=dm", "loss.mode=1.5"], r"Emphasis mode is a probability in \[0, 1\), got 1.5"),
        ("glyphs", ["loss.name=proselflc", "loss.total=0"], "total is a number of steps above 0, got 0"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_near(recipe, words, message):
    with pytest.raises(InputError, match=message):
        read(recipe, words)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as error:
        read("glyphs", ["steps=many", "loss.margin=wide", "batch.clases=3"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["- a list", "a: [", ""])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad.yaml (is not YAML|holds no settings)"):
        read(str(tmp_path / "bad.yaml"))


def test_every_setting_is_explained_as_a_word_that_sets_it():
    settings = read("glyphs")
    words = [line.split()[0] for line in explain(settings).splitlines()]
    assert read("glyphs", words) == settings
    assert {"loss.margin=0.4", "ks=null", "data.root=null"} <= set(words)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_chosen_and_its_settings_read_back_as_themselves(name, tmp_path):
    settings = read("glyphs", [f"loss.name={name}"])
    assert settings.loss_row is LOSSES[name]
    (tmp_path / "own.yaml").write_text(settings.yaml())
    assert read(str(tmp_path / "own.yaml")) == settings
    assert repr(settings.build_loss()) == repr(read(str(tmp_path / "own.yaml")).build_loss())


def test_another_loss_leaves_the_arguments_of_the_recipes_loss_behind(tmp_path):
    (tmp_path / "own.yaml").write_text("data: {source: glyphs}\nloss: {name: dm, beta: 3, mode: 0.5}\n")
    own, plain = str(tmp_path / "own.yaml"), {"normalise": False}
    assert read(own, ["loss.name=normal"]).loss == {"name": "normal", "mode": 0.5, "beta": 8.0, **plain}  # its own
    assert read(own, ["loss.beta=2", "loss.name=exponential"]).loss == {"name": "exponential", "beta": 2.0, **plain}
    given = {"name": "dm", "mode": 0.5, "beta": 3.0, **plain}
    assert read(own, ["loss.name=dm"]).loss == given  # not another: nothing is lost
    assert read(own, ["loss.name=mae", "loss.name=dm"]).loss == given
    with pytest.raises(InputError, match=r"unknown setting loss\.beta"):  # a word is never dropped
        read(own, ["loss.name=imae", "loss.beta=2"])


def test_the_total_of_a_loss_is_the_number_of_steps_unless_it_is_given():
    words = ["loss.name=proselflc", "steps=77"]
    settings = read("glyphs", words)
    assert settings.loss["total"] == 77
    assert settings.build_loss().total == 77
    assert "loss.total=77" in explain(settings)
    assert read("glyphs", [*words, "loss.total=50"]).loss["total"] == 50


def test_an_example_loss_is_built_round_its_weighting():
    loss = read("glyphs", ["loss.name=dm", "loss.mode=0.5", "loss.beta=3"]).build_loss()
    assert isinstance(loss, DerivativeLoss)
    assert loss.weighting == Emphasis(mode=0.5, beta=3.0)


def test_what_only_python_can_give_is_no_setting():
    loss = read("glyphs", ["loss.name=online_soft_mining", "loss.sigma=0.6"]).loss
    assert loss["sigma"] == 0.6
    assert "attention" not in loss
    assert isinstance(resolve({"data": {"source": "glyphs"}, "loss": loss}).build_loss(), OnlineSoftMiningLoss)
    assert "Not a setting, given in Python only: attention." in explain_loss("online_soft_mining")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_explained_with_words_that_choose_it(name):
    words = [line.strip() for line in explain_loss(name).splitlines() if line.startswith("  loss.")]
    own = {key: value for key, value in LOSSES[name].defaults.items() if key != "attention"}
    own |= {"normalise": False} if LOSSES[name].kind == "example" else {}
    assert read("glyphs", words).loss == {"name": name, **own}


def test_the_list_of_losses_has_a_line_each_and_fits_a_terminal():
    lines = list_losses().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[row.name, row.kind] for row in LOSSES.values()]
    for line, row in zip(lines[1:], LOSSES.values(), strict=True):
        assert row.weights in line
        assert row.paper in line
    assert any(line.endswith("q=0.7 k=null normalise=false") for line in lines)
    narrow = list_losses(120)
    assert max(map(len, narrow.splitlines())) <= 120
    assert sorted(narrow.split()) == sorted(list_losses().split())  # wrapped, not cut


def test_a_weighting_is_a_name_and_typed_arguments():
    assert weighting("dm:mode=0.67,beta=12") == Emphasis(mode=0.67, beta=12.0)
    assert weighting("imae:temperature=4") == Emphasis(mode=0.5, beta=4.0)
    assert weighting("gce:k=null,q=0.5") == GeneralisedCrossEntropy(q=0.5, k=None)
    assert weighting_spec(read("glyphs", ["loss.name=dm", "loss.beta=12"]).loss) == "dm:beta=12.0"
    assert weighting_spec(read("glyphs", ["loss.name=cce"]).loss) == "cce"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imea", "'imea' is not an example weighting; did you mean imae?"),
        ("dm:mod=1", "unknown setting dm:mod; did you mean dm:mode?"),
        ("dm:beta=x", "setting dm:beta: should be a valid number"),
        ("dm:name=mae", "unknown setting dm:name"),
        ("dm:mode", "expected a weighting such as dm:mode=0.67,beta=12, got 'dm:mode'"),
        ("dm:", "expected a weighting such as dm:mode=0.67,beta=12, got 'dm:'"),
        ("dm:mode=", "expected a weighting such as dm:mode=0.67,beta=12, got 'dm:mode='"),
        ("dm:mode=2", "Emphasis mode is a probability in [0, 1), got 2.0"),
        ("ranked_list", "'ranked_list' weighs pairs, not examples, so it has no curve over p"),
        ("proselflc", "'proselflc' revises the target, not the weight, so it has no curve over p"),
    ],
)
def test_a_weighting_that_cannot_be_is_refused_with_what_is_near(spec, message):
    with pytest.raises(InputError) as error:
        weighting(spec)
    assert message in str(error.value)


def test_the_dimension_that_a_loss_asks_for_is_that_of_the_embeddings():
    words = ["loss.name=triplet", "loss.mining=distance_weighted", "model.embedding_size=48"]
    assert read("glyphs", words).loss["dim"] == 48
    assert read("glyphs", [*words, "loss.dim=64"]).loss["dim"] == 64


def test_weights_of_examples_can_be_scaled_to_mean_one_in_each_batch():
    import torch

    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])

    def gradient(words):
        x = logits.double().requires_grad_()
        read("digits", words).build_loss()(x, labels).backward()
        return x.grad

    words = ["loss.name=dm", "loss.mode=0.5", "loss.beta=4"]
    p = logits.double().softmax(1)[torch.arange(6), labels]
    weights = torch.exp(4 * p * (1 - p))
    plain, scaled = gradient(words), gradient([*words, "loss.normalise=true"])
    assert torch.allclose(plain.abs().sum(1), weights / 6)
    assert torch.allclose(scaled.abs().sum(1), weights / weights.sum())  # sum_i w_i g_i / sum_k w_k
    with pytest.raises(InputError, match=r"unknown setting loss.normalise"):
        read("digits", ["loss.name=ranked_list", "loss.normalise=true"])


def test_an_argument_that_only_happens_to_be_called_normalise_reaches_its_loss():
    assert read("glyphs", ["loss.name=instance_cross_entropy", "loss.normalise=true"]).build_loss().normalise
    assert not read("glyphs", ["loss.name=instance_cross_entropy"]).build_loss().normalise


def test_another_schedule_or_optimiser_leaves_the_recipes_own_behind(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "data: {source: glyphs}\nloss: {name: cce}\n"
        "optimizer: {name: sgd, momentum: 0.5, schedule: steps, milestones: [3], decay: 0.5}\n"
    )
    own = str(tmp_path / "own.yaml")
    assert read(own, ["optimizer.schedule=cosine"]).optimizer.milestones == []
    assert read(own, ["optimizer.name=adamw"]).optimizer.momentum == 0.9
    assert read(own, ["optimizer.name=sgd"]).optimizer.momentum == 0.5
    with pytest.raises(InputError, match=r"optimizer.decay is of optimizer.schedule=steps.*set optimizer.decay=0.1"):
        read(own, ["optimizer.schedule=cosine", "optimizer.decay=0.2"])


def test_what_a_finished_run_was_set_to_is_read_whatever_is_refused_today():
    values = read("glyphs").model_dump()
    values["optimizer"]["momentum"] = 0.5
    assert resolve(values).optimizer.momentum == 0.5
