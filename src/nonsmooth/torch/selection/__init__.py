"""The selection of a forward pass: which piece of each operation with kinks was active; recorded, and replayed.

Covered are the names in `extremes.RULES`, the losses and norms in `decompositions.DECOMPOSED`, comparisons and whatever
is chosen with them, in any spelling. What is not is named in `Selection.unseen` where it can be recognised: scripted
code, custom autograd functions, rnn_relu, cdist with p = 1, quantiles, other losses with margins, torch.func, numbers
taken out of torch.

The square of a relu and the like is C¹ and stays whole (`contact`) where it is one elementwise expression of a tensor.
Through a reshape or with factors from two tensors it counts as a kink; and a gradient inside of the loss (a gradient
penalty) may have kinks where the loss has none, which is not looked for.
"""

from nonsmooth.torch.selection.choices import Choice, Flip, Selection, flips
from nonsmooth.torch.selection.runs import Listener, eagerly, record, replay

__all__ = ["Choice", "Flip", "Listener", "Selection", "eagerly", "flips", "record", "replay"]
