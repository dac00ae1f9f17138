"""One table of torch's operations, by a name that all spellings share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from nonsmooth.torch.operations.choices import CHOICES
from nonsmooth.torch.operations.distances import DISTANCES
from nonsmooth.torch.operations.entrywise import ENTRYWISE
from nonsmooth.torch.operations.kink import Entry, Kinks, Probe

TABLE: Mapping[str, Entry] = {**ENTRYWISE, **CHOICES, **DISTANCES}
"""By name: takes the arguments of the call, in torch's own order, and gives its kinks; None where it has none."""

_SMOOTHS = """
acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add addbmm addcdiv addcmul addmm addmv addr
affine_grid alpha_dropout amax amin arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh
avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits bmm
chain_matmul cholesky cholesky_inverse cholesky_solve clamp clamp_max clamp_min complex conj_physical conv1d conv2d
conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution corrcoef cos cosh cov cross
cross_entropy cross_entropy_loss ctc_loss cumprod cumsum cumulative_trapezoid deg2rad det diff digamma div dot dropout
dropout1d dropout2d dropout3d dsmm einsum embedding embedding_bag erf erfc erfcx erfinv exp exp2 expit expm1
feature_alpha_dropout feature_dropout fft fft2 fftn float_power fold fused_rms_norm gammainc gammaincc gammaln
gaussian_nll_loss gelu ger glu gradient grid_sample group_norm gru gru_cell gumbel_softmax hardshrink hfft hsmm i0 i0e
i1 i1e ifft ifft2 ifftn igamma igammac ihfft imag index_add index_reduce inner instance_norm interpolate inv inverse
irfft irfft2 irfftn istft kl_div kron kthvalue layer_norm ldexp leaky_relu lerp lgamma linear linear_cross_entropy
local_response_norm log log10 log1p log2 log_ndtr log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logdet
logit logsigmoid logsumexp lstm lstm_cell lstsq lu lu_solve masked_fill masked_scatter matmul matrix_exp matrix_power
max max_pool1d max_pool2d max_pool3d max_unpool1d max_unpool2d max_unpool3d mean median min mish mm mse_loss mul
multi_dot multi_head_attention_forward multigammaln multilabel_soft_margin_loss multiply mv mvlgamma nan_to_num
nanmean nansum native_batch_norm native_dropout native_group_norm native_layer_norm ndtr ndtri neg negative nll_loss
nll_loss_nd norm norm_except_dim outer poisson_nll_loss polar polygamma positive pow prelu prod psi qr quantile
rad2deg real reciprocal rfft rfft2 rfftn rmatmul rms_norm rnn_tanh rnn_tanh_cell rpow rsqrt rsub saddmm
scaled_dot_product_attention scatter_add scatter_reduce segment_reduce sigmoid silu sin sinc sinh slogdet smm
soft_margin_loss softmax softmin softplus softshrink solve solve_triangular sort sparse_addmm sparse_log_softmax
sparse_mask sparse_mm sparse_softmax sparse_sum square sspaddmm std stft sub subtract sum tan tanh tanhshrink
tensordot topk trace trapezoid trapz triangular_solve unfold upsample var var_mean vdot vecdot weight_norm
weight_norm_interface where xlog1py xlogy zeta
"""
SMOOTHS = frozenset(_SMOOTHS.split())
"""C^∞ on the interior of the domain, at least for some arguments; softplus up to its jump of 2e-9 at the threshold."""

_MOVES = """
H.get T.get adjoint alias_copy all allclose and any apply array as_strided as_tensor atleast_1d atleast_2d atleast_3d
backward bernoulli bfloat16 bitwise_and bitwise_not bitwise_or bitwise_xor block_diag bool broadcast_shapes
broadcast_tensors broadcast_to byte can_cast cartesian_prod cat channel_shuffle char chunk clone coalesce column_stack
combinations concat concatenate conj constant_pad_nd contains contiguous copy cpu cuda cudnn_rnn_flatten_weight
data.get data_ptr deepcopy detach diag diag_embed diagflat diagonal diagonal_scatter dim dim_order double dsplit
dstack element_size empty_like equal expand expand_as exponential fill fill_diagonal finfo flatten flip fliplr flipud
float format full_like gather get_device getitem grad grad.get half has_compatible_shallow_copy_type has_names hash
hsplit hstack imag.get index index_copy index_fill index_put index_select int invert is_complex is_contiguous
is_floating_point is_inference is_nonzero is_same_size is_shared is_signed is_sparse is_tensor isfinite isin isinf
isnan isneginf isposinf isreal item iter len logical_and logical_not logical_or logical_xor long mH.get mT.get
masked_select meshgrid moveaxis movedim multinomial names narrow native_channel_shuffle ndimension nelement new_empty
new_full new_ones new_tensor new_zeros nextafter normal numel numpy one_hot ones_like or pad permute pin_memory
pixel_shuffle pixel_unshuffle poisson put rand_like randint_like randn_like random ravel real.get record_stream
reduce_ex register_hook register_post_accumulate_grad_hook repeat repeat_interleave repr requires_grad reshape
reshape_as resolve_conj resolve_neg result_type retain_grad reversed roll rot90 row_stack scatter select
select_scatter set set_grad_enabled setitem share_memory_ short size slice_scatter split split_with_sizes squeeze
stack storage storage_offset str stride swapaxes swapdims t take take_along_dim tensor tensor_split tile to to_dense
to_sparse tolist transpose tril triu type type_as unbind unflatten uniform unravel_index unsafe_chunk unsafe_split
unsafe_split_with_sizes unsqueeze untyped_storage use_cudnn_ctc_loss values view view_as view_as_complex view_as_real
vsplit vstack xor zero zeros_like
"""
MOVES = frozenset(_MOVES.split())
"""They move, copy, cast or look at numbers, and compute none: a census leaves them out."""

