"""How much an example counts, as a function of p, the probability of its own label.

Each of these is a frozen dataclass that is called with p in [0, 1], of any shape and floating dtype, and returns
weights >= 0 of that shape and dtype. A weight is the L1 norm of a loss's derivative with respect to the logits.
Weights too large for the dtype are its largest number, never infinite. `mode` is the p that counts most, None
where no single p does.

Wang et al., IMAE, arXiv:1903.12141 and Derivative Manipulation, arXiv:1905.11233. Formulas and defaults are those
of the papers, slides and released settings unless said.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metricweight.checks import InputError

Weighting = Callable[[Tensor], Tensor]


def largest(w: Tensor) -> Tensor:
    """`w` with the largest number of its dtype in place of infinity."""
    return w.clamp(max=torch.finfo(w.dtype).max)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(sentence)


@dataclass(frozen=True)
class CrossEntropy:
    """Of -log p:  w = 2 (1 - p)."""

    @property
    def mode(self) -> float:
        return 0.0

    def __call__(self, p: Tensor) -> Tensor:
        return 2 * (1 - p)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Of 2 (1 - p), the distance sum_j |p_j - q_j| to the one-hot target:  w = 4 p (1 - p).

    The slides also write it as 1 - p, with half this weight: that is `GeneralisedCrossEntropy(q=1)`.
    """

    @property
    def mode(self) -> float:
        return 1 / 2

    def __call__(self, p: Tensor) -> Tensor:
        return 4 * p * (1 - p)


@dataclass(frozen=True)
class MeanSquaredError:
    """Of (1 - p)^2:  w = 4 p (1 - p)^2. The Brier score sum_j (p_j - q_j)^2 has another direction."""

    @property
    def mode(self) -> float:
        return 1 / 3

    def __call__(self, p: Tensor) -> Tensor:
        return 4 * p * (1 - p) ** 2


@dataclass(frozen=True)
class GeneralisedCrossEntropy:
    """Of (1 - p^q) / q:  w = 2 p^q (1 - p).

    q  in (0, 1]; towards 0 it is cross entropy, at 1 mean absolute error with L = 1 - p
    k  truncated: examples with p <= k weigh nothing (the paper's k is 0.5). The mode is then at k or above, and
       where it is k itself no p reaches it

    Zhang and Sabuncu, NeurIPS 2018; q = 0.7 is the released default.
    """

    q: float = 0.7
    k: float | None = None

    def __post_init__(self) -> None:
        _require(0 < self.q <= 1, f"GeneralisedCrossEntropy q is in (0, 1], got {self.q}.")
        _require(self.k is None or 0 <= self.k < 1, f"GeneralisedCrossEntropy k is in [0, 1), got {self.k}.")

    @property
    def mode(self) -> float:
        return max(self.q / (self.q + 1), self.k or 0.0)

    def __call__(self, p: Tensor) -> Tensor:
        w = 2 * p**self.q * (1 - p)
        return w if self.k is None else w * (p > self.k)


@dataclass(frozen=True)
class SymmetricCrossEntropy:
    """Of alpha CE + beta RCE, with RCE = -a (1 - p):  w = 2 (1 - p) (alpha - beta a p).

    alpha, beta  released settings: (6, 0.1) CIFAR-100, (0.1, 1) CIFAR-10, (0.01, 1) MNIST
    a            what log 0 is replaced by; ln 1e-4 in the released code, often quoted as -4

    Wang et al., ICCV 2019, arXiv:1908.06112.
    """

    alpha: float = 6.0
    beta: float = 0.1
    a: float = math.log(1e-4)

    def __post_init__(self) -> None:
        _require(
            self.alpha >= 0 and self.beta >= 0,
            f"SymmetricCrossEntropy alpha and beta are not negative, got {self.alpha} and {self.beta}.",
        )
        _require(self.a < 0, f"SymmetricCrossEntropy a stands for log 0 and is below 0, got {self.a}.")

    @property
    def mode(self) -> float:
        kappa = -self.beta * self.a
        return max(0.0, 1 / 2 - self.alpha / (2 * kappa)) if kappa else 0.0

    def __call__(self, p: Tensor) -> Tensor:
        return 2 * (1 - p) * (self.alpha - self.beta * self.a * p)


@dataclass(frozen=True)
class Emphasis:
    """Derivative manipulation:  w = exp( beta p^l (1 - p) ),  l = mode / (1 - mode).

    mode  the p that counts most, in [0, 1); raise it with the noise: 0 for clean labels, 1/3, 1/2, 2/3
    beta  how much more it counts: 0 weighs all the same, larger is more peaked. Below 0 the mode counts least

    w(1) = 1 whatever the arguments: an example that is learned is still pushed. The defaults, l = 1/2 and
    beta = 8, are the paper's best on CIFAR-100 with 40 % noise. arXiv:1905.11233, eq. 12.
    """

    mode: float = 1 / 3
    beta: float = 8.0

    def __post_init__(self) -> None:
        _require(0 <= self.mode < 1, f"Emphasis mode is a probability in [0, 1), got {self.mode}.")
        _require(math.isfinite(self.beta), f"Emphasis beta is a finite number, got {self.beta}.")

    @classmethod
    def from_lambda(cls, exponent: float, beta: float) -> "Emphasis":
        """By the paper's lambda, the exponent l >= 0:  mode = l / (l + 1)."""
        _require(0 <= exponent < math.inf, f"Emphasis lambda is a number >= 0, got {exponent}.")
        return cls(exponent / (exponent + 1), beta)

    def __call__(self, p: Tensor) -> Tensor:
        exponent = self.mode / (1 - self.mode)
        return largest((self.beta * (p**exponent * (1 - p))).exp())


