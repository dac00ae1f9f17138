"""Whether a kink survives the expression that it stands in: relu(x)², x·relu(x) and a Huber loss by `where` are C¹.

While a closure runs, the elementwise operations are kept as small expressions of one tensor, their root, with a few of
its units. At the end the root is moved through the points where an operation's piece changes, and the value and slope
of all that leaves the expression are compared on both sides. No list of spellings is needed, and no data near a kink.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from nonsmooth.torch.selection.pieces import Rule, base_name, is_in_place
from nonsmooth.torch.selection.pointwise import POINTWISE as RULES

__all__ = ["Expression", "Expressions"]

LANES = 16
JUMP = 1e-6
"""A jump of the slope below this share of the slopes beside it is rounding."""

CASTS = {"float", "double", "half", "bfloat16", "to", "type", "type_as"}
SMOOTH = {
    *(
        "add",
        "sub",
        "subtract",
        "mul",
        "multiply",
        "div",
        "divide",
        "true_divide",
        "neg",
        "negative",
        "positive",
        "pow",
    ),
    *("square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sin", "cos", "erf"),
    *("logaddexp", "xlogy", "lerp", "addcmul", "addcdiv", "where", "masked_fill", "float_power", "hypot", "atan"),
    *("logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not"),
    *("__and__", "__or__", "__invert__", "__xor__", "__rsub__", "__rtruediv__", "__rpow__", "__pow__", "__radd__"),
    *("__rmul__", "__add__", "__sub__", "__mul__", "__truediv__", "__neg__", "__iadd__", "__imul__", "__isub__"),
    *("softplus", "elu", "celu", "gelu", "silu", "mish", "logsigmoid", "softsign", "tanhshrink", "detach", "clone"),
    *CASTS,
}
POINTWISE = SMOOTH | {name for name, rule in RULES.items() if rule.pointwise}
READS = {"__bool__", "item", "tolist", "__float__", "__int__", "__index__", "numpy"}
"""What hands a number out of torch without making a tensor."""


@dataclass(eq=False)
class Expression:
    """A tensor made elementwise from one root: how, or where there is no how, the root itself.

    >>> x = Expression(torch.Size([3]))
    >>> Expression(torch.Size([3]), x, torch.square, (x,)).origin is x
    True
    """

    shape: torch.Size
    root: Expression | None = None
    call: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    values: torch.Tensor | None = None
    """Of a root: a few of its units."""
    version: int = 0
    """Of the tensor, which an in-place operation raises."""
    escapes: bool = False
    """Whether anything but an expression of the same root uses it."""

    @property
    def origin(self) -> Expression:
        return self if self.root is None else self.root

    @property
    def parents(self) -> Iterator[Expression]:
        return (a for a in tree_leaves((self.args, self.kwargs)) if isinstance(a, Expression))


class Expressions:
    """The elementwise expressions of one run.

    >>> made, x = Expressions(), torch.linspace(-1, 1, 5, requires_grad=True)
    >>> r = torch.relu(x)
    >>> kink = made.saw(torch.relu, (x,), {}, r, made.before(torch.relu, (x,), {}))
    >>> square = made.saw(torch.square, (r,), {}, torch.square(r), made.before(torch.square, (r,), {}))
    >>> square.escapes = True
    >>> made.is_smooth(kink, RULES["relu"])
    True
    >>> kink.escapes = True  # relu(x) is used on its own as well
    >>> made.is_smooth(kink, RULES["relu"])
    False
    """

    def __init__(self) -> None:
        self.of: Any = WeakTensorKeyDictionary()
        self.made: defaultdict[int, list[Expression]] = defaultdict(list)

    def before(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Expression]:
        """The expressions among a call's arguments, asked before it, since it may write into them."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not _is_pointwise(call, args) or any(t.layout is not torch.strided or not t.numel() for t in tensors):
            return {}
        return {id(t): self._of(t) for t in tensors if self._varies(t)}

    def saw(
        self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, before: dict[int, Expression]
    ) -> Expression | None:
        """Keep what a call made, or note that its arguments leave their expressions."""
        if base_name(call) == "__setitem__":
            call, out = torch.masked_fill, args[0]
        elif not isinstance(out, torch.Tensor):
            before = {}
        if not before:
            if base_name(call) in READS or any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(out)):
                self.escape((args, kwargs))
            return None
        roots = {id(e.origin): e.origin for e in before.values()}
        root = next(iter(roots.values()))
        if len(roots) > 1 or root.shape != out.shape:
            for e in before.values():
                e.escapes = True
            self.of[out] = e = self._root(out)
            return e
        lanes = _lanes(out.shape)

        def keep(a: Any) -> Any:
            if not isinstance(a, torch.Tensor):
                return a
            return before[id(a)] if id(a) in before else _sample(a.detach(), out.shape, lanes)

        e = Expression(out.shape, root, call, tree_map(keep, args), tree_map(keep, kwargs), version=_version(out))
        self.made[id(root)].append(e)
        self.of[out] = e
        return e

    def escape(self, things: Any) -> None:
        for t in tree_leaves(things):
            if isinstance(t, torch.Tensor) and t in self.of:
                self.of[t].escapes = True

    def is_smooth(self, kink: Expression, rule: Rule) -> bool:
        """Whether all that leaves the expression is C¹ where the piece of `kink` changes."""
        if kink.root is None or kink.escapes:
            return False
        above, ends = {id(kink)}, []
        for e in self.made[id(kink.root)]:
            if any(id(a) in above for a in e.parents):
                above.add(id(e))
                ends += [e] if e.escapes else []
        if not ends:
            return False
        try:
            with torch.enable_grad(), torch.inference_mode(False):
                return _Probe(kink, rule).agrees(ends)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return False

    def _varies(self, t: torch.Tensor) -> bool:
        return t in self.of or t.requires_grad

    def _of(self, t: torch.Tensor) -> Expression:
        if t not in self.of or self.of[t].version != _version(t):
            self.of[t] = self._root(t)
        return self.of[t]

    def _root(self, t: torch.Tensor) -> Expression:
        return Expression(t.shape, values=_sample(t.detach(), t.shape, _lanes(t.shape)), version=_version(t))


