"""What influential texts say of kinks, in our paraphrase, each with the claims that stand for or against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nonsmooth.ledger import Verdict

__all__ = ["TEXTS", "Standing", "Text"]

Standing = Literal["agree", "disagree", "in part", "open", "not tested"]


@dataclass(frozen=True)
class Text:
    """What a text says, paraphrased, and the claims that bear on it: `agree`, `disagree`, or both (`in part`).

    >>> TEXTS[0].verdict
    'in part'
    """

    citation: str
    section: str
    says: str
    verdict: Literal["agree", "disagree", "in part"]
    evidence: tuple[str, ...]
    remark: str

    def standing(self, verdicts: Mapping[str, str]) -> Standing:
        """`verdict`, if all of the evidence that was run is supported; by the verdicts of claims, those that were run.

        >>> TEXTS[1].standing({"l1/no-exact-zeros": "supported"}), TEXTS[1].standing({"l1/no-exact-zeros": "undecided"})
        ('in part', 'open')
        >>> TEXTS[1].standing({})
        'not tested'
        """
        run = [verdicts[claim] for claim in self.evidence if claim in verdicts]
        if not run:
            return "not tested"
        return self.verdict if all(verdict == Verdict.SUPPORTED for verdict in run) else "open"


TEXTS: tuple[Text, ...] = (
    Text(
        "Goodfellow, Bengio & Courville 2016, Deep Learning",
        "section 6.3",
        "Units that are not differentiable at a few points are fit for gradient-based learning: an input is hardly "
        "ever exactly 0, software returns a one-sided derivative there, and the point can be disregarded.",
        "in part",
        ("literature/kinks-are-crossed-not-hit", "autodiff/outside-the-clarke-subdifferential"),
        "Kinks are hardly ever hit, as it says; they are crossed, in the tail of a run at nearly every step, and that "
        "is what changes convergence. What software returns may be neither one-sided derivative.",
    ),
    Text(
        "Goodfellow, Bengio & Courville 2016, Deep Learning",
        "section 7.1.2",
        "L1 regularisation gives solutions in which some parameters are exactly zero.",
        "in part",
        ("l1/no-exact-zeros", "l1/prox-finds-the-exact-support"),
        "True of the minimiser. Gradient steps through autograd never return one of those zeros; proximal steps do.",
    ),
    Text(
        "Han, Pool, Tran & Dally 2015, Learning both weights and connections",
        "section 3.1",
        "An L1 penalty leaves more parameters near zero than an L2 penalty before pruning.",
        "in part",
        ("literature/more-lambda-fewer-small-weights", "l1/larger-penalty-larger-norm"),
        "More of them up to a λ (L2 is not compared here). Beyond it a larger penalty leaves fewer weights below a "
        "fixed threshold, since their bounce widens with ηλ.",
    ),
    Text(
        "Liu, Li, Shen, Huang, Yan & Zhang 2017, Learning efficient convolutional networks through network slimming",
        "section 3",
        "The L1 term on the scaling factors is treated by subgradient descent; a smooth L1 could take its place and "
        "avoids the subgradient at the kink.",
        "in part",
        ("l1/no-exact-zeros", "literature/smooth-l1-gives-no-zeros"),
        "Both run; neither makes a factor zero, so that a threshold chosen afterwards decides what is pruned.",
    ),
    Text(
        "Bottou, Curtis & Nocedal 2018, Optimization methods for large-scale machine learning",
        "section 4.1, assumption 4.1",
        "The analysis of stochastic gradient methods starts from an objective with a Lipschitz continuous gradient.",
        "disagree",
        ("literature/no-finite-l", "convergence/gradient-norm-does-not-vanish"),
        "Not on |x| or the Lasso: the constant that the descent lemma would need grows as 1/η, and the gradient "
        "norm whose vanishing is proved does not vanish.",
    ),
    Text(
        "Zhang, He, Sra & Jadbabaie 2020, Why gradient clipping accelerates training",
        "definition 1",
        "A bound ‖∇²f‖ ≤ L₀ + L₁‖∇f‖ replaces L-smoothness for neural networks.",
        "disagree",
        ("literature/hessian-bounds-miss-kinks", "edge/absolute-value-has-no-threshold"),
        "It asks for a second derivative everywhere. Where that exists only off the kinks, the bound may hold at every "
        "point that a run visits (with 0 on |x|), and the descent derived from it fails at nearly every late step.",
    ),
    Text(
        "Cohen, Kaur, Li, Kolter & Talwalkar 2021, Gradient descent on neural networks typically occurs at the edge of "
        "stability",
        "sections 2 and 3",
        "The sharpness rises to 2/η, the threshold of quadratics, and hovers there.",
        "in part",
        (
            "edge/linear-thresholds",
            "edge/orbit-curvature",
            "edge/sharpness-misses-the-threshold",
            "networks/edge-relu-sharpness-reaches",
            "networks/edge-smooth-sharpness-reaches",
            "networks/edge-below-the-threshold",
        ),
        "The thresholds are right on quadratics, and the sharpness of networks does come up to 2/η, ReLU or not. On "
        "Lipschitz convex functions what sits at 2/η is the curvature between steps, κ̄, and the sharpness may be "
        "anything down to 0; ReLU networks go on without converging below the threshold, too.",
    ),
    Text(
        "Boyd, Xiao, Mutapcic & Park, Subgradient methods (lecture notes)",
        "sections 2 to 4",
        "The subgradient method is no descent method; the best point must be kept; a constant step ends within ηG²/2.",
        "agree",
        (
            "literature/subgradient-texts-are-right",
            "convergence/constant-step-raises-f",
            "convergence/constant-step-bound",
            "convergence/last-iterate-worst-case",
        ),
        "All three, as said.",
    ),
    Text(
        "Nesterov 2004, Introductory lectures on convex optimization",
        "section 3.2",
        "For non-smooth convex functions no subgradient method beats the order of MR/√N in the worst case.",
        "agree",
        ("convergence/subgradient-worst-case", "convergence/typical-problems-are-faster"),
        "Attained; typical problems are faster, as a worst case allows.",
    ),
    Text(
        "Kakade & Lee 2018, Provably correct automatic subdifferentiation; Bolte & Pauwels 2021, Conservative set "
        "valued fields",
        "introductions",
        "Automatic differentiation can return, at kinks, what is no element of the Clarke subdifferential.",
        "agree",
        ("autodiff/outside-the-clarke-subdifferential", "autodiff/one-function-many-derivatives"),
        "In JAX, and in torch where it is installed, probed when the claims are run.",
    ),
    Text(
        "Bertoin, Bolte, Gerchinovitz & Pauwels 2021, Numerical influence of ReLU'(0) on backpropagation",
        "section 2",
        "Backpropagation with relu'(0) = 0 and with 1 differs always in 16 bits, in about half of the passes in 32 "
        "bits, and never in 64 bits.",
        "in part",
        (
            "autodiff/exact-kinks-depend-on-precision",
            "networks/ties-in-bfloat16",
            "networks/relu-at-zero-in-float64",
            "networks/relu-at-zero-on-blank-patches",
        ),
        "Exact zeros are common where sums are kept in half precision, and rare where they are kept in float32 and "
        "rounded once: of two million pre-activations of a random layer in float16 none was 0, of those of an MLP "
        "trained in bfloat16 some were. In float32 none was met in either; at the extrapolated rate a pass with some "
        "10⁸ of them would meet one about as often as it says. Never in 64 bits is true of MLPs, and not of "
        "convolutions on images with blank patches, whose biases start at 0: there training changes from the first "
        "step on.",
    ),
    Text(
        "Kingma & Ba 2015, Adam",
        "section 2.1",
        "The size of Adam's steps does not depend on the scale of the gradients.",
        "agree",
        ("rmsprop/scale-invariance", "rmsprop/adam-floor-independent-of-lambda"),
        "And so λ, which is such a scale, cannot set the norm.",
    ),
)
"""What we could vouch for, in the order of how much it matters here."""
