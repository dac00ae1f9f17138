"""A convolutional network on handwritten digits that loses most of its filters, and with them parameters and FLOPs.

GroupLasso makes whole filters exactly zero while the network trains, TargetSparsity finds its λ, refit trains what is
left without the penalty, and compress takes the zero filters out: the outputs are the same, the network is smaller.
The convolutions have no bias, so that a zero filter puts out zeros: any other constant could not be folded into a
convolution that pads zeros, and compress would leave its channel in.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from nonsmooth.penalties import GroupLasso
from nonsmooth.torch import Proximal, TargetSparsity, density, refit
from nonsmooth.torch.compress import compress

BATCH, EPOCHS, REFIT = 50, 15, 8

torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)
train, test = torch.randperm(len(y)).split([1300, len(y) - 1300])

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, bias=False), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 32, 10)),
)
filters = [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]
optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), GroupLasso(3e-4), filters)
controller = TargetSparsity(optimizer, density=0.4, of="groups", steps=EPOCHS * len(train) // BATCH)


def epoch() -> None:
    for batch in train[torch.randperm(len(train))].split(BATCH):
        optimizer.zero_grad()
        cross_entropy(model(X[batch]), y[batch]).backward()
        optimizer.step()


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        return (network(X[test]).argmax(1) == y[test]).double().mean().item()


optimizer.register_step_post_hook(lambda *_: controller.step())
for _ in range(EPOCHS):
    epoch()
shrunk = accuracy(model)
controller.freeze = 0.0
with refit(optimizer):
    for _ in range(REFIT):
        epoch()
smaller = compress(model, X[test])

print(f"filters left: {density(optimizer).groups:.0%}, accuracy {shrunk:.3f}, after the refit {accuracy(model):.3f}")
print(smaller)
assert abs(accuracy(smaller.model) - accuracy(model)) < 0.005 and accuracy(smaller.model) > 0.92
assert smaller.after.parameters < 0.3 * smaller.before.parameters
assert smaller.after.flops < 0.3 * smaller.before.flops
