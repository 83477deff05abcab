"""One step: the gradient is that of the written sum, whatever the chunks, batches and precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metricweight.checks import InputError
from metricweight.data.images import Held, Images
from metricweight.data.loader import Batch
from metricweight.losses import LOSSES
from metricweight.settings import read
from metricweight.training import engine, watch
from metricweight.training.distributed import Processes, joined
from metricweight.training.engine import gradients, prepared, update

WORDS = [
    "batch.classes=4", "batch.images=3", "model.embedding_size=5", "validations=0", "steps=8",
    "model.frozen_batch_norm=true", "optimizer.name=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0",
    "optimizer.warmup=0", "optimizer.schedule=constant", "optimizer.learning_rate=0.1",
]  # fmt: skip


def training(*words):
    return prepared(read("digits", [*WORDS, *words]), Processes())


def batch(t, number=0, size=12):
    indices = t.splits["train"][t.sampler.batch(number)][:size]
    return Batch(t.images.picture.pixels[indices].float() / 255 - 0.5, indices)


def grads(t):
    parameters = [*t.model.parameters(), *t.objective.parameters()]
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters]


def close(a, b, most=1e-5):
    """Whether two gradients differ by no more than this share of their length."""
    one, other = (torch.cat([g.flatten().double() for g in found]) for found in (a, b))
    return float((one - other).norm()) <= most * float(other.norm())


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_in_chunks_has_the_gradient_of_the_whole_batch_by_every_loss(name):
    found = []
    for chunk in ("null", "5", "1"):
        t = training(f"loss.name={name}", f"batch.chunk={chunk}")
        done = gradients(t, [batch(t)])
        found.append((float(done.loss), grads(t)))
    assert any(bool(g.abs().max() > 1e-5) for g in found[0][1])
    for loss, chunked in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert close(chunked, found[0][1])


def test_the_gradient_is_that_of_the_loss_as_autograd_has_it():
    t = training("plus=[{name: imae, weight: 0.3}]")
    one = batch(t)
    gradients(t, [one])
    found = grads(t)
    t.optimizer.zero_grad()
    labels = torch.from_numpy(t.images.labels[one.indices])
    t.objective(t.model(one.images), labels, 0).loss.backward()
    assert close(found, grads(t), 1e-6)


def test_batches_that_are_accumulated_are_averaged():
    t = training("batch.accumulate=2")
    singles = []
    for number in (0, 1):
        gradients(t, [batch(t, number)])
        singles.append(grads(t))
    done = gradients(t, [batch(t, 0), batch(t, 1)])
    assert close(grads(t), [(a + b) / 2 for a, b in zip(*singles, strict=True)], 1e-6)
    alone = training()
    assert torch.allclose(done.gradient, gradients(alone, [batch(alone, 1)]).gradient)  # as reported: undivided


class Dropping(nn.Module):
    """A network that draws random numbers, and keeps those it drew."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 5)
        self.drawn = []

    def forward(self, images):
        mask = torch.rand(len(images), 256)
        self.drawn.append(mask)
        return self.linear(images.flatten(1) * mask)


def test_a_chunk_draws_the_same_random_numbers_both_times_and_other_chunks_others():
    t = training("batch.chunk=6")
    model = Dropping()
    t.model = t.network = model
    gradients(t, [batch(t)])
    first, second, again, more = model.drawn
    assert torch.equal(first, again)
    assert torch.equal(second, more)
    assert not torch.equal(first, second)
    t.step += 1
    gradients(t, [batch(t)])
    assert not torch.equal(model.drawn[4], first)  # another step, others


def test_running_statistics_count_each_chunk_once():
    t = training("batch.chunk=6", "model.frozen_batch_norm=false")
    layer = next(m for m in t.model.modules() if isinstance(m, nn.BatchNorm2d))
    convolution = next(m for m in t.model.modules() if isinstance(m, nn.Conv2d))
    one = batch(t)
    with torch.no_grad():
        maps = [convolution(chunk).mean(dim=(0, 2, 3)) for chunk in one.images.split(6)]
    gradients(t, [one])
    expected = 0.9 * (0.1 * maps[0]) + 0.1 * maps[1]
    assert torch.allclose(layer.running_mean, expected, atol=1e-6)
    assert int(layer.num_batches_tracked) == 2
    assert layer.momentum == 0.1