def _is_pointwise(call: Any, args: tuple[Any, ...]) -> bool:
    """By its name; and x[mask] = number, which is masked_fill."""
    if base_name(call) == "__setitem__":
        x, mask, value = args
        is_mask = isinstance(mask, torch.Tensor) and mask.dtype is torch.bool and mask.shape == x.shape
        return is_mask and isinstance(value, (int, float))
    return base_name(call) in POINTWISE


def _version(t: torch.Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _lanes(shape: torch.Size) -> torch.Tensor:
    """A few units, from the first to the last."""
    n = shape.numel()
    return torch.arange(min(n, LANES)) * max(n - 1, 0) // max(min(n, LANES) - 1, 1)


def _sample(t: torch.Tensor, shape: torch.Size, lanes: torch.Tensor) -> torch.Tensor:
    at = torch.unravel_index(lanes.to(t.device), shape)
    found = t.expand(shape)[at]
    return (found.double() if found.is_floating_point() else found).cpu()


class _Probe:
    """The root of a kink moved through its breakpoints, on each lane with that lane's constants."""

    def __init__(self, kink: Expression, rule: Rule) -> None:
        self.kink, self.rule, self.root = kink, rule, kink.origin

    def agrees(self, ends: list[Expression]) -> bool:
        low, high, lanes = self.breaks()
        if not len(low):
            return False
        h = 1e-3 * ((low + high) / 2).abs().clamp(min=1.0)
        for end in ends:
            if end.call is None:
                return False
            before, after, *beside = (self.slope(end, at, lanes) for at in (low, high, low - h, high + h))
            scales = [torch.maximum(a.abs(), b.abs()) for a, b in zip(*beside, strict=True)]
            if not bool((scales[1] > 0).any()):
                return False  # as far as these units show it does not depend on the root
            for a, b, scale in zip(before, after, scales, strict=True):
                if not bool(((b - a).abs() <= JUMP * scale).all()):
                    return False
        return True

    def breaks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Brackets of the root's values where the piece changes, a rounding wide, and the lane of each."""
        values = self.root.values
        assert values is not None
        reach = max(100.0, 10 * float(values.abs().max()))
        powers = torch.logspace(-4, torch.tensor(reach).log10().item(), 150, dtype=torch.float64)
        grid = torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])
        n = len(values)
        lanes = torch.arange(n).repeat_interleave(len(grid))
        piece = self.piece(grid.repeat(n), lanes).reshape(n, len(grid))
        lane, at = torch.nonzero(piece[:, 1:] != piece[:, :-1], as_tuple=True)
        low, high, start = grid[at], grid[at + 1], piece[lane, at]
        for _ in range(80):
            middle = (low + high) / 2
            same = self.piece(middle, lane) == start
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return low, high, lane

    def piece(self, rho: torch.Tensor, lanes: torch.Tensor) -> torch.Tensor:
        known: dict[int, torch.Tensor] = {id(self.root): rho}
        args, kwargs = self.arguments(self.kink, known, lanes)
        found = self.rule.locate(self.kink.call, args, kwargs)  # type: ignore[arg-type]
        if not isinstance(found, torch.Tensor):
            raise ValueError("no piece")
        return found.expand(rho.shape)

    def slope(self, end: Expression, rho: torch.Tensor, lanes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rho = rho.detach().clone().requires_grad_()
        value = self.value(end, {id(self.root): rho}, lanes).double()
        (slope,) = torch.autograd.grad(value.sum(), rho, allow_unused=True) if value.requires_grad else (None,)
        return value.detach().expand(rho.shape), torch.zeros_like(rho) if slope is None else slope

    def value(self, e: Expression, known: dict[int, torch.Tensor], lanes: torch.Tensor) -> torch.Tensor:
        if id(e) not in known:
            args, kwargs = self.arguments(e, known, lanes)
            assert e.call is not None
            if base_name(e.call) in CASTS:
                known[id(e)] = args[0].double()
            else:
                known[id(e)] = e.call(*args, **kwargs)
        return known[id(e)]

    def arguments(
        self, e: Expression, known: dict[int, torch.Tensor], lanes: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def put(a: Any) -> Any:
            if isinstance(a, Expression):
                return self.value(a, known, lanes)
            return a[lanes] if isinstance(a, torch.Tensor) else a

        args = tree_map(put, e.args, is_leaf=lambda a: isinstance(a, Expression))
        kwargs = tree_map(put, e.kwargs, is_leaf=lambda a: isinstance(a, Expression))
        if is_in_place(e.call, args, kwargs) and isinstance(args[0], torch.Tensor):
            args = (args[0].clone(), *args[1:])
        return args, kwargs