def imae(temperature: float = 8.0) -> Emphasis:
    """Improved mean absolute error:  w = exp( temperature p (1 - p) ). arXiv:1903.12141, default T = 8."""
    return Emphasis(mode=0.5, beta=temperature)


@dataclass(frozen=True)
class Normal:
    """The bell of a normal distribution round `mode`:  w = exp( -beta p (p - 2 mode) ).

    mode  in [0, 1]
    beta  >= 0; 1 / (2 variance). No default of the paper is known; these make it `imae()`

    arXiv:1905.11233, section 3.2.2.
    """

    mode: float = 0.5
    beta: float = 8.0

    def __post_init__(self) -> None:
        _require(0 <= self.mode <= 1, f"Normal mode is a probability in [0, 1], got {self.mode}.")
        _require(0 <= self.beta < math.inf, f"Normal beta is a number >= 0, got {self.beta}.")

    def __call__(self, p: Tensor) -> Tensor:
        return largest((-self.beta * (p * (p - 2 * self.mode))).exp())


@dataclass(frozen=True)
class Exponential:
    """w = exp( beta (1 - p) ), which is `Emphasis(mode=0, beta=beta)`; beta < 0 favours what is easy.

    beta  2 on clean CIFAR-100, 1 with noise

    arXiv:1905.11233, section 3.2.2.
    """

    beta: float = 2.0

    def __post_init__(self) -> None:
        _require(math.isfinite(self.beta), f"Exponential beta is a finite number, got {self.beta}.")

    @property
    def mode(self) -> float | None:
        return None if self.beta == 0 else float(self.beta < 0)

    def __call__(self, p: Tensor) -> Tensor:
        return largest((self.beta * (1 - p)).exp())


@dataclass(frozen=True)
class Beta:
    """The beta distribution, up to a constant:  w = p^(a-1) (1 - p)^(eta-1).

    a, eta  > 0; below 1 the weight grows without bound towards p = 0 or p = 1

    Up to a constant, (1, 2) is cross entropy, (2, 2) mean absolute error, (2, 3) mean squared error and (q + 1, 2)
    generalised cross entropy. arXiv:1905.11233, section 3.2.2.
    """

    a: float = 2.0
    eta: float = 2.0

    def __post_init__(self) -> None:
        _require(0 < self.a < math.inf, f"Beta a is a number above 0, got {self.a}.")
        _require(0 < self.eta < math.inf, f"Beta eta is a number above 0, got {self.eta}.")

    @property
    def mode(self) -> float | None:
        if max(self.a, self.eta) <= 1 and (self.a == self.eta or max(self.a, self.eta) < 1):
            return None  # flat, or unbounded at both ends
        if self.a > 1 and self.eta > 1:
            return (self.a - 1) / (self.a + self.eta - 2)
        return float(self.a > self.eta)

    def __call__(self, p: Tensor) -> Tensor:
        return largest(p ** (self.a - 1)) * largest((1 - p) ** (self.eta - 1))


@dataclass(frozen=True)
class FeatureLearningAttention:
    """Medium examples of a batch count most:  w_i = 2 (1 - p_i) v_i / mean_k v_k.

        v = exp( -(p - mean)^2 / (2 sigma^2) )

    mean   in [0, 1], the p round which examples count
    sigma  from 1e-6, how far from it they still do

    In a loss that is a mean over the batch it is cross entropy with constant weights, L = sum_i v_i CE_i / sum_k v_k.
    A weight depends on the other p that it is called with, its batch (`of_batch`); however far all of them are from the
    mean, the nearest count. `even` is w in a batch whose p are spread evenly over [0, 1], a function of p alone, by
    which curves and variances are told. The mode is that of 2 (1 - p) v, a little below the mean.

    The feature learning attention of Wang et al., ID-aware quality for set-based person re-identification,
    arXiv:1911.09143, with the numbers of the authors' released code for class-aware attention.
    """

    of_batch: ClassVar[bool] = True

    mean: float = 0.5
    sigma: float = 0.18

    def __post_init__(self) -> None:
        _require(0 <= self.mean <= 1, f"FeatureLearningAttention mean is a probability in [0, 1], got {self.mean}.")
        _require(1e-6 <= self.sigma < math.inf, f"FeatureLearningAttention sigma is 1e-6 or more, got {self.sigma}.")

    @property
    def mode(self) -> float:
        span = 1 - self.mean  # (p - mean) (1 - p) = -sigma^2
        return max(0.0, self.mean + (span - math.hypot(span, 2 * self.sigma)) / 2)

    def __call__(self, p: Tensor) -> Tensor:
        share = self._log_v(p).flatten().softmax(0).view(p.shape)  # v_i / sum_k v_k, also where all v are as good as 0
        return largest(2 * (1 - p.double()) * share * p.numel()).to(p.dtype)

    def even(self, p: Tensor) -> Tensor:
        """2 (1 - p) v / integral_0^1 v, a function of p alone."""
        ends = [math.erf(x / (self.sigma * math.sqrt(2))) for x in (self.mean, 1 - self.mean)]
        integral = self.sigma * math.sqrt(math.pi / 2) * sum(ends)
        return 2 * (1 - p) * self._log_v(p).exp().to(p.dtype) / integral

    def _log_v(self, p: Tensor) -> Tensor:
        return -(((p.double() - self.mean) / self.sigma) ** 2) / 2
