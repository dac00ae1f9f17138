"""The audit of an L1 penalty in a training run: what is there, what it does, what the laws say, how to mend it.

`PenaltyTerm` says what the optimiser sees of the penalty, `find_sign_in_grad` finds one in `.grad`, `Chatter` follows
the signs of weights, `l1_audit` puts all together, `turning_lam` measures where a larger λ starts to raise the norm.
"""

from nonsmooth.torch.l1_audit.audit import L1Audit, Layer, Span, l1_audit
from nonsmooth.torch.l1_audit.chatter import Chatter, reach_of
from nonsmooth.torch.l1_audit.laws import Bounce, Penalised, bounce, bounce_of, penalised_weights
from nonsmooth.torch.l1_audit.lints import Lint, lints
from nonsmooth.torch.l1_audit.mending import mending_lines
from nonsmooth.torch.l1_audit.terms import PenaltyTerm, SignInGrad, find_sign_in_grad, lam_by_name, summed
from nonsmooth.torch.l1_audit.turning import Turning, TurningRow, continued, turning_lam

__all__ = [
    "Bounce",
    "Chatter",
    "L1Audit",
    "Layer",
    "Lint",
    "Penalised",
    "PenaltyTerm",
    "SignInGrad",
    "Span",
    "Turning",
    "TurningRow",
    "bounce",
    "bounce_of",
    "continued",
    "find_sign_in_grad",
    "l1_audit",
    "lam_by_name",
    "lints",
    "mending_lines",
    "penalised_weights",
    "reach_of",
    "summed",
    "turning_lam",
]
