"""Which rule labels the output of which operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from autocompress.compress import rules_math as compute
from autocompress.compress import rules_shape as shape

if TYPE_CHECKING:
    from autocompress.compress.trace import Rule

_aten = torch.ops.aten


def _listed(names: str) -> list[Any]:
    """The operators of that name which this version of torch has."""
    return [getattr(_aten, name) for name in names.split() if hasattr(_aten, name)]


_RULES: dict[Any, Rule] = {
    operator: rule
    for rule, names in (
        (
            shape.keep,
            """alias clone contiguous detach lift_fresh lift _to_copy zeros_like ones_like empty_like full_like
            rand_like randn_like resolve_conj resolve_neg""",
        ),
        (
            shape.replay,
            """unsqueeze squeeze permute transpose t expand flip roll repeat diagonal unfold numpy_T rot90
            unsqueeze_ squeeze_ transpose_""",
        ),
        (shape.restride, "as_strided_"),
        (shape.reshape, "view _unsafe_view reshape _reshape_alias"),
        (shape.select, "select unbind"),
        (shape.cut, "slice"),
        (shape.split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk"),
        (shape.glu, "glu"),
        (shape.cat, "cat"),
        (shape.stack, "stack"),
        (shape.pad, "constant_pad_nd"),
        (shape.pixel_shuffle, "pixel_shuffle"),
        (shape.pixel_unshuffle, "pixel_unshuffle"),
        (shape.channel_shuffle, "channel_shuffle native_channel_shuffle"),
        (shape.im2col, "im2col"),
        (shape.index, "index"),
        (shape.gather, "gather index_select"),
        (shape.embedding, "embedding _embedding_bag _embedding_bag_forward_only"),
        (shape.pack, "_pack_padded_sequence _pad_packed_sequence"),
        (
            compute.pointwise,
            """hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ mish mish_ silu silu_ gelu elu elu_ celu
            selu leaky_relu leaky_relu_ softplus log_sigmoid_forward _prelu_kernel native_dropout copy_ fill_ zero_
            masked_fill masked_fill_ where lerp nan_to_num rrelu_with_noise threshold threshold_ tril triu tril_ triu_
            bernoulli relu6 hardshrink softshrink clamp""",
        ),
        (compute.mm, "mm"),
        (compute.addmm, "addmm"),
        (compute.bmm, "bmm"),
        (compute.baddbmm, "baddbmm"),
        (compute.mv, "mv"),
        (compute.convolution, "convolution"),
        (
            compute.local,
            """avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d
            _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
            adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
            replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
            _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
            upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d
            grid_sampler_3d mkldnn_max_pool2d""",
        ),
        (
            compute.reduction,
            """sum nansum amax amin max min argmax argmin prod logsumexp linalg_vector_norm norm any all cumsum cumprod
            _softmax _log_softmax _safe_softmax softmax log_softmax sort topk median cummax cummin logcumsumexp""",
        ),
        (compute.mean, "mean var std var_mean std_mean"),
        (
            compute.batch_norm,
            """native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm
            batch_norm _batch_norm_no_update _batch_norm_with_update""",
        ),
        (compute.group_norm, "native_group_norm"),
        (compute.layer_norm, "native_layer_norm _fused_rms_norm rms_norm"),
    )
    for operator in _listed(names)
}


def rule_of(func: Any) -> Rule:
    """The rule for an overload."""
    if func is _aten.view.dtype:
        return compute.unknown
    found = _RULES.get(func.overloadpacket)
    if found is not None:
        return found
    return compute.pointwise if torch.Tag.pointwise in func.tags else compute.unknown
