"""Backbones and heads: shapes, levels, pooling, frozen parts, weights from files, rates."""

import hashlib
import inspect
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from metricweight.checks import InputError
from metricweight.models import backbones, weights
from metricweight.models.heads import Embedder, embedder, rates
from metricweight.models.pooling import GeM
from metricweight.settings import ModelSettings

CNNS = ["small_cnn", "resnet18", "resnet20", "resnet50", "googlenet", "convnext_tiny", "swin_t"]


def pictures(count=2, channels=3, size=32, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def plain_small_cnn(channels, size):
    """The small CNN as it is written down: convolution, batch norm, ReLU, four times; 4 x 4 fields; linear."""
    layers = []
    for before, width in zip((channels, 32, 64, 128), (32, 64, 128, 256), strict=True):
        if layers:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten()), nn.Linear(4096, size))


def test_the_default_network_draws_and_computes_the_numbers_of_its_plain_form():
    torch.manual_seed(3)
    plain = plain_small_cnn(1, 64)
    torch.manual_seed(3)
    model = embedder(1)
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    images = pictures(4, 1)
    outputs = [network(images) for network in (model, plain)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet18_draws_and_computes_the_numbers_of_torchvision(channels):
    from torchvision.models import resnet18

    torch.manual_seed(3)
    plain = resnet18()
    if channels == 1:
        plain.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    plain.fc = nn.Linear(512, 8)
    torch.manual_seed(3)
    model = embedder(channels, backbone="resnet18", embedding_size=8)
    assert torch.equal(model(pictures(2, channels)), plain(pictures(2, channels)))


@pytest.mark.parametrize("name", ["googlenet", "convnext_tiny", "swin_t", "vit_b_16"])
def test_features_are_what_torchvision_gives_to_its_classification_layer(name):
    from torchvision import models

    more = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(3)
    plain = models.get_model(name, **more).eval()
    last = [part for part in plain.modules() if isinstance(part, nn.Linear)][-1]
    seen = []
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(3)
    model = embedder(3, backbone=name, embedding_size=None).eval()
    images = pictures(size=224 if name == "vit_b_16" else 64)
    with torch.no_grad():
        plain(images)
        found = model(images)
        assert torch.equal(found, model.features(images))
    torch.testing.assert_close(found, seen[0], rtol=0, atol=1e-6)


SIZES = {  # F of low, middle, high with average pooling, from the papers' tables of layers
    "small_cnn": (64, 128, 256),
    "resnet18": (128, 256, 512),
    "resnet20": (16, 32, 64),
    "resnet50": (512, 1024, 2048),
    "googlenet": (512, 528, 1024),
    "convnext_tiny": (192, 384, 768),
    "swin_t": (192, 384, 768),
}


@pytest.mark.parametrize("name", CNNS)
def test_each_level_has_its_own_embedding_and_they_stand_low_to_high(name):
    model = embedder(3, backbone=name, levels=["high", "low", "middle"], pooling="avg", embedding_size=5).eval()
    assert [head.linear.in_features for head in model.heads] == list(SIZES[name])
    assert (model.levels, model.dim) == (3, 5)
    with torch.no_grad():
        found = model(pictures())
        assert found.shape == (2, 15)
        high = model.features(pictures())
        assert high.shape == (2, SIZES[name][2])
        assert torch.equal(found[:, 10:], model.heads[2].linear(high))


@pytest.mark.parametrize("name", CNNS)
def test_what_lies_above_the_highest_level_is_taken_off_and_changes_nothing_below(name):
    torch.manual_seed(0)
    whole = embedder(3, backbone=name, levels=["low", "middle", "high"], pooling="avg").eval()
    torch.manual_seed(0)
    low = embedder(3, backbone=name, levels=["low"], pooling="avg", embedding_size=None).eval()
    assert len(low.backbone.state_dict()) < len(whole.backbone.state_dict())
    with torch.no_grad():
        maps = low._read(low.backbone, pictures(), [lambda maps: maps.sum((2, 3))])[0]
        assert maps.shape == (2, SIZES[name][0])
        both = [net._read(net.backbone, pictures(), [None] * net.levels)[0] for net in (low, whole)]
    assert torch.equal(*both)
    loss = low.train()(pictures()).square().sum()
    loss.backward()
    assert all(p.grad is not None for p in low.parameters())  # so nothing is left that is not used


def test_levels_of_the_papers_lie_where_the_maps_have_the_strides_8_16_32():
    for name in ("resnet18", "convnext_tiny", "swin_t"):
        model = embedder(3, backbone=name, levels=["low", "middle", "high"]).eval()
        areas = [lambda maps: torch.full((len(maps), 1), float(maps.shape[2]))] * 3
        if name == "convnext_tiny":  # whose high maps are normalised after pooling
            areas[2] = lambda maps: maps.mean((2, 3))
        found = model._read(model.backbone, pictures(size=64), areas)
        assert [x[0, 0].item() for x in found[:2]] == [8, 4]
        assert name == "convnext_tiny" or found[2][0, 0] == 2


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", ["layer2", "layer3", "layer4"]),
        ("googlenet", ["inception4a", "inception4d", "inception5b"]),  # where its three classifiers sit
        ("convnext_tiny", ["features.3", "features.5", "features.7"]),
    ],
)
def test_levels_are_the_outputs_of_these_parts(name, parts):
    model = embedder(3, backbone=name, levels=["low", "middle", "high"]).eval()
    seen = []
    for part in parts:
        model.backbone.get_submodule(part).register_forward_hook(lambda *given: seen.append(given[2].mean((2, 3))))
    found = model._read(model.backbone, pictures(size=64), [lambda maps: maps.mean((2, 3))] * 3)
    if name == "convnext_tiny":
        seen[2] = functional.layer_norm(seen[2], (768,), eps=1e-6)
    torch.testing.assert_close(found, seen)


