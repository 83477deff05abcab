"""What a network is trained by."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.confidence import match_probability, own_probability
from metricweight.emphasis import Weighting
from metricweight.losses import GradientWeighting, PairLoss
from metricweight.losses.table import LOSSES, ClassAwareAttention
from metricweight.memory import CrossBatchMemory
from metricweight.miners import PairMiner
from metricweight.models.heads import classifier
from metricweight.settings import Settings, at, build, example_weighting
from metricweight.similarity import at_least_float32

ATTENTIVE = "online_soft_mining"  # the loss that class-aware attention is for


class Judged(NamedTuple):
    """What an objective says of a batch.

    loss    a scalar
    judged  what it went by at the last level, detached: logits [B, C] where there is a classifier, else
            embeddings [B, D]
    """

    loss: Tensor
    judged: Tensor


class Objective(nn.Module):
    """The losses of the settings, with what they need beside the network. What is learned of it, learns too.

        L = sum over levels l of  ( loss(x_l)  +  sum_r weight_r plus_r(x_l)  +  weight attention(x_l) )

    settings  of them: loss, plus, attention, memory, miner, weighting, and steps
    labels    [N] of everything that is trained on: each of the C numbers among them is a class
    levels    L, how many embeddings a picture has
    dim       D of each

    Each level has its own of everything: losses on logits (kinds "example" and "target") go through one linear
    classifier of that level, online_soft_mining has its class-aware attention and losses on pairs have their
    memories. `miner` chooses among the pairs of a batch, for all losses on pairs; pairs with the memory all count.
    `weighting` weighs each example's gradient of the whole sum, by p of the classifier, or where there is none of a
    softmax over neighbours in the batch; what the classifier and the attention learn is not weighed.

    Losses are formed in float32 at least, also under autocast. Only a classifier and an attention have parameters,
    and only they draw random numbers. All state is in `state_dict`: parameters, which class each output stands for,
    memories, counts of a loss. Raises InputError where a loss on logits has fewer than two classes to tell apart, and
    where memory, miner or attention have no loss that could use them.
    """

    labels: Tensor

    def __init__(self, settings: Settings, labels: Tensor, levels: int, dim: int) -> None:
        super().__init__()
        self.settings, self.levels, self.dim = settings, levels, dim
        self.rows = [{"weight": 1.0, **settings.loss}, *settings.plus]
        kinds = {LOSSES[part["name"]].kind for part in self.rows}
        check_used(settings, self.rows)
        classes = torch.unique(labels)
        on_logits = sorted(kinds - {"pair"})
        if on_logits and len(classes) < 2:
            raise InputError(
                f"a loss of kind {on_logits[0]} tells classes apart, and there is {len(classes)} to train on; "
                "give it two or more, or choose a loss on pairs."
            )
        form = settings.attention.form
        if on_logits or form:
            self.register_buffer("labels", classes)
        each = range(levels)
        self.classifiers = nn.ModuleList(classifier(dim, len(classes)) for _ in each if on_logits)
        self.attentions = nn.ModuleList(ClassAwareAttention(len(classes), dim, form) for _ in each if form)
        self.losses = nn.ModuleList(nn.ModuleList(self._loss(part, level) for part in self.rows) for level in each)
        self.miner = PairMiner(self._built(settings.miner)) if settings.miner else None

    def _loss(self, part: dict[str, Any], level: int) -> nn.Module:
        if LOSSES[part["name"]].kind != "pair":
            return build(at(part, 0))
        if self.attentions and part["name"] == ATTENTIVE:
            part = {**part, "attention": self.attentions[level]}
        loss, size = self._built(part), self.settings.memory.size
        return CrossBatchMemory(loss, self.dim, size) if size else loss

    def _built(self, part: dict[str, Any]) -> PairLoss:
        needs_dim = "dim" in part and part["dim"] is None
        loss = build({**part, "dim": self.dim} if needs_dim else part)
        assert isinstance(loss, PairLoss)
        return loss

    def _losses(self, level: int) -> Iterable[nn.Module]:
        return cast(nn.ModuleList, self.losses[level])

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> Judged:
        """The loss of a batch.

        embeddings  [B, L D]  raw, the levels side by side
        labels      [B]       of those that the objective was made with
        step        how many steps were made before: 0 at the first, where what moves is at its start; at the last,
                    steps - 1, it is at its end
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            terms: list[Tensor] = []
            for level, x in enumerate(self.split(embeddings)):
                x = self._weighed(x, labels, level, step)
                logits = self.classifiers[level](x) if self.classifiers else None
                terms += self._terms(x, logits, labels, level, step)
            judged = x if logits is None else logits
            return Judged(reduce(operator.add, terms), judged.detach())

    def split(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """The levels of embeddings [B, L D], [B, D] each, in float32 at least."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.levels * self.dim:
            raise InputError(
                f"embeddings must be [B, {self.levels * self.dim}], {self.levels} of {self.dim} side by side, "
                f"got {list(embeddings.shape)}."
            )
        return torch.split(at_least_float32(embeddings), self.dim, dim=1)

    def _terms(self, x: Tensor, logits: Tensor | None, labels: Tensor, level: int, step: int) -> Iterator[Tensor]:
        """What a level adds to the loss."""
        paired = self.paired(labels)
        chosen = None if self.miner is None else self.miner(x, paired)
        for part, loss in zip(self.rows, self._losses(level), strict=True):
            if logits is None or LOSSES[part["name"]].kind == "pair":
                yield part["weight"] * self._of_pairs(loss, x, paired, chosen, step)
            else:
                moves = any(isinstance(value, list) for value in part.values())
                now = build(at(part, self._progress(step))) if moves else loss
                yield part["weight"] * now(logits, self.outputs(labels))
        if self.attentions:
            yield self.settings.attention.weight * self.attentions[level](x, paired)

    def _of_pairs(self, loss: nn.Module, x: Tensor, labels: Tensor, chosen: Any, step: int) -> Tensor:
        if isinstance(loss, CrossBatchMemory) and step < self.settings.memory.start:
            if self.training:
                loss.remember(x, labels)
            loss = loss.loss
        value: Tensor = loss(x, labels, chosen)
        return value

    def _weighed(self, x: Tensor, labels: Tensor, level: int, step: int) -> Tensor:
        """Embeddings [B, D] as they are, whose gradient will be weighed."""
        if self.settings.weighting is None:
            return x
        sure = partial(self._sure, self.classifiers[level]) if self.classifiers else match_probability
        weighed: Tensor = GradientWeighting(self._weighting(self.settings.weighting, step), sure)(x, labels)
        return weighed

    def _sure(self, classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return own_probability(classifier(x), self.outputs(labels))

    def weighting(self, step: int) -> Weighting | None:
        """How examples are weighed at a step: by `weighting`, else by the first loss of kind "example"; or None."""
        used = self.settings.weighed_by(self.rows)
        return None if used is None else self._weighting(used, step)

    def _weighting(self, part: Mapping[str, Any], step: int) -> Weighting:
        return example_weighting(at(part, self._progress(step)))

    def _progress(self, step: int) -> float:
        return min(1.0, step / max(1, self.settings.steps - 1))

    def pair_losses(self, level: int) -> list[PairLoss]:
        """The losses on pairs of a level, without their memories."""
        losses = (x.loss if isinstance(x, CrossBatchMemory) else x for x in self._losses(level))
        return [loss for loss in losses if isinstance(loss, PairLoss)]

    def paired(self, labels: Tensor) -> Tensor:
        """Labels [B] as losses on pairs take them: from 0 to C - 1 where there is an attention, else as they are."""
        return self.outputs(labels) if self.attentions else labels

    def confidence(self, judged: Tensor, labels: Tensor) -> Tensor:
        """p, how sure the network is of each label, [B]: of the classifier's softmax, or of one over neighbours.

        judged  what `forward` gave beside the loss
        """
        if not self.classifiers:
            return match_probability(judged, labels)
        return own_probability(judged, self.outputs(labels))

    @property
    def sets(self) -> "Objective":
        """What judges whole items: as here, where an item is a picture."""
        return self

    @property
    def frames(self) -> "Objective":
        """What judges single pictures."""
        return self

    def counted(
        self, embeddings: Tensor, gradient: Tensor, labels: Tensor
    ) -> tuple["Objective", Tensor, Tensor, Tensor]:
        """What `forward` judged: by which objective, embeddings, their gradients and labels."""
        return self, embeddings, gradient, labels

    @property
    def tells_apart(self) -> bool:
        """Whether anything here tells classes apart, a classifier or class contexts."""
        return bool(self.classifiers or self.attentions)

    def class_logits(self, x: Tensor, level: int = -1) -> Tensor | None:
        """Logits [B, C] of embeddings [B, D] of a level: of its classifier, or else by the class contexts of its
        attention; None where nothing tells classes apart."""
        if self.classifiers:
            found: Tensor = self.classifiers[level](x)
            return found
        if self.attentions:
            attention = self.attentions[level]
            assert isinstance(attention, ClassAwareAttention)
            return attention.logits(x)
        return None

    def parts(self) -> dict[str, nn.ModuleList]:
        """What learns beside the network, a module per level each, those that there are: classifier, attention."""
        found = {"classifier": self.classifiers, "attention": self.attentions}
        return {name: modules for name, modules in found.items() if len(modules)}

    def outputs(self, labels: Tensor) -> Tensor:
        """Which output of the classifier stands for each label."""
        return torch.searchsorted(self.labels, labels.to(self.labels).contiguous())


def check_used(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError where memory, miner or attention are set and none of the losses can use them."""
    names = ", ".join(part["name"] for part in rows)
    for group, given in (("memory.size", settings.memory.size), ("miner", settings.miner)):
        if given and not of_pairs(rows):
            raise InputError(
                f"{group} is for losses on pairs, and there is none among {names}; "
                f"set {group}={'0' if group == 'memory.size' else 'null'}, or choose a loss on pairs."
            )
    if settings.attention.form and not attentive(rows):
        raise InputError(
            f"attention.form={settings.attention.form} is for the loss {ATTENTIVE}, which is not among "
            f"{names}; set attention.form=null, or loss.name={ATTENTIVE}."
        )


def of_pairs(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of some losses is on pairs."""
    return any(LOSSES[part["name"]].kind == "pair" for part in rows)


def attentive(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of some losses takes class-aware attention."""
    return any(part["name"] == ATTENTIVE for part in rows)
