"""One step of a training: the gradient of a batch, exact for any number of chunks and processes, and the update."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metricweight.checks import InputError
from metricweight.data.images import Images
from metricweight.data.loader import Batch
from metricweight.data.sampler import ClassBalancedSampler
from metricweight.data.split import Indices
from metricweight.data.tracklets import ClipSampler
from metricweight.models.heads import Embedder, embedder, rates
from metricweight.settings import OptimizerSettings, Settings
from metricweight.similarity import at_least_float32
from metricweight.training import checkpoint
from metricweight.training.distributed import Processes
from metricweight.training.objective import Objective, of_pairs
from metricweight.training.pictures import load_images, splits_of, with_pixels
from metricweight.training.tracklets import TrackletObjective, objective_for

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Training:
    """What takes part in a training, and how far it is.

    average   the moving average of what the network and the objective learned, where `ema` asks for one
    unread    what was said of each training picture that could not be read
    seconds   that its steps, looks and checkpoints took until now
    best      the step whose network is tested, and what it reached on the classes that it was chosen by
    """

    settings: Settings
    processes: Processes
    images: Images
    splits: dict[str, Indices]
    sampler: ClassBalancedSampler | ClipSampler
    model: Embedder
    objective: Objective | TrackletObjective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    labels: Tensor  # [N] of all pictures
    shared: DistributedDataParallel | None  # the model, where processes share it
    network: Callable[[Tensor], Tensor]  # the model as a step calls it: shared, compiled
    average: AveragedModel | None
    step: int = 0
    best: dict[str, float] | None = None
    unread: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tested(self) -> Embedder:
        """The network that is judged."""
        return self.model if self.average is None else self.average.module[0]  # type: ignore[index]

    @property
    def tested_objective(self) -> Objective | TrackletObjective:
        """The objective beside it."""
        return self.objective if self.average is None else self.average.module[1]  # type: ignore[index]

    def state(self) -> checkpoint.State:
        """All that is needed to go on. Random numbers are functions of the seed and the step."""
        return {
            "schema": checkpoint.SCHEMA,
            "step": self.step,
            "channels": self.images.channels,
            "settings": self.settings.model_dump(mode="json"),
            "stamp": self.images.stamp,
            "model": checkpoint.on_cpu(self.model),
            "origin": self.model.origin,
            "objective": checkpoint.on_cpu(self.objective),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else checkpoint.on_cpu(self.average),
            "best": self.best,
            "processes": self.processes.size,
            "seconds": self.seconds,
            "unread": self.unread,
        }

    def go_on(self, state: checkpoint.State) -> None:
        self.model.load_state_dict(state["model"])
        self.model.origin = state["origin"]
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        self.unread = state["unread"]

    def judged_network(self) -> checkpoint.State:
        """What `embed` needs of the network that is judged."""
        return {
            "step": self.step,
            "channels": self.images.channels,
            "settings": self.settings.model_dump(mode="json"),
            "stamp": self.images.stamp,
            "model": checkpoint.on_cpu(self.tested),
            "origin": self.model.origin,
            "objective": checkpoint.on_cpu(self.tested_objective),
        }


def prepared(settings: Settings, processes: Processes, goes_on: bool = False) -> Training:
    """A training before its first step, or where it `goes_on`: there, nothing is fetched or read to start from.

    Raises InputError for what is wrong with settings or data.
    """
    images = load_images(settings.data)
    splits = splits_of(images, settings.data)
    labels = images.labels[splits["train"]]
    classes = settings.batch.classes or min(32, len(np.unique(labels)))
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"classes": classes})})
    sampler = _sampler(settings, images, splits["train"])
    _check_pairs(settings)
    sampler.share(0, processes.rank, processes.size)  # which says whether the processes can share a batch
    torch.manual_seed(settings.seed)
    with processes.first_alone():  # so that weights are fetched once
        if goes_on:
            model = checkpoint.blank(settings, images.channels)
        else:
            model = embedder(images.channels, **settings.model.model_dump())
    settings = with_pixels(settings, images.channels)
    objective = objective_for(settings, torch.from_numpy(labels), model.levels, model.dim).to(processes.device)
    if settings.sync_batch_norm:
        model = _synchronised(model, settings.model.backbone, processes.device)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(device=processes.device, memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = _optimizer(model, objective, settings.optimizer)
    shared = _shared_model(model, settings, processes)
    network = shared or model
    average = None
    if settings.ema is not None:
        learned = nn.ModuleList([model, objective])
        average = AveragedModel(learned, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))  # type: ignore[no-untyped-call]
    return Training(
        settings,
        processes,
        images,
        splits,
        sampler,
        model,
        objective,
        optimizer,
        torch.amp.GradScaler(processes.device.split(":")[0], enabled=settings.precision == "fp16"),
        torch.from_numpy(images.labels).to(processes.device),
        shared,
        torch.compile(network) if settings.compile else network,
        average,
    )


def _sampler(settings: Settings, images: Images, train: Indices) -> ClassBalancedSampler | ClipSampler:
    """What draws the batches: pictures, or clips of tracklets."""
    batch, asked, labels = settings.batch, settings.tracklets, images.labels[train]
    classes = batch.classes or 1
    if asked.frames is None:
        return ClassBalancedSampler(labels, classes, batch.images, settings.seed, batch.rule)
    alone = np.full(len(train), -1)
    tracklets, numbers = (alone if x is None else x[train] for x in (images.tracklets, images.frames))
    if asked.frames > 1 and (tracklets < 0).all():
        raise InputError(
            f"tracklets.frames={asked.frames} was asked for, but what is trained on are still pictures; set it to 1 "
            "or null, or give a manifest that names tracklets."
        )
    return ClipSampler(
        labels, tracklets, numbers, classes=classes, per_class=batch.images, frames=asked.frames, how=asked.clip,
        stride=asked.stride, seed=settings.seed, rule=batch.rule,
    )  # fmt: skip


def _check_pairs(settings: Settings) -> None:
    """Raises InputError where a batch has no positives, or no negatives, for a loss on pairs."""
    batch, frames = settings.batch, settings.tracklets.frames
    if settings.memory.size or batch.rule in ("shuffle", "independent"):
        return
    of_items, of_frames = of_pairs([settings.loss, *settings.plus]), of_pairs(settings.frame_losses)
    needs = {
        "images": of_items or (of_frames and frames == 1),
        "classes": of_items or of_frames,
    }
    items = "pictures" if frames is None else "tracklets"
    for key, missing in (("images", f"two {items} of one class"), ("classes", "two classes")):
        if needs[key] and getattr(batch, key) == 1:
            raise InputError(
                f"batch.{key}=1 leaves a loss on pairs without {missing} to compare; set batch.{key}=2 or more."
            )


def _synchronised(model: Embedder, backbone: str, device: str) -> Embedder:
    """The model with batch normalisation over the batches of all processes."""
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not kinds <= {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:  # they do more, which would be lost
        raise InputError(
            f"sync_batch_norm=true does not know the batch normalisation of {backbone}; "
            "use model.frozen_batch_norm=true."
        )
    if not device.startswith("cuda"):
        raise InputError("sync_batch_norm=true works on GPUs only; set it to false, or model.frozen_batch_norm=true.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,no-any-return]


def _shared_model(model: Embedder, settings: Settings, processes: Processes) -> DistributedDataParallel | None:
    """The model as several processes share it; None where there is one, or nothing of it learns."""
    if processes.size == 1 or not any(p.requires_grad for p in model.parameters()):
        return None
    # a pooling of ours leaves the last layers of some of timm's networks without use
    unused = settings.model.backbone.startswith("timm:") and settings.model.pooling is not None
    devices = [processes.device] if processes.device.startswith("cuda") else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)


def _optimizer(
    model: Embedder, objective: Objective | TrackletObjective, asked: OptimizerSettings
) -> torch.optim.Optimizer:
    parts = {"backbone": model.backbone, "head": model.heads, **objective.parts()}
    groups = [{**group, "lr": asked.learning_rate * group["factor"]} for group in rates(parts, asked.factors)]
    if not groups:
        raise InputError("nothing is left to learn: all parts are frozen or have the factor 0; let one of them learn.")
    learned = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in (*model.parameters(), *objective.parameters()):
        if id(parameter) not in learned:
            parameter.requires_grad_(False)
    if asked.name == "sgd":
        return torch.optim.SGD(groups, asked.learning_rate, asked.momentum, weight_decay=asked.weight_decay)
    kind = torch.optim.AdamW if asked.name == "adamw" else torch.optim.Adam
    return kind(groups, asked.learning_rate, weight_decay=asked.weight_decay)


class Done(NamedTuple):
    """What a step leaves to be reported: of all processes, and, but for two, of the last of its batches alone."""

    loss: Tensor  # the mean over all its batches
    judged: Tensor
    embeddings: Tensor  # [B, L*D]
    gradient: Tensor  # [B, L*D], of the loss with respect to the embeddings
    indices: Tensor  # of the pictures of all its batches
    labels: Tensor  # [B]


def gradients(t: Training, micro: Sequence[Batch]) -> Done:
    """The mean gradient of some batches, left in the parameters."""
    t.model.train()
    t.objective.train()
    t.optimizer.zero_grad()
    parts: list[Done] = []
    try:
        for place, batch in enumerate(micro):
            number, last = t.step * len(micro) + place, place == len(micro) - 1
            parts.append(_gradient(t, batch, number, 1 / len(micro), last))
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise InputError(_out_of_memory(t, str(error))) from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # the CPU's words
            raise InputError(_out_of_memory(t, str(error))) from None
        raise
    if t.processes.size > 1:  # the same everywhere, but for the last digits on GPUs
        for parameter in t.objective.parameters():
            if parameter.grad is not None:
                t.processes.add_up(parameter.grad).div_(t.processes.size)
    loss = torch.stack([part.loss for part in parts]).mean()
    return parts[-1]._replace(loss=loss, indices=torch.cat([part.indices for part in parts]))


def _gradient(t: Training, batch: Batch, number: int, share: float, last: bool) -> Done:
    """Embeds a batch, asks the objective for the gradient of all processes' embeddings, and sends it back.

    Where the batch comes in chunks, each is embedded without a graph at first, and once more with one when its
    gradient is known (Gao et al., 2021, arXiv:2101.06983): no more than a chunk's activations are held. The same random
    numbers are drawn both times, and the second leaves the running statistics of batch normalisation alone.
    """
    memory_format = torch.channels_last if t.settings.channels_last else torch.contiguous_format
    images = batch.images.to(t.processes.device, non_blocking=True, memory_format=memory_format)
    chunks = torch.split(images, t.settings.batch.chunk or len(images))
    whole = len(chunks) == 1

    def embedded(place: int) -> Tensor:
        _seed(t.settings.seed, number, t.processes.rank, place)
        with autocast(t.settings.precision, t.processes.device):
            found: Tensor = t.network(chunks[place])
        return found

    with torch.set_grad_enabled(whole), _shared(t, whole and last):
        parts = [embedded(place) for place in range(len(chunks))]
    everybody = t.processes.gather(at_least_float32(torch.cat(parts).detach())).requires_grad_()
    indices = t.processes.gather(torch.from_numpy(batch.indices).to(t.processes.device))
    labels = t.labels[indices]
    loss, judged = t.objective(everybody, labels, t.step)
    t.scaler.scale(loss * share).backward()
    assert everybody.grad is not None
    # DistributedDataParallel takes the mean over processes; each has the rows of its own, so the sum is wanted
    mine = everybody.grad[t.processes.rank * len(images) :][: len(images)] * t.processes.size
    for place, gradient in enumerate(torch.split(mine, [len(chunk) for chunk in chunks])):
        final = last and place == len(chunks) - 1
        with nullcontext() if whole else _statistics_kept(t.model), _shared(t, final):
            found = parts[place] if whole else embedded(place)
            if found.requires_grad:
                found.backward(gradient.to(found.dtype))  # type: ignore[no-untyped-call]
    scale = t.scaler.get_scale() * share
    return Done(loss.detach(), judged, everybody.detach(), everybody.grad / scale, indices, labels)


def update(t: Training) -> None:
    """One step of the optimiser by the gradients that the parameters have."""
    asked = t.settings.optimizer
    for group in t.optimizer.param_groups:
        group["lr"] = asked.learning_rate * group["factor"] * rate(t.step, t.settings.steps, asked)
    if asked.clip is not None:
        t.scaler.unscale_(t.optimizer)
        nn.utils.clip_grad_norm_([p for group in t.optimizer.param_groups for p in group["params"]], asked.clip)
    t.scaler.step(t.optimizer)
    t.scaler.update()
    t.step += 1
    if t.average is not None:
        t.average.update_parameters(nn.ModuleList([t.model, t.objective]))


def rate(step: int, steps: int, asked: OptimizerSettings) -> float:
    """Factor of the learning rate at `step` of `steps`: linear up to 1 over the warm-up, then by the schedule."""
    rising = max(1, round(asked.warmup * steps))
    if step < rising and asked.warmup:
        return (step + 1) / rising
    if asked.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2
    if asked.schedule == "steps":
        return math.prod(asked.decay for milestone in asked.milestones if step >= milestone)
    return 1.0


def _out_of_memory(t: Training, why: str) -> str:
    batch = t.settings.batch
    mine = t.sampler.size // t.processes.size
    return (
        f"out of memory at step {t.step + 1} ({why.splitlines()[0][:120]}). "
        f"batch.chunk={max(1, (batch.chunk or mine) // 2)} needs less, and the result is the same but for batch "
        "normalisation. Or, in a new run, lower data.size or set precision=bf16."
    )


def _seed(*key: int) -> None:
    """Whatever the network draws, such as dropout, is a function of the key."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    torch.manual_seed(seed)


def autocast(name: str, device: str) -> Any:
    return torch.autocast(device.split(":")[0], PRECISIONS[name]) if name in PRECISIONS else nullcontext()


def _shared(t: Training, final: bool) -> Any:
    """Processes add up their gradients in the final backward pass of a step, and in no other."""
    return nullcontext() if final or t.shared is None else t.shared.no_sync()


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Running statistics of batch normalisation stay as they are, while batches are normalised by their own."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
