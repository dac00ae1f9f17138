"""What the tests of `simulate` share: some problems, and labelled arrays."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nonsmooth.objectives import Hinge, Logistic, MaxLinear, random_least_squares


def array(values, *dims, **coords):
    return xr.DataArray(values, dims=dims, coords=coords)


TALL, WIDE = random_least_squares(24, 6, seed=1), random_least_squares(8, 12, seed=2)
CLASSES = Logistic(TALL.X, np.sign(TALL.y))
EDGES = Hinge(TALL.X, np.sign(TALL.y))


def planes(seed, k=7, p=4):
    """A maximum of linear functions that is bounded below: 0 is a mean of its slopes."""
    A = np.random.default_rng(seed).standard_normal((k, p))
    return MaxLinear(np.vstack([A, -A.mean(axis=0)]), np.linspace(-1, 1, k + 1))


PLANES = planes(4)
