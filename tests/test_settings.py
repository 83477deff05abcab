"""Settings are typed and strict, and say what is wrong with them."""

from pathlib import Path

import pytest

from metricweight.checks import InputError
from metricweight.losses import RankedListLoss
from metricweight.recipes import recipes
from metricweight.settings import explain, read


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
        ("glyphs", ["ks=1"], r"setting ks: should be a list such as .1,2.; got '1'"),
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
        ("glyphs", ["model.backbone=vgg"], "setting model.backbone: should be 'small_cnn' or 'resnet18'; got 'vgg'"),
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
    assert {"loss.margin=0.4", "ks=[1,2,4,8]", "data.root=null"} <= set(words)
