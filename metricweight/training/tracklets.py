"""Tracklets: losses on clips and on their frames, and what a tracklet is judged by."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metricweight.checks import InputError
from metricweight.confidence import own_probability
from metricweight.data.images import Images
from metricweight.data.split import Indices
from metricweight.data.tracklets import grouped, judged_by
from metricweight.models.heads import Embedder
from metricweight.models.sets import FrameAttention, fused, largest, largest_of_each, of_each, quality
from metricweight.settings import Settings, TrackletSettings
from metricweight.training.checkpoint import learned_of
from metricweight.training.objective import Judged, Objective, attentive, check_used, of_pairs

Fuse = Callable[[Tensor, Tensor, int], Tensor]  # frames [n, L D], which item each is of [n], items I -> [I, L D]


class TrackletObjective(nn.Module):
    """The losses of the settings on clips of F frames each, and on their frames.

        X = sum_t w_t x_t / sum_t w_t      of the embeddings x_1 ... x_F of a clip; at fusion=max their maximum
        L = L_sets(X) + L_frames(x)

    L_sets are `loss` and `plus`, L_frames are `frame_losses`, each an `Objective` with classifiers, attention and
    memories of its own. By the setting tracklets.fusion, for each level on its own:

        mean            w_t = 1
        class_aware     w_t = a_t, the class-aware attention of the frame losses (Wang et al., AAAI 2019)
        quality         w_t = exp( -(1 - p_t)^2 / (2 0.68^2) ), p_t what the classifier of the frame losses, or else
                        their attention, gives the frame's identity (Wang et al., ID-aware quality, arXiv:1911.09143)
        self_attention  w_t as learned by `FrameAttention`

    Weights are constants, but for those of self_attention. In a batch the frames of a clip stand together.

    Raises InputError where a fusion lacks what it goes by, and whatever `Objective` raises.
    """

    def __init__(self, settings: Settings, labels: Tensor, levels: int, dim: int) -> None:
        super().__init__()
        asked, own = settings.tracklets, [settings.loss, *settings.plus]
        assert asked.frames is not None
        check_used(settings, [*own, *settings.frame_losses])
        self.settings, self.length, self.fusion = settings, asked.frames, asked.fusion
        self.sets = Objective(_of(settings, own), labels, levels, dim)
        self.frames = None
        if settings.frame_losses:
            self.frames = Objective(_of(settings, settings.frame_losses), labels, levels, dim)
        each = range(levels)
        self.attentions = nn.ModuleList(FrameAttention(dim) for _ in each if asked.fusion == "self_attention")
        frames, weighs = self.frames, f"tracklets.fusion={asked.fusion} weighs frames by what is learned of them; set"
        if asked.fusion == "class_aware" and not (frames and frames.attentions):
            form = settings.attention.form or "poster"
            raise InputError(f"{weighs} frame_losses=[{{name: online_soft_mining}}] and attention.form={form}.")
        if asked.fusion == "quality" and not (frames and frames.tells_apart):
            raise InputError(f"{weighs} frame_losses=[{{name: cce}}], or another loss on logits.")

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> Judged:
        """The loss of a batch. The arguments are those of `Objective`: embeddings [B, L D] and labels [B] of frames,
        B a multiple of F. What it judged is of the frames where there are losses on them, else of the clips."""
        with torch.autocast(embeddings.device.type, enabled=False):
            found: Judged = self.sets(self.fused(embeddings, labels), labels[:: self.length], step)
        if self.frames is None:
            return found
        of_frames = self.frames(embeddings, labels, step)
        return Judged(found.loss + of_frames.loss, of_frames.judged)

    def fused(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The clips [B / F, L D] of their frames' embeddings [B, L D]."""
        made = []
        for level, x in enumerate(self.sets.split(embeddings)):
            clips = self._clips(x)
            if self.fusion == "max":
                made.append(largest(clips))
            else:
                made.append(fused(clips, self.weights(x, labels, level)))
        return torch.cat(made, 1)

    def weights(self, x: Tensor, labels: Tensor, level: int = -1) -> Tensor | None:
        """How much the frames of each clip count, [B / F, F], not yet summing to 1; None: all the same.

        x  [B, D] embeddings of a level
        """
        if self.fusion == "self_attention":
            found: Tensor = self.attentions[level](self._clips(x))
            return found
        if self.frames is None or self.fusion not in ("class_aware", "quality"):
            return None
        with torch.no_grad():
            own = self.frames.outputs(labels)
            if self.fusion == "class_aware":
                attention: Any = self.frames.attentions[level]
                w: Tensor = attention.attention(x, own)
            else:
                logits = self.frames.class_logits(x, level)
                assert logits is not None
                w = quality(own_probability(logits, own))
        return w.to(x.dtype).reshape(-1, self.length)

    def counted(self, embeddings: Tensor, gradient: Tensor, labels: Tensor) -> tuple[Objective, Tensor, Tensor, Tensor]:
        """What `forward` judged: by which objective, embeddings, their gradients and labels. The gradient of a clip is
        the sum of its frames', since their shares of it sum to 1; what self-attention adds is counted in."""
        if self.frames is not None:
            return self.frames, embeddings, gradient, labels
        clips = self.fused(embeddings, labels).detach()
        return self.sets, clips, self._clips(gradient).sum(1), labels[:: self.length]

    def _clips(self, x: Tensor) -> Tensor:
        """Rows of frames [B, D] as clips [B / F, F, D]."""
        return x.reshape(len(x) // self.length, self.length, x.shape[1])

    def parts(self) -> dict[str, nn.ModuleList]:
        """What learns beside the network, those that there are: classifier, attention, fusion."""
        found: dict[str, list[nn.Module]] = {}
        for judge in filter(None, (self.sets, self.frames)):
            for name, modules in judge.parts().items():
                found.setdefault(name, []).extend(modules)
        if self.attentions:
            found["fusion"] = list(self.attentions)
        return {name: nn.ModuleList(modules) for name, modules in found.items()}


def _of(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> Settings:
    """The settings with these losses alone, without what none of them can use."""
    change: dict[str, Any] = {"loss": dict(rows[0]), "plus": list(rows[1:]), "frame_losses": []}
    if not attentive(rows):
        change["attention"] = settings.attention.model_copy(update={"form": None})
    if not of_pairs(rows):
        change |= {"memory": settings.memory.model_copy(update={"size": 0}), "miner": None}
    return settings.model_copy(update=change)


def objective_for(settings: Settings, labels: Tensor, levels: int, dim: int) -> Objective | TrackletObjective:
    """The objective of some settings; the arguments are those of `Objective`."""
    kind = Objective if settings.tracklets.frames is None else TrackletObjective
    return kind(settings, labels, levels, dim)


def rebuilt(settings: Settings, state: Mapping[str, Any], model: Embedder) -> Objective | TrackletObjective:
    """The objective of a checkpoint, with what it has learned."""
    learned = learned_of(state, "objective")
    own_labels = ("labels", "sets.labels", "frames.labels")  # a memory has labels too, of what it remembers
    labels = next((learned[name] for name in own_labels if name in learned), torch.arange(2))
    objective = objective_for(settings, labels, model.levels, model.dim)
    objective.load_state_dict(learned)
    return objective.eval()


def frames_judged(images: Images, indices: Indices, asked: TrackletSettings) -> Indices:
    """Those of the images at `indices` that their tracklets are judged by, tracklet after tracklet in order of time.

    Raises InputError where there are no tracklets and something else than all and the mean was asked for.
    """
    if images.tracklets is None or images.frames is None:
        if asked.seen != TrackletSettings().seen:
            raise InputError(
                f"tracklets were to be judged by {asked.seen}, but the pictures are of no tracklets; set "
                "tracklets.test_clip=all and tracklets.test_fusion=mean."
            )
        return indices
    tracklets = grouped(images.tracklets[indices], images.frames[indices])
    kept = [rows[judged_by(len(rows), asked.test_clip, asked.test_frames)] for rows in tracklets]
    return indices[np.concatenate(kept)] if kept else indices


def means(frames: Tensor, of: Tensor, count: int) -> Tensor:
    """The mean of each item's frames."""
    return of_each(frames, of, count, None)


def knowing(objective: Objective | TrackletObjective) -> Objective | None:
    """What tells identities apart, by a classifier or class contexts: of frames, else of whole clips; None: nothing."""
    each = (objective.frames, objective.sets)
    return next((x for x in each if x is not None and x.tells_apart), None)


def fuser(settings: Settings, objective: Objective | TrackletObjective | None) -> Fuse:
    """How the frames of a tracklet become one embedding in tests, by tracklets.test_fusion.

    objective  None: of a network that was not trained

    quality  w_t = exp( -(1 - max_k p_tk)^2 / (2 0.68^2) ), p_t of the classifier of the frame losses, else of the
             clips': who is to be seen is not known, so the largest class probability stands for that of the identity

    Raises InputError where the objective lacks what the fusion goes by.
    """
    rule = settings.tracklets.test_fusion
    if rule == "mean":
        return means
    if rule == "max":
        return largest_of_each
    if objective is None:
        raise InputError(
            f"tracklets.test_fusion={rule} weighs frames by what was learned beside the network, and this one was not "
            "trained; use mean or max."
        )
    objective = deepcopy(objective).cpu().eval()  # where the embeddings of frames are
    judge = knowing(objective)
    if rule == "quality" and judge is None:
        raise InputError(
            "tracklets.test_fusion=quality weighs frames by a classifier, and none is trained; "
            "set frame_losses=[{name: cce}], or tracklets.test_fusion=mean."
        )

    def by_quality(x: Tensor, of: Tensor, level: int) -> Tensor:
        logits: Any = judge and judge.class_logits(x, level)
        return quality(logits.softmax(1).amax(1))

    def by_attention(x: Tensor, of: Tensor, level: int) -> Tensor:
        attention = objective.attentions[level]
        return torch.cat([attention(own[None])[0] for own in torch.split(x, torch.bincount(of).tolist())])

    @torch.inference_mode()
    def weighted(frames: Tensor, of: Tensor, count: int) -> Tensor:
        weights = by_quality if rule == "quality" else by_attention
        levels = enumerate(objective.sets.split(frames))
        return torch.cat([of_each(x, of, count, weights(x, of, level)) for level, x in levels], 1)

    return weighted
