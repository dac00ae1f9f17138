"""The probes of a Monitor: what one of them measures of a step, as a row of plain data."""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.curvature import Sharpness, sharpness_of, to_follow
from nonsmooth.torch.hessian import WIDE, Hessian
from nonsmooth.torch.outside import copies
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.stability import Stability, live_scale, size_of, stability_from
from nonsmooth.torch.steps import OrbitCurvature
from nonsmooth.torch.steps.evaluation import kept, put
from nonsmooth.torch.steps.step import Vectors, measured

__all__ = ["Probes", "checksum", "checksums", "quietly", "unchanged"]

Closure = Callable[[], torch.Tensor]
FAR = 100.0
"""A weight whose effective step is so many times that of the median weight has hardly had a gradient so far."""
SEEN = 10_000
"""The median is of so many weights of a tensor."""


class Probes:
    """Measures steps of an optimiser; what it found last is where the next estimate starts.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> probes = Probes(w, torch.optim.SGD([w], lr=0.5), window=10)
    >>> row = probes.curvature(lambda: 1.5 * w.square().sum())
    >>> row["sharpness"], row["threshold"], row["ratio"]
    (3.0, 4.0, 0.75)
    """

    def __init__(self, model: Any, optimizer: Optimizer, window: int, few: int = WIDE) -> None:
        self.optimizer, self.few = optimizer, few
        named = model.named_parameters() if isinstance(model, torch.nn.Module) else ()
        self.names = {id(p): n.replace("_orig_mod.", "") for n, p in named}
        self.orbit = OrbitCurvature(window)
        self.last: list[Sharpness] = []
        self.bare = False

    def params(self) -> list[tuple[str, torch.Tensor]]:
        """The parameters of the optimiser that learn, with their names, or where they have none their index in it."""
        held = (p for group in self.optimizer.param_groups for p in group["params"])
        return [(self.names.get(id(p), str(i)), p) for i, p in enumerate(held) if p.requires_grad]

    def before(self) -> Sequence[torch.Tensor]:
        """Copies of the parameters as they are now, for `step`; of more than `few` entries they wait outside."""
        return copies((p for _, p in self.params()), self.few)

    def step(self, closure: Closure, before: Sequence[torch.Tensor] | None) -> dict[str, Any]:
        """`measure_step` from `before` to where the parameters are now."""
        assert before is not None
        params = self.params()
        held = [p for _, p in params]
        after = [p.detach().clone() for p in held]
        with kept(held, after):  # unseen by autograd: a graph of the script's that holds them stays good
            put(held, before)
            step, vectors = measured(closure, params, after, x=before)
        self.orbit.update(step)
        split = step.frozen
        return {
            "loss": step.loss_before,
            "loss_after": step.loss_after,
            "predicted": step.predicted,
            "curvature": step.curvature,
            "smooth": split.smooth,
            "kink": split.kink,
            "kink_share": split.share,
            "kink_share_by_layer": dict(split.by_layer),
            "orbit_curvature": self.orbit.value,
            "lipschitz": step.lipschitz,
            "length": step.length,
            "flipped": step.flipped,
            "units": sum(f.units for f in step.flips if not f.whole),
            "flips_by_layer": step.flips_by_layer,
            "active_by_layer": vectors.active,
            "silent_by_layer": vectors.silent,
            "ties": step.ties,
            "undefined": list(step.undefined),
            "unseen": list(step.unseen),
            "selection": [list(digest) for digest in vectors.digests],
        } | self._threshold(held, before, vectors)

    def _threshold(self, held: list[torch.Tensor], before: Sequence[torch.Tensor], vectors: Vectors) -> dict[str, Any]:
        """The step's curvature over the optimiser's threshold, and that threshold where it is one number."""
        try:
            scale = live_scale(self.optimizer)
        except (TypeError, ValueError):
            return {}
        place = {id(p): i for i, p in enumerate(held)}
        if any(id(p) not in place for p in scale.params):
            return {}
        order = [place[id(p)] for p in scale.params]
        D = (held[i].detach().double() - before[i].double() for i in order)  # one parameter's at a time
        g, g_next = ([of[i] for i in order] for of in (vectors.g, vectors.g_next))
        found: dict[str, Any] = {"step_ratio": scale.ratio(D, g, g_next)}
        first = scale.scales[0]
        if isinstance(first, float) and all(isinstance(s, float) and s == first for s in scale.scales):
            found["threshold"] = 1 / first
        return found

    def curvature(self, closure: Closure) -> dict[str, Any]:
        """The sharpness against the optimiser's threshold; of the Hessian alone for one that has none."""
        try:
            with eagerly(), unchanged([p for _, p in self.params()], self.few):
                return self._curvature(closure)
        except NotImplementedError as error:
            why = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"the sharpness cannot be measured: torch has no second derivative here ({why})"
            ) from error

    def _curvature(self, closure: Closure) -> dict[str, Any]:
        if not self.bare:
            try:
                self._fit(size_of(self.optimizer))
                found = stability_from(self.last, self.optimizer, closure, tol=0.02)
            except TypeError:
                pass  # an optimiser without a threshold
            else:
                self.last = [to_follow(found.estimate)]
                more = {"threshold": found.threshold, "ratio": found.ratio}
                more |= _dormant(found)
                return {"sharpness": found.sharpness, "residual": found.residual} | more | _cost_of(found.estimate)
        params = [p for _, p in self.params()]
        self._fit(sum(p.numel() for p in params))
        bare = sharpness_of(Hessian(closure, params, who="sharpness"), 1, 0.02, self.last)
        self.bare, self.last = True, [to_follow(bare)]
        return {"sharpness": float(bare.value[0]), "residual": float(bare.residual[0])} | _cost_of(bare)

    def _fit(self, size: int) -> None:
        """Forget the last estimate where parameters were frozen or added since."""
        if self.last and len(self.last[0].vectors) != size:
            self.last = []


