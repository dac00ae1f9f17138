"""One optimiser step, measured: its curvature, and how much of it came from kinks."""

from nonsmooth.torch.steps.holder import Holder, holder
from nonsmooth.torch.steps.step import OrbitCurvature, Split, Step, measure_step

__all__ = ["Holder", "OrbitCurvature", "Split", "Step", "holder", "measure_step"]
