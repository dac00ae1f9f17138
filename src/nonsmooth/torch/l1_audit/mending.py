"""The mending lines: the code that makes this run's penalty exact, with its optimiser and its λ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from nonsmooth.torch.effective import TABLES, table_of, unwrapped
from nonsmooth.torch.findings.numbers import listed
from nonsmooth.torch.l1_audit.terms import PenaltyTerm
from nonsmooth.torch.proximal import Proximal, weights

__all__ = ["mending_lines"]

AFTER = "after the line that makes your optimizer"
MATRICES = "[p for p in held if p.ndim > 1]"
"""The weights of an optimiser that has no one model."""
LEFT_OUT = {"params", "foreach", "fused", "capturable", "differentiable", "maximize"}


def mending_lines(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    named: Mapping[str, torch.Tensor],
    model: torch.nn.Module | None = None,
) -> str:
    """What to take out and what to write: the optimiser as it is, in a `Proximal`, with λ of Σ|w|.

    A λ that differs between parameters becomes one pair for each λ; λ of a mean is divided by the number of weights
    already. Where λ cannot be told it is `lam`, to be written by hand. "" where all is proximal. For an optimiser
    without an effective step the lines change to SGD. Unless the optimiser holds exactly the parameters of the model,
    it is left as it is: they are told by their places in it, and by name in a comment.

    >>> net = torch.nn.Linear(2, 1)
    >>> term = PenaltyTerm("weight", 0.5, "autograd", "train.py:7")
    >>> print(mending_lines(torch.optim.SGD(net.parameters(), lr=0.1), [term], dict(net.named_parameters()), net))
    from nonsmooth.penalties import L1
    from nonsmooth.torch import Proximal, weights
    <BLANKLINE>
    # train.py:7: take the penalty out of the loss
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), L1(0.5), params=weights(model))
    >>> print(mending_lines(torch.optim.SGD(net.parameters(), lr=0.1), [term], dict(net.named_parameters())))
    from nonsmooth.penalties import L1
    from nonsmooth.torch import Proximal
    <BLANKLINE>
    # train.py:7: take the penalty out of the loss
    # after the line that makes your optimizer; penalised: weight
    held = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer = Proximal(optimizer, L1(0.5), params=[p for p in held if p.ndim > 1])
    """
    wrong = [term for term in terms if term.through == "detached" or (term.through != "proximal" and term.lam > 0)]
    if not wrong:
        return ""
    lams: dict[str, float] = {}
    for term in (term for term in wrong if term.lam > 0):
        lams[term.name] = lams.get(term.name, 0.0) + term.lam
    already = {term.name for term in terms if term.through == "proximal"}
    removal = _removals(wrong)
    if already & {term.name for term in wrong}:
        return "\n".join([*removal, "# the Proximal stays as it is"])
    if not lams:
        removal.append("# lam, and on which weights, could not be told: write those of your script")
    own = [p for group in unwrapped(optimizer).param_groups for p in group["params"]]
    code: Callable[[str], str]
    if model is not None and {id(p) for p in model.parameters()} == {id(p) for p in own}:
        whole, proper, all_of_them = "model.parameters()", weights(model), "weights(model)"
        code = 'model.get_parameter("{}")'.format
    else:
        lams = {name: lam for name, lam in lams.items() if name in named and any(p is named[name] for p in own)}
        whole, proper, all_of_them = "held", [p for p in own if p.ndim > 1], MATRICES
        at = {id(p): i for i, p in enumerate(own)}
        code = lambda name: f"held[{at[id(named[name])]}]"  # noqa: E731
        removal.append(f"# {AFTER}" + (f"; penalised: {listed(list(lams))}" if lams else ""))
        removal.append('held = [p for group in optimizer.param_groups for p in group["params"]]')
    pairs = _pairs(lams, named, proper, all_of_them, code) if lams else [("lam", all_of_them)]
    alone = len(pairs) == 1
    penalty = (
        f"L1({pairs[0][0]}), params={pairs[0][1]}"
        if alone
        else "[" + ", ".join(f"(L1({lam}), {which})" for lam, which in pairs) + "]"
    )
    head = [
        "from nonsmooth.penalties import L1",
        f"from nonsmooth.torch import Proximal{', weights' * any('weights(' in which for _, which in pairs)}",
        "",
    ]
    if already:
        return "\n".join([*head, *removal, f"# and give the Proximal the pairs {penalty} too"])
    return "\n".join([*head, *removal, *_wrapped(optimizer, penalty, whole)])


def _removals(wrong: Sequence[PenaltyTerm]) -> list[str]:
    what = {
        "autograd": "take the penalty out of the loss",
        "grad": "do not add λ sign(w) to .grad",
        "detached": "take out the penalty, which has no gradient",
    }
    lines = [f"# {term.place}: {what[term.through]}" if term.place else f"# {what[term.through]}" for term in wrong]
    return list(dict.fromkeys(lines))


def _pairs(
    lams: Mapping[str, float],
    named: Mapping[str, torch.Tensor],
    proper: Iterable[torch.Tensor],
    all_of_them: str,
    code: Callable[[str], str],
) -> list[tuple[str, str]]:
    """(λ, the parameters in code) for each λ; biases and norms are left to their fate only where weights remain.

    proper: the weights, which are `all_of_them` in code; one parameter is `code` of its name.
    """
    wanted, by = {id(p) for p in proper}, dict[str, list[str]]()
    for name, lam in ({n: lam for n, lam in lams.items() if n in named and id(named[n]) in wanted} or lams).items():
        by.setdefault(f"{lam:.6g}", []).append(name)
    if len(by) == 1 and {id(named[name]) for names in by.values() for name in names} == wanted:
        return [(next(iter(by)), all_of_them)]
    return [(lam, f"[{', '.join(map(code, names))}]") for lam, names in by.items()]


def _wrapped(optimizer: Any, penalty: str, whole: str) -> list[str]:
    """The optimiser in a Proximal; whole: all that it holds, in code."""
    inner = unwrapped(optimizer)
    kind = type(inner)
    try:
        table_of(inner)
    except TypeError as reason:
        why = str(reason).removeprefix("Proximal: ")
        return [f"# {why}", f"optimizer = Proximal(torch.optim.SGD({whole}, lr=...), {penalty})"]
    plain = kind in TABLES and kind.__module__.startswith("torch.optim") and len(inner.param_groups) == 1
    if whole == "held":
        return [f"optimizer = Proximal(optimizer, {penalty})"]
    if not plain or isinstance(optimizer, Proximal):
        return [f"optimizer = Proximal(optimizer, {penalty})  # {AFTER}"]
    group = inner.param_groups[0]
    options = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in LEFT_OUT or name not in group:
            continue
        value = group.get("initial_lr", group["lr"]) if name == "lr" else group[name]
        value = value.item() if isinstance(value, torch.Tensor) else value
        if name == "lr" or value != parameter.default:
            options.append(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value!r}")
    if group.get("maximize"):
        options.append("maximize=True")
    return [f"optimizer = Proximal(torch.optim.{kind.__name__}({whole}, {', '.join(options)}), {penalty})"]