def test_a_step_of_sgd_is_the_rate_times_the_gradient_with_factors_of_parts():
    t = training("optimizer.factors={head: 10}", "loss.name=cce")
    before = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    gradients(t, [batch(t)])
    update(t)
    assert t.step == 1
    for name, p in t.model.named_parameters():
        if p.grad is not None:
            factor = 10 if name.startswith("heads") else 1
            assert torch.allclose(before[name] - p, 0.1 * factor * p.grad, atol=1e-7), name


def test_gradients_are_clipped_all_together():
    t = training("optimizer.clip=0.01", "loss.name=cce")
    gradients(t, [batch(t)])
    before = [p.detach().clone() for p in t.model.parameters()]
    head = t.objective.parts()["classifier"]
    more = [p.detach().clone() for p in head.parameters()]
    update(t)
    moved = zip([*t.model.parameters(), *head.parameters()], [*before, *more], strict=True)
    norm = math.sqrt(sum(float((p.detach() - b).square().sum()) for p, b in moved))
    assert norm == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_the_average_of_weights_moves_by_its_decay():
    t = training("ema=0.75")
    first = [p.detach().clone() for p in t.model.parameters()]
    gradients(t, [batch(t)])
    update(t)  # the average starts as the network after its first step
    after = [p.detach().clone() for p in t.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(t.tested.parameters(), after, strict=True))
    gradients(t, [batch(t, 1)])
    update(t)
    for average, was, now in zip(t.tested.parameters(), after, t.model.parameters(), strict=True):
        assert torch.allclose(average, 0.75 * was + 0.25 * now, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(first, after, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_about_the_gradient_of_full_precision(precision):
    full, half = training("loss.name=cce"), training("loss.name=cce", f"precision={precision}")
    gradients(full, [batch(full)])
    done = gradients(half, [batch(half)])
    assert done.loss.dtype == torch.float32
    scale = half.scaler.get_scale()
    assert (scale > 1) == (precision == "fp16")
    a, b = (torch.cat([g.flatten() for g in grads(t)]) for t in (full, half))
    assert torch.cosine_similarity(a, b / scale, dim=0) > 0.999
    assert float((b / scale).norm()) == pytest.approx(float(a.norm()), rel=0.02)
    before = [p.detach().clone() for p in half.model.parameters()]
    update(half)
    moved = [float((p.detach() - b).abs().max()) for p, b in zip(half.model.parameters(), before, strict=True)]
    assert 0 < max(moved) < 1


def test_channels_last_changes_the_layout_and_not_the_gradient():
    plain, last = training(), training("channels_last=true")
    for t in (plain, last):
        gradients(t, [batch(t)])
    assert close(grads(plain), grads(last))


@pytest.mark.parametrize("chunk", ["null", "6"])
def test_a_compiled_network_has_the_same_gradient(chunk, monkeypatch):
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: own(network, backend="aot_eager"))
    plain, compiled = training(f"batch.chunk={chunk}"), training(f"batch.chunk={chunk}", "compile=true")
    for t in (plain, compiled):
        gradients(t, [batch(t)])
    assert close(grads(plain), grads(compiled))


def test_running_out_of_memory_says_what_to_lower(monkeypatch):
    t = training()

    def out_of_memory(images):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    t.network = out_of_memory
    with pytest.raises(InputError, match=r"out of memory at step 1 .*batch.chunk=6 needs less.*precision=bf16"):
        gradients(t, [batch(t)])


def spoiled(t, value):
    one = batch(t)
    return replace(one, images=torch.full_like(one.images, value))


def test_a_loss_that_is_not_finite_is_refused_before_the_step_with_the_pictures(tmp_path):
    t = training("loss.name=cce")
    before = [p.detach().clone() for p in t.model.parameters()]
    done = gradients(t, [spoiled(t, math.nan)])
    with pytest.raises(InputError, match=r"the loss is nan at step 1: .*lower optimizer.learning_rate.*stopped.json"):
        watch.Watch(t, tmp_path).look(done, False)
    assert all(torch.equal(p, b) for p, b in zip(t.model.parameters(), before, strict=True))
    text = (tmp_path / "stopped.json").read_text()
    assert '"step": 1' in text
    assert all(t.images.names[i] in text for i in batch(t).indices)


def test_a_batch_whose_embeddings_are_one_point_stops_the_training(tmp_path):
    t = training()
    for p in t.model.backbone.parameters():
        p.data.zero_()
    nn.init.ones_(t.model.heads[0].linear.bias)
    done = gradients(t, [batch(t)])
    with pytest.raises(InputError, match=r"the embeddings have collapsed.*at step 1"):
        watch.Watch(t, tmp_path).look(done, True)
    assert watch.Watch(t, tmp_path).look(done, False) == {}


def test_one_picture_alone_has_not_collapsed(tmp_path):
    t = training("batch.classes=1", "batch.images=1", "loss.name=cce")
    assert watch.Watch(t, tmp_path).look(gradients(t, [batch(t, size=1)]), True)["spread"] == pytest.approx(0, abs=1e-3)


@pytest.mark.cuda
def test_on_a_gpu_a_loss_that_is_not_finite_is_seen_one_step_later(tmp_path):
    t = prepared(read("digits", [*WORDS, "loss.name=cce", "device=cuda"]), Processes(device="cuda"))
    looks = watch.Watch(t, tmp_path)
    assert looks.look(gradients(t, [spoiled(t, math.nan)]), False) == {}
    update(t)
    with pytest.raises(InputError, match="the loss is nan at step 1"):
        looks.look(gradients(t, [batch(t)]), False)


def test_nothing_to_learn_is_refused():
    with pytest.raises(InputError, match="nothing is left to learn"):
        training("model.frozen=[backbone]", "optimizer.factors={head: 0}")


def test_labels_above_what_float32_holds_are_told_apart():
    t = training("loss.name=contrastive")
    pixels = torch.arange(6).float().view(6, 1, 1, 1).expand(6, 1, 16, 16)
    big = np.array([2**24, 2**24 + 1] * 3, dtype=np.int64)
    images = Images(Held(pixels.to(torch.uint8)), big, ["a"] * 6, list("abcdef"), 1, "stamp")
    t = replace(t, images=images, labels=torch.from_numpy(big))
    done = gradients(t, [Batch(torch.randn(6, 1, 16, 16), np.arange(6))])
    assert done.labels.tolist() == big.tolist()
    assert engine.Done._fields == ("loss", "judged", "embeddings", "gradient", "indices", "labels")


@pytest.mark.parametrize(("backbone", "pixels"), [("googlenet", "half"), ("resnet18", "imagenet")])
def test_colours_are_as_the_weights_expect_them_unless_the_settings_say_otherwise(backbone, pixels, tmp_path):
    from PIL import Image

    from metricweight.models.heads import embedder

    for label in range(8):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32), (label, number, 0)).save(tmp_path / "photos" / str(label) / f"{number}.png")
    fields = {"backbone": backbone, "embedding_size": 8}
    given = read("folder", [f"data.root={tmp_path / 'photos'}", *(f"model.{k}={v}" for k, v in fields.items())])
    assert prepared(given, Processes()).settings.data.pixels is None  # random weights expect nothing
    model = embedder(3, **given.model.model_dump())
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pt")
    words = [
        f"data.root={tmp_path / 'photos'}",
        f"model.backbone={backbone}",
        f"model.weights={tmp_path / 'weights.pt'}",
    ]
    assert prepared(read("folder", words), Processes()).settings.data.pixels == pixels
    assert prepared(read("folder", [*words, "data.pixels=caffe"]), Processes()).settings.data.pixels == "caffe"


