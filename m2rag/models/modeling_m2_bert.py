"""M2-BERT: Monarch Mixer encoder, masked-language-model head, sequence-classification head.

Path of the data: ids -> embeddings -> layers of (mixer: short convolution, gates, two long convolutions; MLP:
block-diagonal GLU) -> pooling. There is no attention. Source: Monarch Mixer (arXiv:2310.12109).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

from m2rag.errors import InputTooLongError, InvalidInputError
from m2rag.models.configuration_m2_bert import M2BertConfig
from m2rag.models.lexical_sketch import LexicalSketch
from m2rag_kernels import Workspace, check_kernels, choose, needs_grad
from m2rag_kernels.blockdiag_glu import blockdiag_glu
from m2rag_kernels.blockdiag_glu.cpu import blockdiag_glu as blockdiag_glu_cpu
from m2rag_kernels.dispatch import triton_module
from m2rag_kernels.long_conv import long_conv
from m2rag_kernels.long_conv.cpu import fft_size, segments
from m2rag_kernels.long_conv.monarch import MAX_POINTS, Plan
from m2rag_kernels.long_conv.monarch import plan as monarch_plan
from m2rag_kernels.long_conv.monarch import spectrum as monarch_spectrum
from m2rag_kernels.long_conv.spectra import ImplicitTaps, SpectrumSource, exponential_rows, spectra_bytes
from m2rag_kernels.mixer.cpu import MixerWeights, mixer
from m2rag_kernels.short_conv import short_conv

# Tokens that are embedded together at inference.
EMBED_TOKENS = 4096


class M2BertEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, LayerNorm, dropout: (B, L) -> (B, L, D)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.use_positional_encodings
            else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None, start: int = 0
    ) -> torch.Tensor:
        """Embed ids whose first one is at position `start` of its text."""
        x = self.word_embeddings(input_ids)
        if token_type_ids is None:
            x = x + self.token_type_embeddings.weight[0]
        else:
            x = x + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[start : start + input_ids.shape[1]]
        return self.dropout(self.layer_norm(x))


class ImplicitMLP(nn.Module):
    """MLP with sine activations that maps positional features to filter taps: (L, E) -> (L, D).

    All activations, of both directions, share one trained frequency per unit, which the filter owns.
    """

    def __init__(self, emb_dim: int, order: int, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(emb_dim, order)
        self.hidden1 = nn.Linear(order, order)
        self.hidden2 = nn.Linear(order, order)
        self.output = nn.Linear(order, width, bias=False)

    def forward(self, z: torch.Tensor, freq: torch.Tensor) -> torch.Tensor:
        h = z
        for linear in (self.input, self.hidden1, self.hidden2):
            h = torch.sin(freq * linear(h))
        return self.output(h)

    def hidden(self, z: torch.Tensor, freq: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The activations in front of the output layer: (L, E) -> (L, order) in `dtype`.

        In `forward`'s order of operations: three nested sines amplify a rounding difference a thousandfold.
        """
        out = torch.empty(len(z), freq.shape[1], dtype=dtype)
        for some, result in zip(z.split(4096), out.split(4096), strict=True):
            h = some
            for linear in (self.input, self.hidden1, self.hidden2):
                h = linear(h).mul_(freq).sin_()
            result.copy_(h)
        return out