@contextlib.contextmanager
def unchanged(params: Sequence[torch.Tensor], few: int = WIDE) -> Iterator[None]:
    """Parameters are bit by bit what they were, though a closure writes to them, as an embedding's `max_norm` does.

    What comes back is what was there, by a CRC-32, or nothing does: raises OSError where a disk lost it.

    >>> w = torch.ones(2)
    >>> with unchanged([w]):
    ...     _ = w.mul_(3)
    >>> w.tolist()
    [1.0, 1.0]
    """
    before, checks = copies(params, few), [checksum(p) for p in params]
    try:
        yield
    finally:
        for i, (p, check) in enumerate(zip(params, checks, strict=True)):
            if checksum(p) != check:
                x = before[i]
                if checksum(x) != check:
                    raise OSError("the closure wrote to the weights, and the disk lost what they were before.")
                p.data.copy_(x)


def checksum(p: torch.Tensor, start: int = 0) -> int:
    """A CRC-32 of a tensor's bits, after those that `start` is of.

    >>> checksum(torch.zeros(3)) == zlib.crc32(bytes(12))
    True
    """
    return zlib.crc32(p.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data, start)


def _dormant(found: Stability) -> dict[str, float]:
    """The part of the eigenvector, squared, in weights whose effective step is far above the median weight's."""
    some = []
    for s in found.scale.scales:  # one parameter's at a time
        if not isinstance(s, torch.Tensor):
            return {}
        some.append(s.reshape(-1)[:: s.numel() // SEEN + 1].clone())  # a view would hold all of it
    far = FAR * torch.cat(some).median()
    parts = found.estimate.vectors[:, 0].split([p.numel() for p in found.scale.params])
    above = ((v, (s.reshape(-1) > far).to(v.device)) for v, s in zip(parts, found.scale.scales, strict=True))
    return {"dormant": sum(float(v[dormant].square().sum()) for v, dormant in above)}


def _cost_of(found: Sharpness) -> dict[str, Any]:
    return {"products": found.products, "converged": found.converged}


def checksums(params: Sequence[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """A CRC-32 of the bits of each layer's parameters, by the name of the layer.

    >>> checksums([("0.weight", torch.zeros(2)), ("0.bias", torch.zeros(1))]) == {"0": zlib.crc32(bytes(12))}
    True
    """
    found: dict[str, int] = {}
    for name, p in params:
        layer = name.rpartition(".")[0] or name
        found[layer] = checksum(p, found.get(layer, 0))
    return found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No warning is shown meanwhile. The filters are not touched: that would make old warnings show again.

    >>> with quietly():
    ...     warnings.showwarning("not shown", UserWarning, "here", 1)
    """
    shown = warnings.showwarning
    warnings.showwarning = lambda *args, **kwargs: None
    try:
        yield
    finally:
        warnings.showwarning = shown