@pytest.mark.parametrize(
    ("name", "blocks", "millions"), [("resnet20", 3, 0.27), ("resnet44", 7, 0.66), ("resnet56", 9, 0.85)]
)
def test_the_small_residual_networks_have_as_many_parameters_as_their_paper_says(name, blocks, millions):
    """He et al., CVPR 2016, table 6, for ten classes: 6 n + 2 layers, 2 n at each width, and no others."""
    model = embedder(3, backbone=name, embedding_size=10)
    expected = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10  # the first layer with its normalisation, the last one
    for before, width in ((16, 16), (16, 32), (32, 64)):
        expected += 9 * before * width + (2 * blocks - 1) * 9 * width * width + 2 * blocks * 2 * width
    assert sum(p.numel() for p in model.parameters()) == expected
    assert round(expected / 1e6, 2) == millions
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 6 * blocks + 2 == int(name.removeprefix("resnet"))


def test_the_small_residual_network_is_its_plain_form():
    """Written out with plain functions; the way past takes every second pixel and adds maps of zeros (option A)."""
    torch.manual_seed(0)
    model = embedder(3, backbone="resnet20", embedding_size=None).eval()
    state = model.backbone.state_dict()
    images = pictures()

    def convolved(x, name, stride=1):  # and normalised by the statistics of a new network, 0 and 1
        return functional.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1) / (1 + 1e-5) ** 0.5

    x = functional.relu(convolved(images, "conv1"))
    sides = []
    for stage in (1, 2, 3):
        for block in range(3):
            halves = stage > 1 and block == 0
            name = f"layer{stage}.{block}"
            past = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1) if halves else x
            y = functional.relu(convolved(x, f"{name}.conv1", 2 if halves else 1))
            x = functional.relu(convolved(y, f"{name}.conv2") + past)
        sides.append(x.shape[1:])
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    with torch.no_grad():
        torch.testing.assert_close(model(images), x.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_the_small_residual_network_starts_from_normal_numbers_of_variance_2_by_what_a_unit_sees():
    torch.manual_seed(0)
    network = embedder(3, backbone="resnet20").backbone
    for part, seen in [("layer1.1.conv1", 16 * 9), ("layer3.0.conv1", 32 * 9), ("layer3.2.conv2", 64 * 9)]:
        weight = network.get_submodule(part).weight.flatten()
        assert weight.var().item() == pytest.approx(2 / seen, rel=0.1)
        assert ((weight / weight.std()) ** 4).mean().item() == pytest.approx(3, rel=0.15)  # 1.8 for uniform ones


def test_last_stride_1_doubles_the_last_map_and_keeps_the_weights():
    for name in ("resnet18", "resnet50"):
        areas = []
        for stride in (2, 1):
            torch.manual_seed(0)
            model = embedder(3, backbone=name, last_stride=stride)
            side = model._read(model.backbone, pictures(size=64), [lambda maps: maps[:, :1, :, 0].sum((1,)) * 0 + 1])
            areas.append(side[0].shape[1])
        assert areas == [2, 4]
    with pytest.raises(InputError, match="last_stride=1 is for level high of resnet18 to resnet101"):
        embedder(3, last_stride=1)
    with pytest.raises(InputError, match="last_stride"):
        embedder(3, backbone="resnet18", levels=["low"], last_stride=1)
    with pytest.raises(InputError, match="last_stride"):
        embedder(3, backbone="resnet20", last_stride=1)


def test_gem_is_its_formula_and_its_gradient_is_that_of_the_formula():
    maps = pictures(2, 3, 4).double().requires_grad_()
    pool = GeM(2.5).double()
    naive = maps.detach().clone().requires_grad_()
    p = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    expected = torch.stack(
        [
            torch.stack([(sum(torch.clamp(x, min=1e-6) ** p for x in m.flatten()) / 16) ** (1 / p) for m in picture])
            for picture in naive
        ]
    )
    found = pool(maps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (found * torch.arange(6.0).view(2, 3)).sum().backward()
    (expected * torch.arange(6.0).view(2, 3)).sum().backward()
    torch.testing.assert_close(maps.grad, naive.grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(pool.p.grad, p.grad, rtol=1e-10, atol=0)


def test_gem_lies_between_mean_and_maximum_and_starts_at_3():
    maps = pictures().abs() + 0.1
    assert GeM().p.item() == 3
    torch.testing.assert_close(GeM(1.0)(maps), maps.mean((2, 3)))
    assert torch.all(GeM()(maps) > maps.mean((2, 3)))
    assert torch.all(GeM()(maps) < maps.amax((2, 3)))
    torch.testing.assert_close(GeM(200.0).double()(maps.double()), maps.double().amax((2, 3)), rtol=0.05, atol=0)


def test_gem_of_half_precision_is_computed_in_float32():
    maps = torch.full((1, 1, 8, 8), 60.0, dtype=torch.float16)  # its cube does not fit into float16
    assert GeM().half()(maps).dtype == torch.float16
    assert GeM()(maps).item() == pytest.approx(60, rel=1e-3)


@pytest.mark.parametrize(
    ("pooling", "formula"),
    [
        ("avg", lambda m: m.mean((2, 3))),
        ("max", lambda m: m.flatten(2).max(2).values),
        ("avg+max", lambda m: m.mean((2, 3)) + m.flatten(2).max(2).values),
        ("gem", lambda m: (m.clamp(min=1e-6) ** 3).mean((2, 3)) ** (1 / 3)),
    ],
)
def test_poolings_of_the_last_map(pooling, formula):
    model = embedder(1, pooling=pooling, embedding_size=None).eval()
    images = pictures(channels=1)
    with torch.no_grad():
        maps = model.backbone(images)  # the small CNN is nn.Sequential
        torch.testing.assert_close(model(images), formula(maps))


def test_layer_norm_makes_features_of_zero_mean_and_unit_variance_and_learns_nothing():
    model = embedder(1, layer_norm=True, embedding_size=None)
    found = model(pictures(4, 1))
    torch.testing.assert_close(found.mean(1), torch.zeros(4), rtol=0, atol=1e-6)
    x = model.features(pictures(4, 1))
    torch.testing.assert_close(found, (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    assert not list(model.heads.parameters())
    linear = embedder(1, layer_norm=True)
    x = linear.features(pictures(4, 1))
    expected = linear.heads[0].linear(functional.layer_norm(x, (4096,)))
    assert torch.equal(linear(pictures(4, 1)), expected)


def test_embeddings_without_a_size_are_the_features_and_levels_must_then_be_of_one_size():
    model = embedder(1, embedding_size=None)
    assert (model.dim, len(list(model.heads.parameters()))) == (4096, 0)
    with pytest.raises(InputError, match="the levels of resnet18 have 128, 256 features"):
        embedder(3, backbone="resnet18", levels=["low", "middle"], embedding_size=None)


def test_frozen_parts_do_not_move_and_neither_do_their_statistics():
    model = embedder(3, backbone="resnet18", frozen=["conv1", "bn1", "layer1", "layer4.1.bn2"], embedding_size=4)
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    model(pictures(4)).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    still = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.", "backbone.layer4.1.bn2.")
    assert moved == {key for key in before if not key.startswith(still)}
    assert model.backbone.conv1.weight.grad is None


def test_parts_that_are_frozen_before_anything_learned_build_no_graph():
    model = embedder(3, backbone="resnet18", frozen=["backbone"], embedding_size=4).train()
    assert not model.features(pictures()).requires_grad
    assert model(pictures()).requires_grad
    assert not any(part.training for part in model.backbone.modules())
    assert model.heads.training


def test_a_frozen_parameter_needs_no_module():
    model = embedder(3, backbone="vit_b_16", frozen=["class_token", "conv_proj"])
    still = [name for name, p in model.backbone.named_parameters() if not p.requires_grad]
    assert still == ["class_token", "conv_proj.weight", "conv_proj.bias"]


def test_frozen_batch_norm_keeps_statistics_scale_and_offset_and_computes_with_them():
    model = embedder(1, frozen_batch_norm=True, embedding_size=4)
    images = pictures(4, 1)
    found = model.train()(images)
    with torch.no_grad():
        assert torch.equal(found, model.eval()(images))
    assert not model.train().backbone.block1[1].training
    before = deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key, value in before.items() if value.ndim in (2, 4) or key.startswith("heads")}
    with pytest.raises(InputError, match="convnext_tiny has no batch normalisation"):
        embedder(3, backbone="convnext_tiny", frozen_batch_norm=True)


def test_a_frozen_network_stays_so_when_its_batch_norm_is_made_synchronous():
    model = embedder(1, frozen=["block1"], embedding_size=4)
    synchronous = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    synchronous.train()
    assert isinstance(synchronous.backbone.block1[1], nn.SyncBatchNorm)
    assert not synchronous.backbone.block1[1].training
    assert synchronous.backbone.block2[2].training
    assert not synchronous.backbone.block1[1].weight.requires_grad


def saved(tmp_path, state, name="weights.pt"):
    path = tmp_path / name
    torch.save(state, path)
    return path


def test_a_file_of_torchvision_weights_is_read_its_classification_layer_ignored_and_its_checksum_kept(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(7)
    plain = resnet18()
    path = saved(tmp_path, plain.state_dict())
    model = embedder(3, backbone="resnet18", weights=path, levels=["low", "middle"])
    assert torch.equal(model.backbone.layer3[1].conv2.weight, plain.layer3[1].conv2.weight)
    assert model.origin == {"weights": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert embedder(3, backbone="resnet18").origin == {}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.backbone.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        lambda state: {**state, "fc.weight": torch.zeros(3, 256), "aux1.fc1.weight": torch.zeros(1)},
    ],
)
def test_names_in_a_file_may_stand_behind_a_prefix(tmp_path, wrap):
    other = embedder(1)
    model = embedder(1, weights=saved(tmp_path, wrap(other.backbone.state_dict())))
    assert torch.equal(model.backbone.block3[1].weight, other.backbone.block3[1].weight)


def test_the_network_of_an_embedder_is_a_file_of_weights_for_another(tmp_path):
    other = embedder(1, embedding_size=7)
    model = embedder(1, weights=saved(tmp_path, {"model": other.state_dict(), "step": 3}))
    assert torch.equal(model.backbone.block4[1].weight, other.backbone.block4[1].weight)


def test_a_file_that_does_not_fit_is_refused_with_the_names(tmp_path):
    state = embedder(3).backbone.state_dict()
    without = {key: value for key, value in state.items() if not key.startswith("block4.1")}
    with pytest.raises(InputError, match=r"does not fit small_cnn: 1 missing \(block4.1.weight\)\."):
        embedder(3, weights=saved(tmp_path, without))
    with pytest.raises(InputError, match=r"1 unexpected \(block9.weight\)\."):
        embedder(3, weights=saved(tmp_path, {**state, "block9.weight": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"1 of another shape \(block1.0.weight \[32, 3, 3, 3\] for \[32, 1, 3, 3\]\)"):
        embedder(1, weights=saved(tmp_path, state))
    with pytest.raises(InputError, match=r"fits nothing in resnet18: it has block1.0.weight, .* network has conv1"):
        embedder(3, backbone="resnet18", weights=saved(tmp_path, state))


class Notes:
    """What could run code when it is read."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Notes(), "holds more than tensors"),
        ({"epoch": 3}, "not a state dict; these are not tensors: epoch"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        embedder(3, weights=saved(tmp_path, content))


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.pt cannot be read: No such file"):
        embedder(3, weights=tmp_path / "none.pt")
    for name in ("damaged.pt", "damaged.safetensors"):
        path = tmp_path / name
        path.write_bytes(b"not weights" * 9)
        if name.endswith("safetensors"):
            pytest.importorskip("safetensors")
        with pytest.raises(InputError, match="is damaged or not a file of weights"):
            embedder(3, weights=path)


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    other = embedder(1)
    safetensors.save_file(other.backbone.state_dict(), tmp_path / "weights.safetensors")
    model = embedder(1, weights=tmp_path / "weights.safetensors")
    assert torch.equal(model.backbone.block1[0].weight, other.backbone.block1[0].weight)


def test_pretrained_weights_come_from_where_torchvision_keeps_them_with_the_checksum_of_the_file(tmp_path, monkeypatch):
    from torchvision.models import googlenet

    plain = googlenet(aux_logits=True, init_weights=False)
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "googlenet-1378be20.pth"
    torch.save(plain.state_dict(), path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    model = embedder(3, backbone="googlenet", pretrained=True)
    assert torch.equal(model.backbone.conv1.conv.weight, plain.conv1.conv.weight)
    assert model.origin["weights"] == "torchvision GoogLeNet_Weights.IMAGENET1K_V1"
    assert model.origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pretrained_weights_that_cannot_be_fetched_say_what_to_do(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"weights of resnet18 could not be fetched \(no network\); go online once"):
        embedder(3, backbone="resnet18", pretrained=True)
    with pytest.raises(InputError, match="no pretrained weights of small_cnn; set model"):
        embedder(1, pretrained=True)
    with pytest.raises(InputError, match="no pretrained weights of resnet44"):
        embedder(3, backbone="resnet44", pretrained=True)
    with pytest.raises(InputError, match="are for colour pictures"):
        embedder(1, backbone="resnet18", pretrained=True)
    with pytest.raises(InputError, match="both given"):
        embedder(3, backbone="resnet18", pretrained=True, weights=tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "resnet-50"}, "'resnet-50' is not a backbone; did you mean resnet50"),
        ({"pooling": "gems"}, "'gems' is not a pooling; did you mean gem"),
        ({"levels": ["hig"]}, "'hig' is not a level; did you mean high"),
        ({"levels": ["high", "high"]}, "give each level once"),
        ({"levels": []}, "give each level once"),
        ({"frozen": ["blok1"]}, "small_cnn has no part 'blok1'; did you mean block1"),
        ({"backbone": "vit_b_16", "levels": ["low", "high"]}, "vit_b_16 has level high only, got low,high"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest(wrong, message):
    with pytest.raises(InputError, match=message):
        embedder(3, **wrong)


def test_pictures_of_a_size_that_a_network_cannot_take_are_refused():
    for name, size, message in [
        ("vit_b_16", 64, "takes pictures of 224 x 224 only, got 64 x 64; set data.size=224"),
        ("convnext_tiny", 16, "needs pictures of 32 x 32 or more, got 16 x 16"),
        ("small_cnn", 7, "needs pictures of 8 x 8 or more, got 7 x 7"),
    ]:
        with pytest.raises(InputError, match=message):
            embedder(3, backbone=name)(pictures(size=size))


@pytest.mark.parametrize("name", CNNS)
def test_the_smallest_pictures_are_small_enough(name):
    smallest = backbones.BACKBONES[name].smallest
    assert embedder(3, backbone=name, embedding_size=4).eval()(pictures(size=smallest)).shape == (2, 4)


@pytest.mark.parametrize("name", [*CNNS, "vit_b_16"])
def test_grey_pictures_and_bfloat16_work_with_every_kind_of_network(name):
    model = embedder(1, backbone=name, embedding_size=4, pooling="gem", layer_norm=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(pictures(2, 1, 224 if name == "vit_b_16" else 32))
    found.float().square().sum().backward()
    assert found.shape == (2, 4)
    assert torch.isfinite(model.heads[0].pool.p.grad)


def test_pooling_of_a_vision_transformer_is_of_its_patches_without_the_class_token():
    torch.manual_seed(0)
    model = embedder(3, backbone="vit_b_16", pooling="avg", embedding_size=None).eval()
    tokens = []
    model.backbone.encoder.register_forward_hook(lambda *given: tokens.append(given[2]))
    with torch.no_grad():
        found = model(pictures(1, 3, 224))
    torch.testing.assert_close(found, tokens[0][:, 1:].mean(1))


def test_an_embedder_can_be_copied_and_pickled_and_compiles_without_a_break():
    model = embedder(3, backbone="resnet18", levels=["low", "high"], pooling="gem", frozen=["conv1"]).eval()
    with torch.no_grad():
        expected = model(pictures())
        for other in (deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(pictures()), expected)
            assert not other.train().backbone.conv1.training
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pictures()), expected)


def test_the_settings_of_a_model_are_the_arguments_of_an_embedder():
    assert isinstance(embedder(1, **ModelSettings().model_dump()), Embedder)
    arguments = {name: p.default for name, p in inspect.signature(embedder).parameters.items() if name != "channels"}
    assert {**arguments, "levels": [*arguments["levels"]], "frozen": []} == ModelSettings().model_dump()


def test_without_factors_all_that_is_learned_is_one_group_in_order():
    parts = {"backbone": nn.Linear(2, 3), "head": nn.Linear(3, 4), "classifier": nn.Linear(4, 5)}
    (group,) = rates(parts, {})
    assert (group["factor"], group["name"]) == (1.0, "default")
    assert [id(p) for p in group["params"]] == [id(p) for part in parts.values() for p in part.parameters()]


def test_of_several_factors_the_one_of_the_longest_name_counts():
    model = embedder(3, backbone="resnet18", frozen=["conv1"])
    parts = {"backbone": model.backbone, "head": model.heads}
    factors = {"backbone": 0.1, "layer4": 0.5, "layer4.1.conv2": 2.0, "layer1": 0.0, "head": 10.0}
    names = {id(p): name for name, p in model.named_parameters()}
    found = {group["name"]: group for group in rates(parts, factors)}
    assert {key: group["factor"] for key, group in found.items()} == {k: f for k, f in factors.items() if f}
    in_group = {key: [names[id(p)].removeprefix("backbone.") for p in group["params"]] for key, group in found.items()}
    assert in_group["layer4.1.conv2"] == ["layer4.1.conv2.weight"]
    assert len(in_group["layer4"]) == 14  # five convolutions, one of them on the way past, less one; five norms of two
    assert in_group["head"] == ["heads.0.linear.weight", "heads.0.linear.bias"]
    assert not any(name.startswith(("conv1", "layer1", "layer4")) for name in in_group["backbone"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("hed", "nothing is called 'hed'; did you mean head"),
        ("block", "nothing is called 'block'; did you mean block"),
        ("classifier", "nothing is called 'classifier'.*Known: backbone, head, and the parts"),
        ("block1", "'block1' has nothing that is learned"),
    ],
)
def test_a_factor_that_fits_nothing_is_refused(key, message):
    model = embedder(3, frozen=["block1"])
    with pytest.raises(InputError, match=message):
        rates({"backbone": model.backbone, "head": model.heads}, {key: 0.1})


def test_the_list_of_backbones_names_each_with_its_sizes():
    lines = backbones.listing().splitlines()
    assert [line.split()[0] for line in lines] == ["name", *backbones.BACKBONES, "timm:NAME"]
    assert "512/1024/2048" in next(line for line in lines if line.startswith("resnet50"))
    assert all(len(line) <= 120 for line in lines)


def test_every_torchvision_name_has_the_weights_that_its_row_says():
    from torchvision import models

    for row in backbones.BACKBONES.values():
        if row.pretrained:
            assert row.pretrained in models.get_model_weights(row.name).__members__


def test_timm_that_is_not_installed_is_asked_for_by_its_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'metricweight\[timm\]'"):
        embedder(3, backbone="timm:resnet18")


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_mambaout", "mobilenetv3_small_050"])
@pytest.mark.parametrize("pooling", [None, "avg", "gem"])
def test_networks_of_timm_give_what_timm_pools(name, pooling):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0).eval()
    torch.manual_seed(0)
    model = embedder(3, backbone=f"timm:{name}", embedding_size=None, pooling=pooling).eval()
    with torch.no_grad():
        images = pictures(2, 3, 160)
        found = model(images)
        if pooling is None:
            assert torch.equal(found, plain(images))
        if pooling == "avg":
            last = plain.forward_features(images)
            last = last[:, 1:] if name == "test_vit" else last.movedim(1, 3) if name != "test_mambaout" else last
            torch.testing.assert_close(found, last.flatten(1, -2).mean(1), rtol=1e-5, atol=1e-6)
    assert found.shape == (2, model.dim)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_levels_of_timm_are_its_last_stages(name):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = embedder(
        1, backbone=f"timm:{name}", levels=["low", "middle", "high"], pooling="max", embedding_size=4
    ).eval()
    torch.manual_seed(0)
    low = embedder(1, backbone=f"timm:{name}", levels=["low"], pooling="max", embedding_size=4).eval()
    torch.manual_seed(0)
    high = embedder(1, backbone=f"timm:{name}", pooling="max", embedding_size=4).eval()
    with torch.no_grad():
        images = pictures(2, 1, 64)
        assert whole(images).shape == (2, 12)
        sides = [lambda maps: maps.new_tensor([[maps.shape[2]]])] * 2
        assert [
            x.item() for x in whole._read(whole.backbone, images, [*sides, lambda maps: maps.amax((2, 3))])[:2]
        ] == [8, 4]
        assert torch.equal(whole.features(images), high.features(images))
        assert low(images).shape == (2, 4)
    assert sum(p.numel() for p in low.parameters()) < sum(p.numel() for p in whole.parameters())


def test_what_timm_does_not_have_is_refused(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    for wrong, message in [
        ({"backbone": "timm:resnet5"}, "timm has no model 'resnet5'; did you mean resnet5"),
        ({"backbone": "timm:resnet18.a1_in1"}, "timm has no weights 'resnet18.a1_in1'; did you mean resnet18.a1_in1k"),
        ({"backbone": "timm:test_vit", "levels": ["low", "high"]}, "timm:test_vit has level high only"),
        ({"backbone": "timm:test_resnet", "last_stride": 1}, "last_stride"),
        ({"backbone": "timm:test_resnet", "frozen": ["layer9"]}, "no part 'layer9'; did you mean layer"),
        ({"backbone": "timm:test_resnet", "weights": saved(tmp_path, {"x": torch.zeros(1)})}, "fits nothing"),
    ]:
        with pytest.raises(InputError, match=message):
            embedder(3, **wrong)
    with pytest.raises(InputError, match="timm:test_vit cannot take pictures of 33 x 33"):
        embedder(3, backbone="timm:test_vit")(pictures(size=33))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="weights of timm:resnet18 could not be fetched"):
        embedder(3, backbone="timm:resnet18", pretrained=True)


def test_a_transformer_of_timm_takes_other_sizes_of_pictures_than_it_was_made_for():
    pytest.importorskip("timm")
    model = embedder(3, backbone="timm:vit_tiny_patch16_224", embedding_size=4)
    assert model(pictures(size=96)).shape == (2, 4)


def test_weights_of_timm_are_read_from_a_file_and_the_class_layer_is_ignored(tmp_path):
    timm = pytest.importorskip("timm")
    plain = timm.create_model("test_vit")
    path = saved(tmp_path, plain.state_dict())
    model = embedder(3, backbone="timm:test_vit", weights=path)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight)
    assert weights.checksum(model.backbone) != weights.checksum(embedder(3, backbone="timm:test_vit").backbone)


def test_weights_that_timm_fetched_are_named_with_the_checksum_of_their_tensors(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: create(name, **rest))
    model = embedder(3, backbone="timm:test_vit", pretrained=True)
    assert model.origin == {"weights": "timm timm/test_vit.r160_in1k", "sha256": weights.checksum(model.backbone)}
    with pytest.raises(InputError, match="timm has no weights for 'botnet50ts_256'"):
        embedder(3, backbone="timm:botnet50ts_256", pretrained=True)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("resnet50", "imagenet"), ("googlenet", "half"), ("timm:vit_small_patch16_224.dino", "imagenet"),
        ("timm:vit_base_patch16_clip_224.openai", "clip"), ("timm:vit_base_patch16_siglip_224.webli", "half"),
    ],
)  # fmt: skip
def test_pretrained_weights_are_known_to_expect_their_colours(name, pixels):
    pytest.importorskip("timm")
    assert backbones.expected_pixels(name) == pixels