class LongConvFilter(nn.Module):
    """Taps of one long convolution, made by an implicit MLP (the Hyena filter, arXiv:2302.10866, section 3.2).

    `forward(L)` returns the taps for distances 0..L-1 to the left and, if bidirectional, to the right: two (D, L).
    Subclasses say what the positional features are and how the taps decay.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        order, emb_dim, width = config.hyena_filter_order, config.hyena_emb_dim, config.hidden_size
        self.l_max = config.long_conv_l_max
        self.w_mod = config.hyena_w_mod
        self.skip = nn.Parameter(torch.empty(width))
        self.freq = nn.Parameter(torch.empty(1, order))
        self.mlp = ImplicitMLP(emb_dim, order, width)
        self.mlp_rev = ImplicitMLP(emb_dim, order, width) if config.bidirectional else None

    def features(self, length: int) -> torch.Tensor:
        """Positional features (L, E)."""
        raise NotImplementedError

    def window(self, length: int) -> torch.Tensor:
        """Factor of the taps (L, D)."""
        raise NotImplementedError

    def window_rows(self) -> Callable[[int, int, int], torch.Tensor]:
        """The same transposed and cut: maps lo, hi and a number of distances to (hi - lo, distances)."""
        raise NotImplementedError

    def reach(self, length: int) -> tuple[int, ...]:
        """Per channel the first distance up to `length` from which on the window is lost in rounding."""
        return (length,) * len(self.skip)

    def forward(self, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Features are functions of position / l_max: half precision cannot tell neighbours apart at 32k.
        with torch.autocast(self.skip.device.type, enabled=False):
            z, window, freq = self.features(length), self.window(length), self.w_mod * self.freq
            taps = (self.mlp(z, freq) * window).t()
            taps_rev = None if self.mlp_rev is None else (self.mlp_rev(z, freq) * window).t()
        return taps, taps_rev

    def implicit_taps(self, length: int, workspace: Workspace, keep: bool) -> ImplicitTaps:
        """What `forward` returns before its last product, so that it can be made for some channels at a time.

        That product runs in the compute dtype; everything before it is a function of position and stays fp32.
        `keep`: the activations before it are kept for the next call if there is room.
        """
        dtype = workspace.compute_dtype
        sides = [mlp for mlp in (self.mlp, self.mlp_rev) if mlp is not None]
        return ImplicitTaps(
            hidden=[self._hidden(length, side, workspace, keep) for side in range(len(sides))],
            weight=[mlp.output.weight.to(dtype) for mlp in sides],
            window=self.window_rows(),
            skip=self.skip.float(),
        )

    def _hidden(self, length: int, side: int, workspace: Workspace, keep: bool) -> torch.Tensor:
        """Activations in front of the last product for side 0 (distances 0..L-1) or 1 (distances L..1), (L, order)."""
        key, sources = ("hidden", side, workspace.compute_dtype), self._sources()
        kept = workspace.spectra.find(key, sources)
        if kept is not None and len(kept) >= length:
            return kept[-length:] if side else kept[:length]
        mlp, z = self.mlp, self.features(length).float()
        if side:
            assert self.mlp_rev is not None
            mlp, z = self.mlp_rev, z.flip(0)
        hidden = mlp.hidden(z, self.w_mod * self.freq.float(), workspace.compute_dtype)
        if keep:
            workspace.keep_aside(key, sources, hidden)
        return hidden

    def _sources(self) -> list[torch.Tensor]:
        return [*self.parameters(), *self.buffers()]

    def spectra(self, n_fft: int, workspace: Workspace) -> SpectrumSource:
        """Spectra for inputs of up to n_fft / 2 positions, by ranges of channels."""
        length = min(n_fft // 2, self.l_max)
        cut = segments(self.reach(length), n_fft)
        keep = not workspace.keeps_spectra_of(spectra_bytes(cut))
        return SpectrumSource(lambda: self.implicit_taps(length, workspace, keep), self._sources(), cut, workspace)

    def monarch_spectrum(self, plan: Plan, workspace: Workspace) -> torch.Tensor:
        """What the triton path multiplies by, for inputs of up to N positions: (D, 2, N) in the compute dtype."""

        def make() -> torch.Tensor:
            left, right = self(min(plan.points, self.l_max))
            return monarch_spectrum(left, right, self.skip, plan).to(workspace.compute_dtype)

        nbytes = self.skip.shape[0] * 2 * plan.points * workspace.compute_dtype.itemsize
        if not workspace.keeps_spectra_of(nbytes):
            return make()
        return workspace.spectra.fetch((plan, workspace.compute_dtype), self._sources(), make)


class HyenaFilter(LongConvFilter):
    """The published filter: complex-exponential features, exponential decay. Positions `z` are trained."""

    t: torch.Tensor
    deltas: torch.Tensor

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.emb_dim, self.width = config.hyena_emb_dim, config.hidden_size
        self.z = nn.Parameter(torch.empty(self.l_max, self.emb_dim))
        self.register_buffer("t", torch.empty(self.l_max, 1))
        self.register_buffer("deltas", torch.empty(self.width))

    def features(self, length: int) -> torch.Tensor:
        return self.z[:length]

    def window(self, length: int) -> torch.Tensor:
        return torch.exp(-self.t[:length] * self.deltas.abs())

    def window_rows(self) -> Callable[[int, int, int], torch.Tensor]:
        t, deltas = self.t[:, 0].float(), self.deltas.float().abs()
        step = t[-1] / max(1, self.l_max - 1)
        # Grids of extended contexts go beyond 1.
        if torch.allclose(t, step * torch.arange(self.l_max), rtol=1e-6, atol=1e-6):
            rates = deltas * step
            return lambda lo, hi, distances: exponential_rows(rates[lo:hi], distances)
        return lambda lo, hi, distances: torch.exp(-deltas[lo:hi, None] * t[:distances])

    def reach(self, length: int) -> tuple[int, ...]:
        # As below. In a model of its first length every window is above that to the end.
        lost = 24 * math.log(2) / self.deltas.double().abs()
        return tuple(torch.searchsorted(self.t[:length, 0].double().contiguous(), lost).tolist())

    def analytic_positions(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Initial z (L, E), t (L, 1) and deltas (D,): linear time and its first complex exponentials."""
        bands = (self.emb_dim - 1) // 2
        t = torch.linspace(0, 1, self.l_max)[:, None]
        w = 2 * math.pi * torch.linspace(0, self.l_max - 1, self.l_max)[:, None] / self.l_max
        phase = torch.linspace(1e-4, bands - 1, bands)[None] * w
        z = torch.cat([t, torch.cos(phase), -torch.sin(phase)], dim=-1)
        deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, self.width)
        return z, t, deltas


