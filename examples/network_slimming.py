"""Network slimming, before and after: λ‖γ‖₁ on the scales of BatchNorm, by its gradient and by its prox.

The complaint (liuzhuang13/slimming, issue 11): after training with the L1 on the scales none is zero, and more of it
does not help. Adding λ sign(γ) to the gradient never lands on zero: a scale that should vanish chatters around it, and
a threshold has to be guessed. The prox sets it to zero, compress removes its channel, and no output changes.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch.compress import compress

BATCH, EPOCHS = 50, 10

X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
train, test = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).split([1300, len(y) - 1300])


def slim(lam: float, prox: bool) -> tuple[nn.Module, list[torch.Tensor]]:
    """A network trained with λ‖γ‖₁, and its scales γ. It pads no zeros: relu(β) of a zero scale can be folded."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    scales = [layer.weight for layer in model if isinstance(layer, nn.BatchNorm2d)]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if prox:
        optimizer = Proximal(optimizer, L1(lam), scales)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(X[batch]), y[batch]).backward()
            if not prox:
                for scale in scales:
                    scale.grad.add_(lam * scale.detach().sign())
            optimizer.step()
        scheduler.step()
    return model.eval(), scales


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return (model(X[test]).argmax(1) == y[test]).double().mean().item()


zeros = {}
for lam in (0.05, 0.1):
    for prox in (False, True):
        model, scales = slim(lam, prox)
        gammas = torch.cat(scales).detach()
        zeros[lam, prox] = int((gammas == 0).sum())
        smaller = compress(model, X[test])
        before, after = accuracy(model), accuracy(smaller.model)
        print(
            f"λ = {lam:g}, {'prox' if prox else 'sign in .grad'}: {zeros[lam, prox]} of {len(gammas)} scales are zero"
        )
        print(
            f"  smallest |γ| {gammas.abs().min():.0e}, accuracy {before:.3f}, after removal {after:.3f}, "
            f"parameters {smaller.before.parameters} → {smaller.after.parameters}"
        )
        assert not prox or after > 0.9
        assert abs(before - after) < 0.005 and (smaller.after.parameters < smaller.before.parameters) == prox

assert zeros[0.05, False] == zeros[0.1, False] == 0  # more λ does not help
assert 8 <= zeros[0.05, True] < zeros[0.1, True]