def test_every_batch_of_a_step_is_watched(tmp_path):
    t = training("batch.accumulate=2", "loss.name=cce")
    first, second = spoiled(t, math.nan), batch(t, 1)
    done = gradients(t, [first, second])
    assert done.indices.tolist() == [*first.indices.tolist(), *second.indices.tolist()]
    with pytest.raises(InputError, match="the loss is nan at step 1"):
        watch.Watch(t, tmp_path).look(done, False)


def test_the_average_is_of_the_classifier_too():
    t = training("ema=0.5", "loss.name=cce")
    for number in range(2):
        gradients(t, [batch(t, number)])
        update(t)
        if not number:
            before = t.objective.parts()["classifier"][0].weight.detach().clone()
    now = t.objective.parts()["classifier"][0].weight.detach()
    found = t.judged_network()["objective"]["classifiers.0.weight"]
    assert torch.allclose(found, (before + now) / 2, atol=1e-7)
    assert not torch.allclose(found, now, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch.images=1"], "batch.images=1 leaves a loss on pairs without two pictures of one class to compare"),
        (["batch.classes=1"], "batch.classes=1 leaves a loss on pairs without two classes to compare"),
    ],
)
def test_batches_without_positives_or_negatives_are_refused_for_losses_on_pairs(words, message):
    with pytest.raises(InputError, match=message):
        training(*words)
    training(*words, "loss.name=cce")
    training(*words, "memory.size=20")