ALIASES = {
    "absolute": "abs",
    "clip": "clamp",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "divide": "div",
    "truediv": "div",
    "rtruediv": "div",
    "rdiv": "div",
    "true_divide": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "rmod": "remainder",
}
REFLECTED = {"rfloordiv": "floor_divide", "rmod": "remainder", "rpow": "pow", "rdiv": "div", "rtruediv": "div"}
PREFIXES = ("linalg_", "special_", "fft_")
INDICES = "_with_indices"


def name_of(func: Any) -> str:
    """The name of a function of torch without what tells its spellings apart.

    >>> name_of(torch.relu_), name_of(torch.Tensor.__iadd__), name_of(torch.clip), name_of(torch.linalg.vector_norm)
    ('relu', 'add', 'clamp', 'vector_norm')
    """
    given = getattr(func, "__name__", type(func).__name__)
    if given == "__get__":
        return f"{getattr(func.__self__, '__name__', '')}.get"
    name = given.strip("_")
    for prefix in PREFIXES if name != "linalg_norm" else ():
        name = name.removeprefix(prefix)
    name = name.removesuffix(INDICES)
    if given.startswith("__i") and given not in ("__invert__", "__index__", "__int__"):
        name = name[1:]
    return ALIASES.get(name, name)


def kinks(func: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Kinks | None:
    """The kinks of func(*args, **kwargs), which is not called; None where the table has none.

    Raises TypeError where the arguments are not torch's.

    >>> kinks(torch.nn.functional.elu, (torch.zeros(1),)).smoothness
    'C¹'
    >>> kinks(torch.nn.functional.elu, (torch.zeros(1), 0.5)).smoothness
    'C⁰'
    >>> kinks(torch.exp, (torch.zeros(1),)) is None
    True
    """
    entry, given = TABLE.get(name_of(func)), dict(kwargs or {})
    if entry is None:
        return None
    for ignored in ("out", "_stacklevel"):
        given.pop(ignored, None)
    if getattr(func, "__name__", "").strip("_") in REFLECTED:
        args = (*reversed(args[:2]), *args[2:])
    return entry(*args, **given)


def returned(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], probe: Probe) -> tuple[float, ...] | None:
    """What autograd returns at the kink, in the precision of the inputs, from the operation itself; None if nothing.

    Where the operation has several outputs, or several numbers come out, it is the derivative of the first.

    >>> x = torch.ones(3)
    >>> found = kinks(torch.clamp, (x, 0.0, 6.0))
    >>> [returned(torch.clamp, (x, 0.0, 6.0), {}, probe) for probe in found.probes]
    [(1.0,), (1.0,)]
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in probe.at]
        fresh = [leaf.clone() for leaf in leaves]  # operations in place cannot write to a leaf
        if probe.call is not None:
            out = probe.call(func, *fresh)
        else:
            instead = {id(old): new for old, new in zip(probe.old, fresh, strict=True)}
            out = func(*(instead.get(id(a), a) for a in args), **{k: instead.get(id(a), a) for k, a in kwargs.items()})
        first = next((t for t in tree_leaves(out) if isinstance(t, torch.Tensor)), None)
        if first is None or not first.requires_grad or not first.numel():
            return None
        slopes = torch.autograd.grad(first.flatten()[0], leaves, allow_unused=True)
    return tuple(
        float(v)
        for leaf, g in zip(leaves, slopes, strict=True)
        for v in (torch.zeros_like(leaf) if g is None else g).flatten().tolist()
    )
