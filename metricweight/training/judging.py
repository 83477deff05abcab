"""How good a network is: on the classes that it is chosen by, and on the test classes."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.data.images import Images
from metricweight.data.split import Indices
from metricweight.models.heads import Embedder
from metricweight.progress import say
from metricweight.retrieval import Protocol, Report, evaluate
from metricweight.retrieval.protocol import among, named
from metricweight.retrieval.report import EvaluationWarning
from metricweight.training import checkpoint
from metricweight.training.embedding import embed_images, write_embeddings
from metricweight.training.engine import Training
from metricweight.training.log import event_writer
from metricweight.training.objective import Objective
from metricweight.training.pictures import items_of
from metricweight.training.tracklets import TrackletObjective, frames_judged, fuser

OTHER_CAMERAS = Protocol("other-cameras", "all", same_camera="left out")
PLAIN = {"test_fusion": "mean"}  # of networks that have no objective beside them


def tested(t: Training, run: Path) -> dict[str, Report]:
    """Reports on the test classes: raw pixels, the network as it was before the training, and the chosen one.

    Where the chosen one was trained with a classifier that knows all test classes, its report has the `accuracy`.
    """
    networks, objective, step = _networks(t, run)
    wanted = frames_judged(t.images, t.splits["test"], t.settings.tracklets)
    fuse = {"trained": fuser(t.settings, objective)}
    found = embed_images(
        networks, t.images, wanted, t.settings.data, t.processes, "test pictures", t.settings.precision, fuse=fuse
    )
    indices = found.indices
    if t.processes.first:
        write_embeddings(run / "embeddings.npz", found, "trained", t.images, "test", False, t.settings.tracklets)
    models = {}
    for name, embeddings in found.embeddings.items():
        try:
            rule = t.settings.tracklets if name in fuse else t.settings.tracklets.model_copy(update=PLAIN)
            seen = None if t.images.tracklets is None else rule.seen
            report = judged(embeddings, t.images, indices, t.settings.ks, seen=seen, distributed=t.processes.size > 1)
        except InputError as error:  # a deep network without weights can give one point for all pictures
            if name == "trained":
                raise
            say(f"{name}: no report, {error}")
            continue
        data = {"source": t.settings.data.source, "stamp": t.images.stamp[:32], "seed": t.settings.data.seed}
        notes = [*report.notes]
        if unread := len(wanted) - len(indices):
            data["unreadable"] = unread
            notes.append(f"{unread:,} of {len(wanted):,} test pictures could not be read and are left out.")
        report = replace(report, notes=notes, stamp={**report.stamp, "data": {**report.stamp["data"], **data}})
        if name == "trained":
            labels = t.images.labels[items_of(t.images, indices).first]
            items = "pictures" if t.images.tracklets is None else "tracklets"
            report = _told(report, chosen_by(t), step, accuracy(objective, embeddings, labels), items)
            if t.images.tracklets is not None:
                report = replace(report, stamp={**report.stamp, "learned_from": t.settings.tracklets.learned})
        models[name] = report
    return models


def _networks(t: Training, run: Path) -> tuple[dict[str, nn.Module], Objective | TrackletObjective, int]:
    """The networks that are tested, by name; and the chosen one's objective and step."""
    first = t.processes.first
    network, _, state = checkpoint.load(run) if first else (t.model, t.settings, {})
    state = t.processes.tell({name: state.get(name) for name in ("step", "model", "objective")})
    if not first:
        network = checkpoint.blank(t.settings, t.images.channels)
        network.load_state_dict(state["model"])
    objective = deepcopy(t.objective).cpu()  # of the step of the chosen network, which need not be the last
    objective.load_state_dict(state["objective"])
    networks: dict[str, nn.Module] = {"pixels": RawPixels()}
    if (initial := t.processes.tell(_initial(run) if first else None)) is not None:
        before = checkpoint.blank(t.settings, t.images.channels)
        before.load_state_dict(initial)
        if t.settings.model.pretrained or t.settings.model.weights is not None:
            networks["frozen"] = Features(before)
        else:
            networks["untrained"] = before
    return {**networks, "trained": network}, objective, state["step"]


def _initial(run: Path) -> dict[str, Tensor] | None:
    """The network before its first step; None where its checkpoint is damaged, which is said."""
    try:
        found: dict[str, Tensor] = checkpoint.initial(run)["model"]
    except InputError as error:
        say(f"The network as it was before the training is not tested: {error}")
        return None
    return found


def _told(report: Report, chosen: str, step: int, accuracy: float | None, items: str) -> Report:
    """The report of the chosen network, with what it was chosen by, and its classifier's accuracy if it has one."""
    notes, metrics = [*report.notes], report.metrics
    if accuracy is not None:
        notes.append(f"Accuracy of its classifier on the test {items}: {100 * accuracy:.1f} %.")
        metrics = {**metrics, "accuracy": accuracy}
    if chosen == "test":
        notes.append("Chosen on the test classes themselves: what it reaches on others is lower.")
    stamp = {**report.stamp, "chosen": {"by": chosen, "step": step}}
    return replace(report, notes=notes, metrics=metrics, stamp=stamp)