class MultiscaleFilter(LongConvFilter):
    r"""One time constant per channel, so that fine and coarse structure are both visible at any length.

    $$k_c(d) = f_c(z(d)) (1 - e^{-1/\tau_c}) e^{-d / \tau_c}$$

    with tau_c log-spaced from 2 tokens to S = `multiscale_l_max`: the window of every channel sums to one.
    Features: s = log(1 + d) / log(1 + S), cos(pi m s), sin(pi m s) for m = 1, 2, ...; nothing is stored.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bands = (config.hyena_emb_dim - 1) // 2
        self.width = config.hidden_size
        self.scale = config.multiscale_l_max or config.long_conv_l_max

    def features(self, length: int) -> torch.Tensor:
        device = self.skip.device
        s = torch.log1p(torch.arange(length, device=device, dtype=torch.float32)) / math.log1p(self.scale)
        phase = math.pi * s[:, None] * torch.arange(1, self.bands + 1, device=device)
        return torch.cat([s[:, None], torch.cos(phase), torch.sin(phase)], dim=-1)

    def window(self, length: int) -> torch.Tensor:
        tau = self.time_constants()
        distance = torch.arange(length, device=tau.device, dtype=torch.float32)[:, None]
        return -torch.expm1(-1 / tau) * torch.exp(-distance / tau)

    def window_rows(self) -> Callable[[int, int, int], torch.Tensor]:
        rates = 1 / self.time_constants()
        scale = -torch.expm1(-rates)
        return lambda lo, hi, distances: exponential_rows(rates[lo:hi], distances, scale[lo:hi])

    def reach(self, length: int) -> tuple[int, ...]:
        # exp(-d / tau) is below 2^-24 of its largest value, half a unit in the last place of fp32.
        reach = (self.time_constants() * (24 * math.log(2))).ceil().clamp(max=length)
        return tuple(int(distance) for distance in reach.tolist())

    def time_constants(self) -> torch.Tensor:
        """tau of every channel, in tokens: (D,)."""
        return torch.logspace(math.log10(2), math.log10(self.scale), self.width, device=self.skip.device)


class ShortConv(nn.Conv1d):
    """Depthwise convolution with 3 taps; holds the weights that `m2rag_kernels.short_conv` computes with."""

    bias: nn.Parameter

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, groups=channels, padding=2)


class M2BertMixer(nn.Module):
    """Sequence mixing (B, L, D) -> (B, L, D): projections, short convolution, gated long convolution, and a second
    long convolution of the input itself as the residual path."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        filter_class = HyenaFilter if config.filter == "hyena" else MultiscaleFilter
        self.norm = nn.LayerNorm(width) if config.hyena_training_additions else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob if config.hyena_training_additions else 0.0)
        self.in_proj = nn.Linear(width, 3 * width)
        self.short_conv = ShortConv(3 * width)
        self.filter = filter_class(config)
        self.residual_filter = filter_class(config) if config.residual_long_conv else None
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        u: torch.Tensor,
        mask: torch.Tensor | None = None,
        workspace: Workspace | None = None,
        kernels: str = "naive",
    ) -> torch.Tensor:
        """Mix; with a `workspace` as the inference path `kernels` does it: without gradients, with what it keeps.

        The cpu path does everything in one pass (`m2rag_kernels.mixer`), written over `u`.
        """
        if workspace is not None:
            forward = self._forward_triton if kernels == "triton" else self._forward_cpu
            return forward(u, mask, workspace)
        length = u.shape[1]
        if self.norm is not None:
            u = self.norm(u)
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        weight, bias = self.short_conv.weight, self.short_conv.bias
        v, gate = short_conv(self.in_proj(u), weight, bias, mask, kernels=kernels)
        left, right = self.filter(length)
        y = long_conv(self.dropout(v), left, right, self.filter.skip, gate, kernels=kernels)
        if self.residual_filter is not None:
            left, right = self.residual_filter(length)
            y = y + long_conv(u.transpose(1, 2), left, right, self.residual_filter.skip, kernels=kernels)
        return self.out_proj(self.dropout(y.transpose(1, 2)))

    def _forward_triton(self, u: torch.Tensor, mask: torch.Tensor | None, workspace: Workspace) -> torch.Tensor:
        cast = workspace.cast
        if self.norm is not None:
            norm = self.norm
            u = F.layer_norm(u, norm.normalized_shape, cast(norm.weight), cast(norm.bias), norm.eps)
        x = F.linear(u, cast(self.in_proj.weight), cast(self.in_proj.bias))
        v, gate = triton_module("short_conv").short_conv(x, self.short_conv.weight, self.short_conv.bias, mask)
        plan, convolve = monarch_plan(u.shape[1]), triton_module("long_conv").convolve
        residual = None
        if self.residual_filter is not None:
            spectrum = self.residual_filter.monarch_spectrum(plan, workspace)
            residual = convolve(u.transpose(1, 2), spectrum, plan, mask=mask)
        y = convolve(v, self.filter.monarch_spectrum(plan, workspace), plan, gate, add=residual)
        return F.linear(y.transpose(1, 2), cast(self.out_proj.weight), cast(self.out_proj.bias))

    def _forward_cpu(self, u: torch.Tensor, mask: torch.Tensor | None, workspace: Workspace) -> torch.Tensor:
        n_fft = fft_size(u.shape[1])
        if self.norm is not None:
            norm = self.norm
            u = F.layer_norm(u, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        weights = MixerWeights(
            in_proj=workspace.cast(self.in_proj.weight),
            in_bias=self.in_proj.bias.float(),
            short_conv=self.short_conv.weight.float(),
            short_bias=self.short_conv.bias.float(),
            out_proj=workspace.cast(self.out_proj.weight),
            out_bias=self.out_proj.bias.float(),
        )
        residual = self.residual_filter
        residual_spectra = None if residual is None else residual.spectra(n_fft, workspace)
        spectra = self.filter.spectra(n_fft, workspace)
        return mixer(u, weights, spectra, residual_spectra, n_fft, mask, workspace.scratch, out=u)


class BlockdiagLinear(nn.Module):
    """Weight (nb, out / nb, in / nb) of a block-diagonal matrix."""

    def __init__(self, n_blocks: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_blocks, out_features // n_blocks, in_features // n_blocks))


class M2BertMLP(nn.Module):
    """Dimension mixing (B, L, D) -> (B, L, D): block-diagonal GLU, residual, LayerNorm."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.gate_proj = BlockdiagLinear(config.n_blocks, config.hidden_size, 2 * config.intermediate_size)
        self.out_proj = BlockdiagLinear(config.n_blocks, config.intermediate_size, config.hidden_size)
        self.out_bias = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: torch.Tensor, workspace: Workspace | None = None, kernels: str = "naive") -> torch.Tensor:
        w_in, w_out, norm = self.gate_proj.weight, self.out_proj.weight, self.norm
        if workspace is not None:
            weights = workspace.cast(w_in), workspace.cast(w_out)
            if kernels == "triton":
                # By the dispatcher: an odd number of blocks goes the naive way, which returns fp32.
                y = blockdiag_glu(x, *weights, self.out_bias, norm.weight, norm.bias, norm.eps, kernels=kernels)
                return y.to(x.dtype)
            return blockdiag_glu_cpu(x, *weights, self.out_bias, norm.weight, norm.bias, norm.eps, out=x)
        dropout = self.dropout if self.training else 0.0
        return blockdiag_glu(x, w_in, w_out, self.out_bias, norm.weight, norm.bias, norm.eps, dropout, kernels=kernels)


class M2BertLayer(GradientCheckpointingLayer):
    """Mixer, then MLP: (B, L, D) -> (B, L, D); what gradient checkpointing keeps the input of and computes again."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.mixer = M2BertMixer(config)
        self.mlp = M2BertMLP(config)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        workspace: Workspace | None = None,
        kernels: str = "naive",
    ) -> torch.Tensor:
        return self.mlp(self.mixer(x, mask, workspace, kernels), workspace, kernels)


def check_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype.

    Raises:
        ValueError: the kernels do not compute in it.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"compute_dtype is {dtype}, must be torch.float32 or torch.bfloat16")
    return dtype


