"""Losses that revise the target: not only how far an example is moved, but where to.

    L = 1/B sum_i H(q~_i, p_i),     q~ = (1 - epsilon) q + epsilon r,     H(q~, p) = -sum_k q~_k log p_k

with p = softmax(z), q the one-hot label and r what the label is mixed with. All are called as
`loss(logits [B, C], labels [B])`, at least two classes, labels from 0 to C - 1, and return a scalar in float32 at
least, also under autocast. Logits are taken within +-1e30, so saturated and infinite ones give finite numbers. An
empty batch is zero, with zero gradient. Wrong shapes or dtypes raise `InputError`; a NaN in is a NaN out.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from metricweight.checks import InputError, check_logits
from metricweight.directions import bounded


class LabelSmoothingLoss(nn.Module):
    """Mixes the label with the uniform distribution:  r = 1/C,  dL/dz = p - q~ for each example.

    epsilon  share of the uniform distribution; 0.1 is that of Szegedy et al., CVPR 2016, arXiv:1512.00567
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = _share(epsilon, self)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        own, log_p = _log_probabilities(logits, labels)
        return _mean((self.epsilon - 1) * own - self.epsilon * log_p.mean(1))

    def __repr__(self) -> str:
        return f"LabelSmoothingLoss(epsilon={self.epsilon})"


class ConfidencePenaltyLoss(nn.Module):
    """Takes the prediction out of the label:  q~ = (1 - epsilon) q - epsilon p.

        dL/dz = (1 - epsilon) (p - q) + epsilon p (log p + H(p))        for each example

    epsilon  how much of it; no default of a paper is known
    detach   False is the ProSelfLC paper's (2021). With True, q~ is a constant and the second term is gone: the
             loss is then cross entropy with a smaller step

    Pereyra et al., arXiv:1701.06548, without their full weight on the label: in the form of arXiv:2005.03788.
    """

    def __init__(self, epsilon: float = 0.1, detach: bool = False) -> None:
        super().__init__()
        self.epsilon = _share(epsilon, self)
        self.detach = detach

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        own, log_p = _log_probabilities(logits, labels)
        p = log_p.exp()
        return _mean((self.epsilon - 1) * own + self.epsilon * ((p.detach() if self.detach else p) * log_p).sum(1))

    def __repr__(self) -> str:
        return f"ConfidencePenaltyLoss(epsilon={self.epsilon}, detach={self.detach})"


class BootstrappingLoss(nn.Module):
    """Mixes the label with the prediction:  r = p, the soft form.

        dL/dz = (1 - epsilon) (p - q) - epsilon p (log p + H(p))        for each example

    epsilon  share of the prediction; 0.05 is Reed et al.'s beta = 0.95 (from memory)
    detach   False is the ProSelfLC paper's. With True, q~ is a constant and the second term is gone: the loss is
             then cross entropy with a smaller step

    Reed et al., arXiv:1412.6596.
    """

    def __init__(self, epsilon: float = 0.05, detach: bool = False) -> None:
        super().__init__()
        self.epsilon = _share(epsilon, self)
        self.detach = detach

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        own, log_p = _log_probabilities(logits, labels)
        p = log_p.exp()
        return _mean((self.epsilon - 1) * own - self.epsilon * ((p.detach() if self.detach else p) * log_p).sum(1))

    def __repr__(self) -> str:
        return f"BootstrappingLoss(epsilon={self.epsilon}, detach={self.detach})"


