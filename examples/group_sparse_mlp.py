"""How many hidden units does a network need? An MLP on MNIST-1D that is told to keep a quarter of its 128.

GroupLasso over the rows of the first layer's weights: a row that is zero is a unit that sees nothing and puts out a
constant. `TargetSparsity` finds the λ, `refit` then trains what is left without the penalty. For comparison the usual
way: the same penalty inside the loss, for autograd, with the same λ at each step, and the smallest rows cut off at the
end. It is about as accurate here, but no row is zero, and how many to cut is known from above alone.
"""

import torch
from mnist1d.data import get_dataset_args, make_dataset

from nonsmooth.penalties import GroupLasso
from nonsmooth.torch import Proximal, TargetSparsity, density, refit, weights

EPOCHS, REFIT, BATCH, UNITS, KEPT = 60, 15, 100, 128, 32

data = make_dataset(get_dataset_args())  # made here and now, nothing is fetched
X, X_test = (torch.tensor(data[part], dtype=torch.float32) for part in ("x", "x_test"))
y, y_test = (torch.tensor(data[part]) for part in ("y", "y_test"))
lams = []  # the λ of each step, for the comparison


def fresh():
    torch.manual_seed(0)
    layers = torch.nn.Linear(40, UNITS), torch.nn.ReLU(), torch.nn.Linear(UNITS, 64), torch.nn.ReLU()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(model, optimizer, epochs, controller=None, penalty=lambda: 0.0):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(X)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(X[batch]), y[batch]) + penalty()
            loss.backward()
            optimizer.step()
            if controller:
                lams.append(controller.lam[0])
                controller.step()
        scheduler.step()


def accuracy(model):
    with torch.no_grad():
        return float((model(X_test).argmax(1) == y_test).float().mean())


dense, optimizer = fresh()
train(dense, optimizer, EPOCHS)

# Ours: one line wraps the optimiser, one sets the target.
model, optimizer = fresh()
optimizer = Proximal(optimizer, GroupLasso(1e-3, dim=0), weights(model)[:1])
controller = TargetSparsity(optimizer, density=KEPT / UNITS, steps=EPOCHS * len(X) // BATCH, of="groups")
train(model, optimizer, EPOCHS, controller)
found, before = density(optimizer), accuracy(model)
with refit(optimizer):
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.02
    train(model, optimizer, REFIT)
alive, after = int((model[0].weight != 0).any(1).sum()), accuracy(model)

# The usual way: the penalty in the loss, and in the end as many units cut as are zero above.
usual, optimizer = fresh()
lam = iter(lams)
train(usual, optimizer, EPOCHS, penalty=lambda: GroupLasso(next(lam), dim=0).value(usual[0].weight))
row = usual[0].weight.detach().norm(dim=1)
zeros, uncut = int((row == 0).sum()), accuracy(usual)
with torch.no_grad():
    usual[0].weight[row.argsort()[: UNITS - alive]] = 0.0

print(f"all {UNITS} units: accuracy {accuracy(dense):.3f}")
print(f"Proximal, λ up to {max(lams):.3f}: {alive} units, accuracy {before:.3f}, {after:.3f} after the refit")
print(f"autograd, the same λ: {UNITS - zeros} units, accuracy {uncut:.3f}, {accuracy(usual):.3f} cut to {alive} units")

assert zeros == 0  # autograd makes no unit exactly zero
assert 0.5 * KEPT <= alive <= 1.5 * KEPT and alive == found.groups * UNITS  # the refit kept the support
assert after > accuracy(dense) - 0.15