class M2BertPreTrainedModel(PreTrainedModel):
    config_class = M2BertConfig
    base_model_prefix = "bert"
    _no_split_modules = ["M2BertLayer"]
    supports_gradient_checkpointing = True
    # The filters' positional features need fp32 whatever the rest runs in.
    _keep_in_fp32_modules_strict = ["filter", "residual_filter"]

    @property
    def kernels(self) -> str:
        """Which implementation computes: `"auto"` or one of `m2rag_kernels.KERNELS` by name."""
        return self.base_model._kernels

    @kernels.setter
    def kernels(self, value: str) -> None:
        self.base_model._kernels = check_kernels(value)

    @property
    def compute_dtype(self) -> torch.dtype:
        """float32 or bfloat16: products and activations of the cpu and triton paths at inference.

        Parameters and outputs keep theirs. The naive path takes `torch.autocast` instead, as training does.
        """
        return self.base_model.workspace.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, value: torch.dtype) -> None:
        self.base_model.workspace.compute_dtype = check_compute_dtype(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            bound = 1 / math.sqrt(module.kernel_size[0])
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            # A slice does not carry the flag by which `init` spares loaded tensors: published pads have a vector.
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, BlockdiagLinear):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, LexicalSketch):
            for logarithms in (module.log_mean_weights, module.log_sketch_weights, module.log_balance):
                init.zeros_(logarithms)
            init.copy_(module.turn.weight, torch.eye(len(module.turn.weight), device=module.turn.weight.device))
        elif isinstance(module, M2BertMLP):
            init.zeros_(module.out_bias)
        elif isinstance(module, ImplicitMLP):
            for linear in (module.input, module.hidden1, module.hidden2, module.output):
                bound = 1 / math.sqrt(linear.in_features)
                init.uniform_(linear.weight, -bound, bound)
        elif isinstance(module, HyenaFilter):
            init.normal_(module.skip)
            init.constant_(module.freq, self.config.hyena_w)
            for target, value in zip((module.z, module.t, module.deltas), module.analytic_positions(), strict=True):
                init.copy_(target, value)
        elif isinstance(module, MultiscaleFilter):
            # Near the identity: the skip path carries the signal until the taps have learned something.
            init.ones_(module.skip)
            init.constant_(module.freq, self.config.hyena_w)