class ProSelfLCLoss(nn.Module):
    """Progressive self label correction: mixes the label with the prediction, the more so the later and the surer.

        r       = p_T = softmax(z / temperature)
        epsilon = g(t) l(p_T),     g(t) = 1 / (1 + exp( -sharpness (t / total - transit) ))
        l       = 1 - H(p_T) / log C     trust "entropy"
                  max_k p_T              trust "max_p"
                  1                      trust "global"

        dL/dz = (1 - epsilon) (p - q) - epsilon p (log p + H(p))        detach False, temperature 1
        dL/dz = p - q~                                                  detach True

    epsilon is a constant under differentiation, one per example.

    total        Gamma, set it to your number of steps; 30,000 is the papers' CIFAR-100
    sharpness    B; the paper tries 8 to 16, and the noisier the labels the smaller the better
    detach       False is the CVPR 2021 paper: entropy is minimised too. True is the 2022 release, made for a
                 temperature below 1; at temperature 1 it only scales cross entropy by 1 - epsilon
    temperature  1 in 2021, 0.4 to 0.8 in 2022; with `detach=False` the gradient flows through p_T as well
    trust        "entropy" in 2021; the best recorded runs of 2022 are "max_p"
    transit      when g is 1/2, as a share of total; 0.5 in the papers

    t is the number of forward passes in training mode so far, saved in `state_dict` as `step`; in evaluation mode it
    stands still. The 2022 release prints KL(q~ || p), which is this less H(q~), with the same derivative.

    Wang et al., CVPR 2021, arXiv:2005.03788, eq. 2-7; arXiv:2207.00118 (from its released code: its text was not
    at hand).
    """

    step: Tensor

    def __init__(
        self,
        total: int = 30_000,
        sharpness: float = 12.0,
        detach: bool = False,
        temperature: float = 1.0,
        trust: Literal["entropy", "max_p", "global"] = "entropy",
        transit: float = 0.5,
    ) -> None:
        super().__init__()
        if not total > 0:
            raise InputError(f"ProSelfLCLoss total is a number of steps above 0, got {total}.")
        if not temperature > 0:
            raise InputError(f"ProSelfLCLoss temperature is a number above 0, got {temperature}.")
        if trust not in ("entropy", "max_p", "global"):
            raise InputError(f"ProSelfLCLoss trust is 'entropy', 'max_p' or 'global', got {trust!r}.")
        self.total = total
        self.sharpness = sharpness
        self.detach = detach
        self.temperature = temperature
        self.trust = trust
        self.transit = transit
        self.register_buffer("step", torch.tensor(0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        own, log_p = _log_probabilities(logits, labels)
        log_r = (bounded(logits) / self.temperature).log_softmax(1)
        epsilon = self._epsilon(log_r.detach(), _tick(self.step) if self.training else self.step)
        r = (log_r.detach() if self.detach else log_r).exp()
        return _mean((epsilon - 1) * own - epsilon * (r * log_p).sum(1))

    def _epsilon(self, log_r: Tensor, step: Tensor) -> Tensor:
        now = torch.sigmoid(self.sharpness * (step.to(log_r) / self.total - self.transit))
        if self.trust == "global":
            return now.expand(len(log_r))
        if self.trust == "max_p":
            return now * log_r.amax(1).exp()
        entropy = -(log_r.exp() * log_r).sum(1)
        return now * (1 - entropy / math.log(log_r.shape[1])).clamp(0, 1)

    def __repr__(self) -> str:
        return (
            f"ProSelfLCLoss(total={self.total}, sharpness={self.sharpness}, detach={self.detach}, "
            f"temperature={self.temperature}, trust={self.trust!r}, transit={self.transit})"
        )


@torch.library.custom_op("metricweight::tick", mutates_args=("step",))
def _tick(step: Tensor) -> Tensor:
    """Counts a pass; returns the count before it.

    An operation of its own, because compilers may read a buffer again in the backward pass, when it has moved on:
    the gradient would be that of the next step, silently (pytorch/pytorch#197039).
    """
    before = step.clone()
    step.add_(1)
    return before


@_tick.register_fake
def _(step: Tensor) -> Tensor:
    return torch.empty_like(step)


def _share(epsilon: float, loss: nn.Module) -> float:
    if not 0 <= epsilon <= 1:
        raise InputError(f"{type(loss).__name__} epsilon is a share from 0 to 1, got {epsilon}.")
    return epsilon


def _log_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each example's own class, [B], and of every class, [B, C]."""
    check_logits(logits, labels)
    log_p = bounded(logits).log_softmax(1)
    return log_p.gather(1, labels.to(logits.device).long()[:, None])[:, 0], log_p


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(len(losses), 1)
