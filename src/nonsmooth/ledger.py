"""Claims, evidence and verdicts: a claim is a value, its verdict is computed, its row is a line of JSON.

A claim states words, a source, a relation and an experiment. The experiment returns `Evidence`: for each case
(a step size, a penalty) independent measurements and a prediction. The relation turns each case into a margin,
positive where it holds, over the whole 95 % interval of the mean. All margins positive: supported. A case whose
whole interval violates the relation: refuted. Anything else: undecided. Each claim also carries mutants: the same
experiment under a condition in which the claim is false, which must come out refuted, or the test has no power.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nonsmooth.plots import Plot, Table

__all__ = [
    "ABSTRACT",
    "CLAIMS",
    "SUBJECTS",
    "Claim",
    "Evidence",
    "Relation",
    "Verdict",
    "at_least",
    "at_most",
    "claim",
    "equals",
    "from_json",
    "read_rows",
    "sentence_verdict",
    "short",
    "subject",
    "where",
    "write_rows",
]

ABSTRACT = {
    1: "Gradient methods on non-differentiable functions converge markedly differently from gradient descent on "
    "differentiable ones, so convergence theory built on L-smoothness does not carry over to non-smooth networks.",
    2: "On L1-regularised problems a larger penalty can give a larger L1 norm of the solution returned, so L1 "
    "penalties, as widely used for pruning, do not do what is expected.",
    3: "RMSProp does not behave alike in differentiable and non-differentiable settings.",
    4: "The Edge of Stability also occurs for Lipschitz continuous convex differentiable functions, so what it means "
    "for ReLU networks is open.",
    5: "Influential texts misread gradient methods on non-differentiable functions by leaning on strong smoothness "
    "assumptions.",
}
"""What the abstract of arXiv 2401.08426 says, in our words, sentence by sentence."""

SUBJECTS = ("functions", "networks")
"""What claims are about: functions whose every constant is known, or networks that are trained."""

CONFIDENCE = 0.95

DEEPEST = 50
"""The levels of lists and objects in what is read: ours have six, and what walks over them recurses."""
TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"
DIGITS = 300
"""A whole number of more digits is read as a float, which may be infinite: it can then be compared and drawn."""


STRICTLY = {"at most": "less than", "at least": "more than"}
"""A relation in words, and the same where a margin of 0 is not enough."""


class Verdict(StrEnum):
    """What the evidence says of a claim.

    >>> Verdict("supported") is Verdict.SUPPORTED
    True
    """

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Relation:
    """What a measurement must satisfy: `margin(measured, predicted)` is positive where it does.

    For `equals` the margin is within − |m − p|/s, for `at_most` (p − m)/s + slack and for `at_least` its mirror
    image, with s = |p|, or 1 where the prediction is 0 or `absolute` is set. A margin of 0 satisfies it unless it is
    `strict`.

    >>> equals(within=0.1).margin(1.05, 1.0) > 0
    True
    """

    kind: Literal["equals", "at most", "at least"]
    tolerance: float
    absolute: bool = False
    strict: bool = False

    def holds(self, margin: float) -> bool:
        return margin > 0 or (margin == 0 and not self.strict)

    def margin(self, measured: float, predicted: float) -> float:
        scale = 1.0 if self.absolute or predicted == 0 else abs(predicted)
        if math.isinf(measured) or math.isinf(predicted):
            off = 0.0 if measured == predicted else (math.inf if measured > predicted else -math.inf)
        else:
            off = (measured - predicted) / scale
        match self.kind:
            case "equals":
                return self.tolerance - abs(off)
            case "at most":
                return self.tolerance - off
            case "at least":
                return self.tolerance + off

    def margins(self, low: float, high: float, predicted: float) -> tuple[float, float]:
        """The smallest and largest margin over the interval."""
        ends = (self.margin(low, predicted), self.margin(high, predicted))
        inside = self.kind == "equals" and low <= predicted <= high
        return min(ends), self.tolerance if inside else max(ends)

    def __str__(self) -> str:
        size = f"{self.tolerance:g}" if self.absolute else f"{100 * self.tolerance:g} %"
        match self.kind:
            case "equals":
                return f"equals the prediction within {size}"
            case _:
                words = STRICTLY[self.kind] if self.strict else self.kind
                return f"is {words} the prediction" + (f", give or take {size}" if self.tolerance else "")


def equals(within: float, absolute: bool = False) -> Relation:
    """The measurement equals the prediction, to a relative (or `absolute`) tolerance.

    >>> str(equals(within=0.05))
    'equals the prediction within 5 %'
    """
    return Relation("equals", within, absolute)


def at_most(slack: float = 0.0, absolute: bool = False, strict: bool = False) -> Relation:
    """The measurement is at most the prediction; less, if `strict`: a tie is not.

    >>> at_most().margin(3.0, 2.0)
    -0.5
    """
    return Relation("at most", slack, absolute, strict)


def at_least(slack: float = 0.0, absolute: bool = False, strict: bool = False) -> Relation:
    """The measurement is at least the prediction; more, if `strict`: a tie is not.

    >>> at_least().margin(3.0, 2.0), str(at_least(strict=True))
    (0.5, 'is more than the prediction')
    """
    return Relation("at least", slack, absolute, strict)


@dataclass(frozen=True)
class Evidence:
    """What an experiment found: `measured` (cases, samples), `predicted` (cases,), a label for each case.

    Samples of a case are independent (problems or starts drawn afresh). The interval of a single one is the number
    itself: nothing is left to chance, or `what` says that it is the worst of so many draws. `what` names the quantity,
    `holds_when` the measured conditions; `plots` are the figures and `data` the dataset behind them.

    >>> Evidence("norm", [[1.0, 1.2]], [1.1], ["λ = 1"]).means.tolist()
    [1.1]
    """

    what: str
    measured: Any
    predicted: Any
    cases: Sequence[str]
    holds_when: str = ""
    plots: Sequence[Plot | Table] = ()
    data: Any = None

    def __post_init__(self) -> None:
        measured = np.asarray(self.measured, dtype=float)
        measured = measured[:, None] if measured.ndim == 1 else measured
        predicted = np.broadcast_to(np.asarray(self.predicted, dtype=float), measured.shape[:1]).copy()
        if measured.ndim != 2 or measured.size == 0 or len(self.cases) != len(measured):
            raise ValueError(f"Evidence: {len(self.cases)} case(s) do not fit measurements of shape {measured.shape}.")
        object.__setattr__(self, "measured", measured)
        object.__setattr__(self, "predicted", predicted)

    @property
    def means(self) -> np.ndarray:
        return self.measured.mean(axis=1)

    @property
    def half_widths(self) -> np.ndarray:
        """Half the width of each case's interval: Student's t, 95 % over all cases together (Bonferroni)."""
        cases, n = self.measured.shape
        if n == 1:
            return np.zeros(cases)
        from scipy.stats import t

        quantile = t.ppf(1 - (1 - CONFIDENCE) / (2 * cases), n - 1)
        with np.errstate(invalid="ignore"):
            spread = self.measured.std(axis=1, ddof=1)
        return quantile * np.where(np.isnan(spread) & np.isinf(self.means), 0.0, spread) / np.sqrt(n)

    def margins(self, relation: Relation) -> list[tuple[float, float]]:
        """The smallest and largest margin of each case."""
        rows = zip(self.means, self.half_widths, self.predicted)
        return [relation.margins(float(m - h), float(m + h), float(p)) for m, h, p in rows]

    def verdict(self, relation: Relation) -> Verdict:
        """Supported, refuted or undecided."""
        margins = self.margins(relation)
        if any(not math.isnan(high) and not relation.holds(high) for _, high in margins):
            return Verdict.REFUTED
        return Verdict.SUPPORTED if all(relation.holds(low) for low, _ in margins) else Verdict.UNDECIDED


@dataclass(frozen=True)
class Claim:
    """A statement with its test; `bears` says whether, when supported, it speaks for the abstract's sentence or
    limits it. `mutants` are experiments in which it is false: a name, and the arguments that differ.

    >>> one = lambda x=1.0: Evidence("x", [x], [1.0], ["x"])
    >>> Claim("doc/x", "x is 1.", "-", 1, equals(0), one, {"2": {"x": 2.0}}).run()[0]["verdict"]
    'supported'
    """

    id: str
    says: str
    source: str
    sentence: int
    relation: Relation
    experiment: Callable[..., Evidence]
    mutants: Mapping[str, Mapping[str, Any]]
    full: Mapping[str, Any] = field(default_factory=dict)
    bears: Literal["for", "limits"] = "for"

    @property
    def parameters(self) -> dict[str, Any]:
        """The experiment's sample sizes and settings, as its signature fixes them."""
        signature = inspect.signature(self.experiment)
        return {name: p.default for name, p in signature.parameters.items()}

    def run(self, full: bool = False, **overrides: Any) -> tuple[dict[str, Any], Evidence]:
        """The row of the ledger, and the evidence behind it."""
        began = time.perf_counter()
        settings = self.parameters | (dict(self.full) if full else {}) | overrides
        evidence = self.experiment(**settings)
        verdict = evidence.verdict(self.relation)
        margins = evidence.margins(self.relation)
        mutants = [
            {"what": name, "verdict": str(self.experiment(**settings | dict(change)).verdict(self.relation))}
            for name, change in self.mutants.items()
        ]
        row = {
            "claim": self.id,
            "says": self.says,
            "source": self.source,
            "sentence": self.sentence,
            "bears": self.bears,
            "relation": str(self.relation),
            "what": evidence.what,
            "cases": list(evidence.cases),
            "measured": _numbers(evidence.means),
            "noise": _numbers(evidence.half_widths),
            "predicted": _numbers(evidence.predicted),
            "slack": _number(float(np.min([low for low, _ in margins]))),
            "verdict": str(verdict),
            "holds_when": evidence.holds_when,
            "mutants": mutants,
            "seeds": int(evidence.measured.shape[1]),
            "parameters": {name: _describe(value) for name, value in settings.items()},
            "versions": versions(),
            "seconds": round(time.perf_counter() - began, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": f"nonsmooth reproduce --only '{self.id}'{' --full' * full}{self._options(settings)}",
        }
        return row, evidence

    def _options(self, settings: Mapping[str, Any]) -> str:
        """What the command line needs for settings that are not the source's."""
        seed = f" --seed {settings['master']}" if settings.get("master") else ""
        given = settings.get("data")
        return seed + ("" if given == self.parameters.get("data") else f" --data {shlex.quote(str(given))}")


CLAIMS: dict[str, Claim] = {}
"""Every claim that has been declared, by its id."""


def claim(
    id: str,
    *,
    says: str,
    source: str,
    sentence: int,
    relation: Relation,
    mutants: Mapping[str, Mapping[str, Any]],
    full: Mapping[str, Any] | None = None,
    bears: Literal["for", "limits"] = "for",
) -> Callable[[Callable[..., Evidence]], Callable[..., Evidence]]:
    """Declare the decorated experiment as the test of a claim. Its defaults are the sample sizes, fixed beforehand.

    Raises ValueError for an id that is taken, an unknown sentence, or a claim without a mutant.

    >>> @claim("doc/one", says="1 is 1.", source="-", sentence=1, relation=equals(0), mutants={"2": {"x": 2.0}})
    ... def one(x: float = 1.0) -> Evidence:
    ...     return Evidence("x", [x], [1.0], ["x"])
    >>> row, _ = CLAIMS.pop("doc/one").run()
    >>> row["verdict"], row["mutants"][0]["verdict"]
    ('supported', 'refuted')
    """
    if id in CLAIMS:
        raise ValueError(f"claim {id!r} is declared twice; give each its own id.")
    if sentence not in ABSTRACT:
        raise ValueError(f"claim {id!r}: sentence must be one of {', '.join(map(str, ABSTRACT))}, not {sentence}.")
    if not mutants:
        raise ValueError(f"claim {id!r} has no mutant; name a condition under which it is false.")

    def declare(experiment: Callable[..., Evidence]) -> Callable[..., Evidence]:
        CLAIMS[id] = Claim(id, says, source, sentence, relation, experiment, mutants, full or {}, bears)
        return experiment

    return declare


def where(axis: str, values: Iterable[float], holds: Iterable[bool], unit: str = "") -> str:
    """The measured region in which something holds, in words: the longest unbroken stretch of a scan.

    >>> where("η", [0.1, 0.2, 0.4], [True, True, False])
    'η ≤ 0.2 (fails at 0.4)'
    """
    grid, mask = [float(v) for v in values], [bool(h) for h in holds]
    show = lambda v: f"{v:.3g}{unit}"  # noqa: E731
    scanned = f"{show(grid[0])} to {show(grid[-1])}"
    if not any(mask):
        return f"nowhere for {axis} from {scanned}"
    stretches, start = [], None
    for i, good in enumerate([*mask, False]):
        if good and start is None:
            start = i
        elif not good and start is not None:
            stretches.append((start, i - 1))
            start = None
    low, high = max(stretches, key=lambda s: s[1] - s[0])
    if low == 0 and high == len(grid) - 1:
        return f"every {axis} tried, {scanned}"
    if low == 0:
        return f"{axis} ≤ {show(grid[high])} (fails at {show(grid[high + 1])})"
    if high == len(grid) - 1:
        return f"{axis} ≥ {show(grid[low])} (fails at {show(grid[low - 1])})"
    ends = f"{show(grid[low - 1])} and {show(grid[high + 1])}"
    return f"{axis} from {show(grid[low])} to {show(grid[high])} (fails at {ends})"


def subject(claim: str) -> str:
    """Which of `SUBJECTS` a claim is about, by its id.

    >>> subject("networks/edge-orbit-curvature"), subject("edge/orbit-curvature")
    ('networks', 'functions')
    """
    return SUBJECTS[claim.startswith("networks/")]


def sentence_verdict(rows: Iterable[Mapping[str, Any]], sentence: int) -> str:
    """What the rows say together of one sentence of the abstract.

    >>> sentence_verdict([], 5)
    'not tested yet'
    """
    mine = [row for row in rows if row["sentence"] == sentence]
    speaking = [row["verdict"] for row in mine if row["bears"] == "for"]
    if not speaking:
        return "only its limits are tested" if mine else "not tested yet"
    if "refuted" in speaking:
        return "does not hold as said" if "supported" not in speaking else "holds in part"
    if "supported" not in speaking:
        return "undecided"
    limited = any(row["bears"] == "limits" and row["verdict"] == "supported" for row in mine)
    if "undecided" in speaking:
        return "holds within limits, not all decided" if limited else "holds, not all decided"
    return "holds, within limits" if limited else "holds"


def versions() -> dict[str, str]:
    """Python and the installed packages on which a number may depend."""
    found = {"python": platform.python_version()}
    for name in ("nonsmooth", "numpy", "scipy", "jax", "torch", "xarray", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line of JSON a row, written beside and then moved into place: the file is whole or untouched.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> write_rows(file, [{"claim": "a"}])
    >>> read_rows(file)
    [{'claim': 'a'}]
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(
        "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), encoding="utf-8"
    )
    os.replace(beside, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; raises ValueError naming the line that is not a row.

    >>> read_rows(Path("no-such-file"))
    Traceback (most recent call last):
    ValueError: no-such-file: there is no such file; run `nonsmooth reproduce` first.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; run `nonsmooth reproduce` first.")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # of bytes: text has other line ends, too
        try:
            row = from_json(line)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} is not JSON ({short(error)}); delete that line, then run the claim again."
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("claim"), str):
            raise ValueError(
                f"{path}: line {number} is not a row of the ledger; delete that line, then run the claim again."
            )
        rows.append(row)
    return rows


def from_json(raw: str | bytes) -> Any:
    """What a file of a stranger's says in JSON; ValueError for what is none, or is nested deeper than 50 levels.

    >>> from_json(b'{"step": 1}'), from_json("9" * 400)
    ({'step': 1}, inf)
    >>> from_json("[" * 10**5 + "]" * 10**5)
    Traceback (most recent call last):
    ValueError: it is nested deeper than 50 levels
    """
    try:
        value = json.loads(raw, parse_int=lambda digits: int(digits) if len(digits) <= DIGITS else float(digits))
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    level = [value]
    for _ in range(DEEPEST + 1):
        nests = [v for v in level if isinstance(v, (dict, list))]
        level = [v for nest in nests for v in (nest.values() if isinstance(nest, dict) else nest)]
    if nests:
        raise ValueError(TOO_DEEP)
    return value


def short(words: object, most: int = 160) -> str:
    """What a sentence may quote of a stranger's words: one line, 160 characters at most.

    >>> short("a\\nb"), len(short("x" * 1000))
    ('a b', 160)
    """
    said = " ".join(str(words).split())
    return said if len(said) <= most else said[: most - 1] + "…"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(v) for v in values]


def _describe(value: Any) -> Any:
    """A setting as JSON: numbers and text as they are, a function or a record by its name."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_describe(v) for v in value]
    return getattr(value, "__name__", repr(value))