class M2BertModel(M2BertPreTrainedModel):
    """The encoder and its pooling.

    `model(input_ids, attention_mask)` returns `last_hidden_state` (B, L, D) and `pooler_output` (B, D). With
    `config.sketch_size` the former are the outputs of `LexicalSketch`, so that either way their mean is the vector.

    Raises:
        InputTooLongError: L exceeds `config.max_tokens`.
        InvalidInputError: no tokens at all, or a row of the mask without any where the mask is used.
    """

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        self.layers = nn.ModuleList(M2BertLayer(config) for _ in range(config.num_hidden_layers))
        has_dense = add_pooling_layer and config.pooling != "mean"
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if has_dense else None
        self.sketch = LexicalSketch(config) if add_pooling_layer and config.sketch_size else None
        self._kernels = "auto"
        self.workspace = Workspace(n_filters=config.num_hidden_layers * (2 if config.residual_long_conv else 1))
        self.post_init()

    def train(self, mode: bool = True) -> M2BertModel:
        # Training changes every weight: what was derived from them would only take memory.
        if mode:
            self.workspace.clear()
        return super().train(mode)

    def _apply(self, fn: Callable, recurse: bool = True) -> M2BertModel:
        self.workspace.clear()
        return super()._apply(fn, recurse)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode ids (B, L); `attention_mask` (B, L) is 1 for tokens and 0 for pads, default: all tokens."""
        config = self.config
        given_ids, given_length = input_ids, input_ids.shape[1]
        if given_length == 0:
            raise InvalidInputError("input_ids has no tokens: its shape is " + str(tuple(input_ids.shape)))
        if given_length > config.max_tokens:
            raise InputTooLongError(0, given_length, config.max_tokens)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if config.padding == "max_length":
            missing = config.max_tokens - given_length
            input_ids = F.pad(input_ids, (0, missing), value=config.pad_token_id)
            if token_type_ids is not None:
                token_type_ids = F.pad(token_type_ids, (0, missing))
        mixing_mask = None
        if attention_mask is not None and (config.padding == "masked" or config.pooling != "cls_tanh"):
            if not bool(mask.any(dim=1).all()):
                raise InvalidInputError("attention_mask has a row without any token")
            if config.padding == "masked" and not bool(mask.all()):
                mixing_mask = mask

        inference = not self.training and not needs_grad(*self.parameters())
        path = choose(
            "m2_bert", self.kernels, input_ids.device, inference=inference, unsupported=self._too_long_for_triton
        )
        if path == "cpu" or (path == "triton" and inference):
            x = self._encode_for_inference(input_ids, token_type_ids, mixing_mask, path)
        else:
            x = self.embeddings(input_ids, token_type_ids)
            for layer in self.layers:
                x = layer(x, mixing_mask, kernels=path)
        x = x[:, :given_length]
        if self.sketch is not None:
            x = self.sketch(x, given_ids, mask)

        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pool(x, mask))

    def _encode_for_inference(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, mask: torch.Tensor | None, path: str
    ) -> torch.Tensor:
        device = input_ids.device
        # The kernels choose their own precision, and the filters must not lose theirs to an outer autocast.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            self.workspace.fit(device)
            workspace = self.workspace.for_one_call()
            x = self._embed(input_ids, token_type_ids, workspace.compute_dtype)
            for layer in self.layers:
                # On the cpu path every layer writes over its input: one activation of this size is enough memory.
                x = layer(x, mask, workspace, path)
            del workspace
            return x.to(self.embeddings.layer_norm.weight.dtype)

    def _embed(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """The embeddings in `dtype`, some tokens at a time: all of them in fp32 would be the largest tensor of all."""
        x = torch.empty(*input_ids.shape, self.config.hidden_size, dtype=dtype, device=input_ids.device)
        for start in range(0, input_ids.shape[1], EMBED_TOKENS):
            some = slice(start, start + EMBED_TOKENS)
            x[:, some] = self.embeddings(
                input_ids[:, some], None if token_type_ids is None else token_type_ids[:, some], start
            )
        return x

    def _too_long_for_triton(self) -> str | None:
        if self.config.max_tokens <= MAX_POINTS:
            return None
        return f"its kernels take up to {MAX_POINTS} tokens, this model takes {self.config.max_tokens}"

    def span_vectors(self, hidden: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
        """Vectors (S, D) of parts of a text in its context: means of `last_hidden_state` (L, D), of one text."""
        means = torch.stack([hidden[begin:end].mean(0, dtype=torch.float32) for begin, end in spans])
        return means if self.sketch is None else self.sketch.passages(means)

    def pool(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """Hidden states (B, L, D) and mask (B, L) -> (B, D), as `config.pooling` says."""
        if self.config.pooling == "cls_tanh":
            pooled = x[:, 0]
        else:
            weights = mask[..., None]
            pooled = torch.where(weights, x, 0.0).sum(1, dtype=torch.float32) / weights.sum(1)
            pooled = pooled.to(x.dtype)
        if self.config.pooling == "mean":
            return pooled
        return None if self.pooler is None else torch.tanh(self.pooler(pooled))


class M2BertMLMHead(nn.Module):
    """Dense, GELU, LayerNorm, then the tied word embeddings with a bias: (..., D) -> (..., V)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        # The reference fixes this one's epsilon; only the encoder's follow the configuration.
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """Encoder with the masked-language-model head.

    `labels` (B, L) hold the id to predict where a token was masked and -100 elsewhere; 0 (the pad) is ignored as well,
    as in the published training. Returns the mean cross entropy, and logits (B, L, V).
    """

    # Tells `transformers.Trainer` to pass `num_items_in_batch`.
    accepts_loss_kwargs = True
    _tied_weights_keys = {"head.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config, add_pooling_layer=False)
        self.head = M2BertMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.head.decoder = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        *,
        labelled_only: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Predict every token of ids (B, L).

        Args:
            labelled_only: logits (N, V) of the N labelled positions, in order, and of no others: at 32k tokens all of
                them take 4 GB.
            num_items_in_batch: the loss is the sum over the labelled positions divided by this number, for a batch
                that is computed in parts. Default: N.
        """
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        if labels is None:
            return MaskedLMOutput(logits=self.head(hidden))
        labelled = labels > 0
        logits = self.head(hidden[labelled] if labelled_only else hidden)
        given = logits if labelled_only else logits[labelled]
        loss = F.cross_entropy(given.float(), labels[labelled], reduction="sum")
        return MaskedLMOutput(
            loss=loss / (given.shape[0] if num_items_in_batch is None else num_items_in_batch), logits=logits
        )


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """Encoder with a linear classifier on the pooled vector: logits (B, num_labels).

    The loss is what `config.problem_type` says: `"regression"` mean squared error, `"single_label_classification"`
    cross entropy, `"multi_label_classification"` binary cross entropy. Unset, it follows from the labels: one output is
    a regression, integer labels are classes, others are targets of several labels.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.bert = M2BertModel(config)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        pooled = self.bert(input_ids, attention_mask, token_type_ids).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of logits (B, num_labels) against labels: (B,) or, for several targets, (B, num_labels)."""
        problem = self.config.problem_type
        if problem == "regression" or (problem is None and self.config.num_labels == 1):
            return F.mse_loss(logits, labels.float().view_as(logits))
        if problem == "single_label_classification" or (problem is None and not labels.is_floating_point()):
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.float())
