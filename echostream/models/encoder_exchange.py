"""A chunk Conformer's weights as the start of an Emformer that takes its place.

Both encoders are stacks of the same blocks: subsampling by gated convolutions, feed-forward,
attention, gated depthwise convolution, feed-forward, norm. An Emformer of the Conformer's shape
(:func:`emformer_like`) takes over what both have (:func:`start_from_conformer`):

- the convolutions in front, without the taps that would look further ahead than an Emformer's do,
  and the linear layer behind them;
- both feed-forward blocks, their factor of one half inside the weights;
- queries, keys, values and output projection; the content bias joins the queries' bias;
- of relative positions what does not depend on the query: a bias by distance;
- the depthwise convolution's taps for the present and the past, batch norm folded into them.

What an Emformer has no place for is left behind: the rest of relative positions, the taps that look
ahead inside a chunk, and the past beyond left context and memory. So the start is close and not
equal, and the rest is learned by distillation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from echostream.config import ChunkConformerConfig, EmformerConfig
from echostream.models.causal_convolution import CausalConvolution
from echostream.models.chunk_conformer_encoder import ChunkConformerEncoder
from echostream.models.chunk_conformer_layer import (
    ChunkConformerLayer,
    ConvolutionModule,
    RelativeAttention,
    relative_positions,
)
from echostream.models.distance_bias import DistanceBias
from echostream.models.echostream_encoder import Conv1dSubsampler, EchoStreamSpeechEncoder
from echostream.models.emformer_layer import EmformerLayer

Put = Callable[[Tensor, Tensor], None]
Affine = nn.Linear | nn.LayerNorm
LEFT_CONTEXT = 64  # frames: 2.56 s, for weights that know the whole past
REACH = 72  # frames: a segment of 320 ms behind the left context


def emformer_like(config: ChunkConformerConfig) -> EmformerConfig:
    """An Emformer with a place for nearly all weights of such a Conformer.

    The causal convolution reads as far back as the Conformer's does. There is no memory bank: these
    weights have never seen summaries, and would attend to them at random.
    """
    return EmformerConfig(
        input_dim=config.input_dim,
        subsampler="conv1d_glu_linear",
        conv_channels=config.conv_channels,
        conv_kernel_sizes=config.conv_kernel_sizes,
        embed_dim=config.embed_dim,
        layers=config.layers,
        attention_heads=config.attention_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        activation="silu",
        segment_frames=config.segment_frames,
        left_context_frames=LEFT_CONTEXT,
        memory_size=0,
        depthwise_kernel_size=config.depthwise_kernel_size // 2 + 1,
        first_ffn_dim=config.ffn_dim,
        distance_reach=REACH,
    )


@torch.no_grad()
def start_from_conformer(
    student: EchoStreamSpeechEncoder, conformer: ChunkConformerEncoder
) -> list[str]:
    """Copy what fits from a chunk Conformer into an Emformer; the rest stays as it is.

    Layers are taken in order. Parts of other sizes are left alone.

    Returns:
        Names of the student's parameters that now hold the Conformer's weights.
    """
    filled: list[Tensor] = []

    def put(target: Tensor, value: Tensor) -> None:
        if target.shape == value.shape:
            target.copy_(value)
            filled.append(target)

    _start_subsampler(student, conformer, put)
    for ours, theirs in zip(student.emformer.layers, conformer.conformer_layers, strict=False):
        _start_layer(ours, theirs, put)
    taken = {tensor.data_ptr() for tensor in filled}
    return [name for name, tensor in student.named_parameters() if tensor.data_ptr() in taken]


def _start_subsampler(
    student: EchoStreamSpeechEncoder, conformer: ChunkConformerEncoder, put: Put
) -> None:
    if not isinstance(student.subsample, Conv1dSubsampler):
        return
    convolutions = zip(student.subsample.conv_layers, conformer.subsample.conv_layers, strict=False)
    for ours, theirs in convolutions:
        # The original's kernel is centred; ours ends one frame ahead and has room for older ones.
        ahead = theirs.kernel_size[0] // 2
        taps = theirs.weight[..., : theirs.kernel_size[0] - (ahead - student.subsample.right)]
        missing = ours.kernel_size[0] - taps.size(-1)
        put(ours.weight, nn.functional.pad(taps, (missing, 0)))
        if ours.bias is not None and theirs.bias is not None:
            put(ours.bias, theirs.bias)
    if isinstance(student.subsample.out, nn.Linear):
        put(student.subsample.out.weight, conformer.linear.weight * conformer.scale)
        put(student.subsample.out.bias, conformer.linear.bias)


def _start_layer(ours: EmformerLayer, theirs: ChunkConformerLayer, put: Put) -> None:
    attention = theirs.self_attn
    put(ours.q_proj.weight, attention.linear_q.weight)
    put(ours.q_proj.bias, attention.linear_q.bias + attention.pos_bias_u.flatten())
    for leaf in ("weight", "bias"):
        key, value = getattr(attention.linear_k, leaf), getattr(attention.linear_v, leaf)
        put(getattr(ours.kv_proj, leaf), torch.cat([key, value]))
    if ours.distance_bias is not None:
        _start_distances(ours.distance_bias, attention, theirs.self_attn_layer_norm, put)
    _copy(ours.out_proj, attention.linear_out, put)
    _copy(ours.input_layer_norm, theirs.self_attn_layer_norm, put)
    if isinstance(ours.output_layer_norm, nn.LayerNorm):
        _copy(ours.output_layer_norm, theirs.final_layer_norm, put)
    second, first = theirs.ffn2, theirs.ffn1
    _copy(ours.ffn_layer_norm, second.layer_norm, put)
    _copy(ours.fc1, second.w_1, put)
    _copy(ours.fc2, second.w_2, put, factor=0.5)
    if ours.first_ffn is not None:
        _copy(ours.first_ffn.layer_norm, first.layer_norm, put)
        _copy(ours.first_ffn.fc1, first.w_1, put)
        _copy(ours.first_ffn.fc2, first.w_2, put, factor=0.5)
    if ours.convolution is not None:
        _start_convolution(ours.convolution, theirs.conv_module, put)


def _start_distances(
    ours: DistanceBias, theirs: RelativeAttention, norm: nn.LayerNorm, put: Put
) -> None:
    """What the original's positions add to the scores of a mean query. Normalised inputs have mean
    zero, so that is the query of the norm's bias."""
    width = theirs.heads * theirs.head_dim
    reach = ours.weight.size(1) // 2 - 1
    query = theirs.linear_q(norm.bias).view(theirs.heads, 1, theirs.head_dim)
    query = query + theirs.pos_bias_v[:, None]
    table = relative_positions(reach, 2 * reach + 1, width, norm.bias).flip(0)  # from -R to R
    places = theirs.linear_pos(table).view(-1, theirs.heads, theirs.head_dim).transpose(0, 1)
    bias = (query * places).sum(dim=-1) / theirs.head_dim**0.5
    # Summaries stand for what lies far behind.
    put(ours.weight, torch.cat([bias, bias[:, -1:]], dim=1))


def _copy(ours: Affine, theirs: Affine, put: Put, factor: float = 1.0) -> None:
    put(ours.weight, factor * theirs.weight)
    put(ours.bias, factor * theirs.bias)


def _start_convolution(ours: CausalConvolution, theirs: ConvolutionModule, put: Put) -> None:
    _copy(ours.layer_norm, theirs.layer_norm, put)
    for mine, pointwise in (
        (ours.pointwise_in, theirs.pointwise_conv1),
        (ours.pointwise_out, theirs.pointwise_conv2),
    ):
        put(mine.weight, pointwise.weight[..., 0])
        put(mine.bias, torch.zeros_like(mine.bias))
    norm, bias = theirs.batch_norm, ours.depthwise.bias
    # The one keeps statistics, the other has a bias.
    assert norm.running_mean is not None and norm.running_var is not None and bias is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    taps = theirs.depthwise_conv.weight[..., : theirs.depthwise_conv.reach + 1]
    # The last tap is the present; a kernel of another length has the newest taps or zeros before.
    missing = ours.kernel - taps.size(-1)
    taps = nn.functional.pad(taps, (missing, 0))
    put(ours.depthwise.weight, taps * scale[:, None, None])
    put(bias, norm.bias - norm.running_mean * scale)
