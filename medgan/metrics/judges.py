"""Probes that learn on some examples to tell two kinds apart, and judge others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from medgan.metrics.utility import auroc

#: Penalties on the standardised coefficients, of which an inner split of the training sections takes the best.
PENALTIES = (3.0, 30.0, 300.0)
#: The network's windows along the rim, its width, steps, batch and rate.
WINDOW, WIDTH, STEPS, BATCH, RATE = 16, 12, 150, 48, 4e-3
#: Windows drawn from each section when it is judged.
WINDOWS = 6

#: (training part, tested part) as masks -> logits of the tested part.
Judge = Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.float64]]


def by_statistics(features: NDArray[np.float64], truth: NDArray[np.bool_], units: NDArray[np.intp]) -> Judge:
    """A regularised logistic regression; the penalty is chosen by an inner split.

    Args:
        features: (N, F).
        truth: (N,) what is to be told.
        units: (N,) what must not be divided between the parts of the inner split.
    """
    def judge(train: NDArray[np.bool_], test: NDArray[np.bool_]) -> NDArray[np.float64]:
        known, wanted = features[train], truth[train]
        # Inner folds are over lesions: sections of one lesion are alike.
        inner = np.unique(units[train], return_inverse=True)[1] % 3
        best = max(PENALTIES, key=lambda penalty: _inner(known, wanted, inner, penalty))
        return logistic(known, wanted, best)(features[test])

    return judge


def _inner(features: NDArray[np.float64], truth: NDArray[np.bool_], folds: NDArray[np.intp], penalty: float) -> float:
    reached = []
    for fold in range(3):
        test = folds == fold
        if test.any() and 0 < truth[~test].mean() < 1 and 0 < truth[test].mean() < 1:
            score = logistic(features[~test], truth[~test], penalty)(features[test])
            reached.append(float(auroc(truth[test], score)[0]))
    return float(np.mean(reached)) if reached else 0.5


def logistic(features: NDArray[np.float64], truth: NDArray[np.bool_], penalty: float
             ) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A ridge logistic regression on standardised features, fitted by Newton's method.

    Args:
        features: (N, F).
        truth: (N,).
        penalty: On half the squared coefficients; the intercept is free.

    Returns:
        (M, F) -> (M,) logits.
    """
    middle, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)

    def ready(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # A feature far outside what was learned from must not decide alone.
        return np.hstack([np.clip((values - middle) / spread, -4, 4), np.ones((len(values), 1))])

    design = ready(features)
    ridge = np.full(design.shape[1], penalty)
    ridge[-1] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (chance - truth) + ridge * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return lambda values: np.asarray(ready(values) @ weights)


def by_network(strips: Sequence[NDArray[np.float32]], truth: NDArray[np.bool_], seed: int) -> Judge:
    """A small convolutional network on windows along closed borders.

    Args:
        strips: (C, P, D) unrolled borders, P of any length.
        truth: (N,) what is to be told.
        seed: Of its weights and windows.
    """
    # A border is closed: repeated, it has a whole window from every start.
    closed = [np.concatenate([strip] * (1 + -(-WINDOW // strip.shape[1])), axis=1) for strip in strips]

    def windows(index: list[int], rng: np.random.Generator) -> torch.Tensor:
        drawn = []
        for n in index:
            start = int(rng.integers(strips[n].shape[1]))
            window = closed[n][:, start : start + WINDOW]
            drawn.append(window[:, ::-1] if rng.random() < 0.5 else window)
        return torch.from_numpy(np.stack(drawn).copy())

    def judge(train: NDArray[np.bool_], test: NDArray[np.bool_]) -> NDArray[np.float64]:
        rng = np.random.default_rng([seed, 31])
        scale = float(np.mean([strips[n].std() for n in np.flatnonzero(train).tolist()])) or 1.0
        with torch.random.fork_rng(devices=[]):  # dropout draws from it as well
            torch.manual_seed(seed)
            network = _strip_network(*strips[0].shape[::2])
            optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
            pools = [np.flatnonzero(train & (truth == wanted)) for wanted in (True, False)]
            wanted = torch.cat([torch.ones(BATCH // 2), torch.zeros(BATCH // 2)])
            for _ in range(STEPS):
                index = np.concatenate([rng.choice(pool, BATCH // 2) for pool in pools])
                loss = F.binary_cross_entropy_with_logits(network(windows(index.tolist(), rng) / scale)[:, 0], wanted)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        network.eval()
        index = np.flatnonzero(test).repeat(WINDOWS)
        with torch.no_grad():
            logits = network(windows(index.tolist(), rng) / scale)[:, 0]
        return np.asarray(logits.double().numpy().reshape(-1, WINDOWS).mean(axis=1))

    return judge


def _strip_network(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.GroupNorm(3, WIDTH), nn.LeakyReLU(0.1), nn.Conv2d(WIDTH, WIDTH, (3, depth), padding=(1, 0)),
        nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(WIDTH, 1))
