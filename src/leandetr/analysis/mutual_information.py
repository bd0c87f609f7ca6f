"""Mutual information from samples, by nearest neighbours: KSG (Kraskov, Stoegbauer and Grassberger, 2004, estimator 1) between
two continuous variables, and Ross (2014) between a continuous one and classes.

With eps_i the distance of sample i to its k-th neighbour in the joint space (largest coordinate difference), and n_x, n_y the
numbers of samples that are nearer than eps_i in either space alone,

    I(X; Y) = digamma(k) + digamma(n) - mean(digamma(n_x + 1) + digamma(n_y + 1))

For classes, eps_i is the distance to the k-th neighbour of the same class, of n_c samples, and m_i the number of all samples
nearer than that:

    I(X; C) = digamma(n) + mean(digamma(k) - digamma(n_c) - digamma(m_i + 1))

Bias. No bins have to be chosen, and for independent variables the error is around zero (it may be slightly negative). Strong
dependence is underestimated: telling I bits apart takes some 2^I samples, and the more dimensions the more, so that numbers of
equally many samples and dimensions can be compared, and be read as lower bounds. What is estimated of principal components is a
lower bound of the whole variables' information already, because no function of a variable knows more than it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3
PARTS = 4
BITS_A_NAT = 1.4426950408889634


@dataclass(frozen=True)
class Estimate:
    """bits: the estimate. error: its standard error, from estimates on a quarter of the samples each; NaN where they are too
    few. shuffled: the same estimator's answer when one variable is shuffled, where the truth is 0."""

    bits: float
    error: float
    shuffled: float


def mutual_information(x: Tensor, y: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """(n, d) and (n, e) samples -> KSG's estimate of I(X; Y) in bits. Memory grows with n^2.

    Raises ValueError where there are not more samples than neighbours.
    """
    n = _enough(x, neighbours)
    in_x, in_y = _distances(x, seed=0), _distances(y, seed=1)
    radius = torch.maximum(in_x, in_y).kthvalue(neighbours, dim=1).values[:, None]
    counts = torch.stack([(distances < radius).sum(1) for distances in (in_x, in_y)]).double()
    k, all_of_them = torch.tensor([neighbours, n], dtype=torch.double).digamma()
    return BITS_A_NAT * (k + all_of_them - (counts + 1).digamma().sum(0).mean()).item()


def class_information(x: Tensor, classes: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """(n, d) samples and their (n,) classes -> Ross's estimate of I(X; C) in bits. Classes of one sample are left out.

    Raises ValueError where there are not more samples than neighbours.
    """
    _enough(x, neighbours)
    sizes = torch.bincount(classes)[classes]
    x, classes, sizes = x[sizes > 1], classes[sizes > 1], sizes[sizes > 1]
    if not len(x):
        return 0.0
    distances = _distances(x, seed=0)
    same = distances.masked_fill(classes[:, None] != classes, torch.inf).sort(1).values
    k = (sizes - 1).clamp(max=neighbours)
    radius = same.gather(1, k[:, None] - 1)
    nearer = (distances < radius).sum(1)
    parts = torch.stack([k.double(), sizes.double(), nearer.double() + 1]).digamma()
    n = torch.tensor(float(len(x)), dtype=torch.double).digamma()
    return BITS_A_NAT * (n + (parts[0] - parts[1] - parts[2]).mean()).item()


def entropy(counts: Tensor) -> float:
    """The entropy in bits of a distribution given by its counts; an empty one has none."""
    p = counts[counts > 0].double() / counts.sum()
    return -(p * p.log2()).sum().item() if len(p) else 0.0


def estimate(measure: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, seed: int = 0) -> Estimate:
    """An estimate of I(X; Y) from (n, ...) samples of both, with its error and its answer to shuffled samples."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    error = torch.nan
    if len(x) >= PARTS * 10 * NEIGHBOURS:
        parts = torch.tensor([measure(x[part], y[part]) for part in order.chunk(PARTS)], dtype=torch.double)
        error = parts.std().item() / PARTS**0.5
    return Estimate(measure(x, y), error, measure(x, y[order]))


def principal(x: Tensor, components: int) -> Tensor:
    """(n, d) -> (n, min(components, rank)), the coordinates along the directions of largest variance, each of variance 1."""
    centred = x.double() - x.double().mean(0)
    directions, scales, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = int((scales > 1e-9 * scales[:1]).sum())
    return directions[:, : min(components, kept)] * len(x) ** 0.5


def _enough(x: Tensor, neighbours: int) -> int:
    if len(x) <= neighbours:
        raise ValueError(f"{len(x)} samples for {neighbours} neighbours; give more of them")
    return len(x)


def _distances(x: Tensor, seed: int) -> Tensor:
    """(n, d) -> (n, n), the largest differences of coordinates, infinite to itself. The unit is the coordinates' mean standard
    deviation, so that neighbours in the joint space do not depend on what the two variables are measured in.

    Noise far below any difference that means something, another in each variable, keeps repeated values from having neighbours
    at distance 0, for which the estimators are not made.
    """
    x = x.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    x = x / x.var(0, correction=0).mean().sqrt().clamp(min=1e-12) + 1e-9 * noise
    return torch.cdist(x, x, p=torch.inf).fill_diagonal_(torch.inf)
