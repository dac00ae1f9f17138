"""Sparse logistic regression with a certificate: which of 30 measurements tell a malignant tumour from a benign one?

Minimises f(w) + λ‖w‖₁, f the mean logistic loss, on scikit-learn's breast cancer data. The training loop is the usual
one; only the optimiser is wrapped. The solution is held against scikit-learn's, and against its own duality gap, which
needs nobody else's solver.
"""

import copy

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from nonsmooth.objectives import Logistic
from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, density, duality_gap, kkt, lam_path, stationary_lam, weights

LAM, STEPS = 0.02, 5000

cancer = load_breast_cancer()
split = train_test_split(cancer.data, cancer.target, test_size=0.3, random_state=0, stratify=cancer.target)
X, X_test, y, y_test = (torch.as_tensor(part, dtype=torch.float64) for part in split)
X, X_test = (X - X.mean(0)) / X.std(0), (X_test - X.mean(0)) / X.std(0)

model = torch.nn.Linear(X.shape[1], 1, bias=False, dtype=torch.float64)


def loss():
    """f alone: the penalty is the optimiser's business."""
    return torch.nn.functional.binary_cross_entropy_with_logits(model(X).squeeze(1), y)


def train(lam, state=None):
    """Full-batch SGD with momentum, lr from 0.5 to 0, from `state` on."""
    torch.nn.init.zeros_(model.weight) if state is None else model.load_state_dict(state)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.98), L1(lam), weights(model))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        scheduler.step()
    return optimizer


# One λ, and the proof that it is solved.
optimizer = train(LAM)
w = model.weight.detach().squeeze(0).clone()
table = kkt(optimizer, loss, tol=1e-4, model=model)
gap = duality_gap(Logistic(X.numpy(), 2 * y.numpy() - 1), L1(LAM), w)
print(table)
print(f"F(w) = {gap.primal:.10f}, at most {gap.value:.1e} above the minimum")
print("uses:", ", ".join(cancer.feature_names[w.numpy() != 0]))

theirs = LogisticRegression(
    l1_ratio=1, C=1 / (LAM * len(y)), solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=10**5, random_state=0
)
other = torch.as_tensor(theirs.fit(X.numpy(), y.numpy()).coef_[0])
print(f"largest difference from scikit-learn's weights: {(w - other).abs().max():.1e}")


# Many λ: what does accuracy on unseen patients cost in measurements? Each starts where the last one ended.
def one(lam, state):
    optimizer = train(lam, state)
    with torch.no_grad():
        right = ((model(X_test).squeeze(1) > 0) == (y_test > 0.5)).double().mean()
    return {"state": copy.deepcopy(model.state_dict()), "density": density(optimizer).value, "accuracy": float(right)}


largest = stationary_lam(optimizer, loss).value  # from here on all weights are zero
path = lam_path(one, [largest * part for part in (0.6, 0.2, 0.06, 0.02, 0.006)], best="accuracy")
print("      λ  measurements  accuracy on the test set")
for row in path.rows:
    print(f"{row['lam']:7.4f}  {round(row['density'] * X.shape[1]):12}  {row['accuracy']:.3f}")

assert table.holds and gap.value < 1e-8 and 0 < int((w != 0).sum()) < 15
assert torch.equal(w != 0, other != 0) and torch.allclose(w, other, atol=1e-5)
assert max(row["accuracy"] for row in path.rows) > 0.93