def test_losses_on_pairs_of_frames_need_them_too():
    frames = ["loss.name=cce", "frame_losses=[{name: contrastive}]", "tracklets.frames=1"]
    for key, missing in (("images", "two tracklets of one class"), ("classes", "two classes")):
        with pytest.raises(InputError, match=f"batch.{key}=1 leaves a loss on pairs without {missing}"):
            training(*frames, f"batch.{key}=1")
    training(*frames, "batch.classes=1", "memory.size=20")


def test_what_has_a_factor_of_0_has_no_gradient():
    t = training("optimizer.factors={block1: 0}")
    gradients(t, [batch(t)])
    assert all(p.grad is None for p in t.model.backbone.block1.parameters())
    assert t.model.heads[0].linear.weight.grad is not None


def test_out_of_memory_anywhere_is_said_plainly():
    with pytest.raises(InputError, match=r"out of memory \(.*tried to allocate 9 bytes.*lower data.size"), joined():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    with pytest.raises(RuntimeError, match="something else"), joined():
        raise RuntimeError("something else")


def test_a_network_without_memory_for_a_block_embeds_parts_of_it():
    from metricweight.training.embedding import embedded

    seen = []

    class Small(nn.Module):
        def forward(self, images):
            if len(images) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            seen.append(len(images))
            return images.flatten(1)

    images = torch.randn(10, 1, 2, 2)
    assert torch.equal(embedded(Small(), images), images.flatten(1))
    assert sum(seen) == 10
    with pytest.raises(InputError, match=r"out of memory with a single picture .*; lower data.size"):
        embedded(nn.Sequential(Never()), images[:2])


class Never(nn.Module):
    def forward(self, images):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "words", [[], ["channels_last=true"], ["batch.chunk=5"], ["precision=bf16"], ["precision=fp16"]]
)
def test_on_a_gpu_the_gradient_is_that_of_the_cpu(words):
    found = []
    for device in ("cpu", "cuda"):
        given = read("digits", [*WORDS, "loss.name=cce", f"device={device}", *(words if device == "cuda" else [])])
        t = prepared(given, Processes(device=device))
        gradients(t, [batch(t)])
        found.append([g.cpu() / t.scaler.get_scale() for g in grads(t)])
        update(t)
    assert close(*found, 0.03 if "precision" in "".join(words) else 1e-3)


def test_batch_normalisation_that_does_more_is_not_replaced_without_a_word():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="does not know the batch normalisation of timm:efficientnet_b0"):
        training("sync_batch_norm=true", "model.backbone=timm:efficientnet_b0", "model.frozen_batch_norm=false")
    with pytest.raises(InputError, match="works on GPUs only"):
        training("sync_batch_norm=true", "model.frozen_batch_norm=false")
