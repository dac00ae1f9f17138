"""What is measured along a run, by name."""

from nonsmooth.networks.observers.curvatures import BatchSteps, PathSplits, Sharpnesses, Stabilities, Steps
from nonsmooth.networks.observers.observer import Observer

OBSERVERS: dict[str, type[Observer]] = {
    "steps": Steps,
    "batch_steps": BatchSteps,
    "path_splits": PathSplits,
    "sharpnesses": Sharpnesses,
    "stabilities": Stabilities,
}

__all__ = ["OBSERVERS", "Observer"]