def accuracy(
    objective: Objective | TrackletObjective, embeddings: NDArray[np.float32], labels: Indices
) -> float | None:
    """The share of items whose largest logit is that of their label, by the classifier of the last level.

    embeddings  [N, L D]  raw
    labels      [N]

    None where there is no classifier, or where it was not trained on all of the labels.
    """
    objective = objective.sets
    if not objective.classifiers or not np.isin(labels, objective.labels.numpy()).all():
        return None
    with torch.inference_mode():
        logits = objective.classifiers[-1](objective.split(torch.from_numpy(embeddings))[-1])
        return float((objective.labels[logits.argmax(1)] == torch.from_numpy(labels)).double().mean())


def check_judging(t: Training) -> None:
    """Judges random embeddings of what is validated and tested on: what is wrong is said before the training."""
    if t.settings.tensorboard:
        event_writer()
    _check_cameras(t)
    fuser(t.settings, t.objective)
    frames_judged(t.images, t.splits["test"], t.settings.tracklets)
    if t.processes.first:
        points = np.random.default_rng(0).standard_normal((len(t.images), 8), np.float32)
        for split, ks, among_all in (("validation", [1], True), ("test", t.settings.ks, False)):
            if len(indices := t.splits[split]):
                judged(points[items_of(t.images, indices).first], t.images, indices, ks, among_all)


def _check_cameras(t: Training) -> None:
    """Raises InputError where the protocol goes by cameras that are not known; says so where it does not go by them."""
    roles, rows = t.images.roles, t.splits["test"]
    if roles is None or not len(rows):
        return
    rules = named(roles.protocol)
    ordinary = rows[~among(roles.numbers[rows], (*rules.junk, *rules.distractors))]
    unknown = ordinary[roles.cameras[ordinary] < 0]
    if rules.same_camera == "left out" and len(unknown):
        raise InputError(
            f"protocol {roles.protocol} leaves out what a query's own camera saw, but the camera of {len(unknown):,} "
            f"of {len(ordinary):,} test pictures is not known, such as {t.images.names[unknown[0]]}; write it into the "
            "manifest, take them out, or choose another protocol with metricweight data ... --protocol NAME."
        )
    if rules.same_camera == "ranked" and len(np.unique(roles.cameras[ordinary])) > 1:
        say(
            f"Cameras are known, but protocol {roles.protocol} does not go by them: what a query's own camera saw "
            "counts as found. metricweight data ... --protocol NAME chooses another."
        )


def chosen_by(t: Training) -> str:
    """What the network that is reported is chosen by; where there is nothing to validate on, it is the last."""
    asked = t.settings.checkpoints.choose
    judged = t.settings.validations and (asked == "test" or len(t.splits["validation"]))
    return asked if judged and asked != "last" else "last"


def validate(t: Training) -> Mapping[str, float]:
    """What the network reaches on the classes that it is chosen by: each item among all others, or, where these are the
    test classes, by their protocol."""
    split = "test" if chosen_by(t) == "test" else "validation"
    if not len(t.splits[split]):
        return {}
    for statistics in t.tested.buffers():  # which each process has of its own batches
        t.processes.from_first(statistics)
    indices = frames_judged(t.images, t.splits[split], t.settings.tracklets)
    found = embed_images(
        {"": t.tested}, t.images, indices, t.settings.data, t.processes, None, t.settings.precision,
        fuse={"": fuser(t.settings, t.tested_objective)},
    )  # fmt: skip
    several = t.processes.size > 1
    among_all = split == "validation"
    return judged(found.embeddings[""], t.images, found.indices, [1], among_all, distributed=several).metrics


def judged(
    embeddings: NDArray[np.float32],
    images: Images,
    indices: Indices,
    ks: Sequence[int] | None,
    among_all: bool = False,
    seen: str | None = None,
    distributed: bool = False,
) -> Report:
    """By the protocol of the images, or each among all others.

    ks    None for those of the protocol
    seen  what of each item was embedded, for the report

    Among all others, what the query's own camera saw of its label is left out where cameras are known and others saw it
    too: it is found too easily to choose a network by.
    """
    first, roles = items_of(images, indices).first, images.roles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)  # they are printed below the table
        if roles is None:
            return evaluate(embeddings, images.labels[first], ks=ks, seen=seen, distributed=distributed)
        labels, queries, cameras = (x[first] for x in (roles.numbers, roles.queries, roles.cameras))
        if among_all:
            by_camera = np.unique(np.stack([labels, cameras]), axis=1)[0]
            apart = (cameras >= 0).all() and len(np.unique(by_camera)) < len(by_camera)
            return evaluate(
                embeddings, labels, ks=ks, distributed=distributed,
                queries=np.ones(len(first), bool) if apart else None,
                cameras=cameras if apart else None, protocol=OTHER_CAMERAS if apart else "self",
            )  # fmt: skip
        known = cameras if (cameras >= 0).any() else None
        return evaluate(
            embeddings, labels, queries=queries, cameras=known, protocol=roles.protocol, ks=ks, seen=seen,
            distributed=distributed,
        )  # fmt: skip


class RawPixels(nn.Module):
    """What the network sees, as an embedding; at most 32 x 32, larger pictures are averaged down to it."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = (min(32, side) for side in images.shape[-2:])
        return nn.functional.adaptive_avg_pool2d(images, (height, width)).flatten(1)


class Features(nn.Module):
    """What a backbone knows without a head of ours: the frozen baseline."""

    def __init__(self, model: Embedder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)
