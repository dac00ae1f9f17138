"""What is measured along a run, by name."""

from nonsmooth.networks.observers.batch_sharpnesses import BatchSharpnesses
from nonsmooth.networks.observers.curvatures import PathSplits, Sharpnesses, Stabilities, Steps
from nonsmooth.networks.observers.floors import Floor
from nonsmooth.networks.observers.observer import Observer
from nonsmooth.networks.observers.orbits import Orbit
from nonsmooth.networks.observers.ties import Ties
from nonsmooth.networks.observers.twins import Twins
from nonsmooth.networks.observers.variations import Holders, ZeroedUnits
from nonsmooth.networks.observers.zeros import Zeros

OBSERVERS: dict[str, type[Observer]] = {
    "steps": Steps,
    "path_splits": PathSplits,
    "sharpnesses": Sharpnesses,
    "stabilities": Stabilities,
    "orbit": Orbit,
    "batch_sharpnesses": BatchSharpnesses,
    "zeros": Zeros,
    "floor": Floor,
    "ties": Ties,
    "twins": Twins,
    "holders": Holders,
    "zeroed_units": ZeroedUnits,
}

__all__ = ["OBSERVERS", "Observer"]
