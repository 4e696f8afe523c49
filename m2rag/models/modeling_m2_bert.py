"""M2-BERT: Monarch Mixer encoder, masked-language-model head, sequence-classification head.

Path of the data: ids -> embeddings -> layers of (mixer: short convolution, gates, two long convolutions; MLP:
block-diagonal GLU) -> pooling. There is no attention. Source: Monarch Mixer (arXiv:2310.12109).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput

from m2rag.errors import InputTooLongError, InvalidInputError
from m2rag.models.configuration_m2_bert import M2BertConfig
from m2rag_kernels.blockdiag_glu import blockdiag_glu
from m2rag_kernels.long_conv import long_conv
from m2rag_kernels.short_conv import short_conv


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

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        x = self.word_embeddings(input_ids)
        if token_type_ids is None:
            x = x + self.token_type_embeddings.weight[0]
        else:
            x = x + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[: input_ids.shape[1]]
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

    def forward(self, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Features are functions of position / l_max: half precision cannot tell neighbours apart at 32k.
        with torch.autocast(self.skip.device.type, enabled=False):
            z, window, freq = self.features(length), self.window(length), self.w_mod * self.freq
            taps = (self.mlp(z, freq) * window).t()
            taps_rev = None if self.mlp_rev is None else (self.mlp_rev(z, freq) * window).t()
        return taps, taps_rev


class HyenaFilter(LongConvFilter):
    """The published filter: complex-exponential features, exponential decay. Positions `z` are trained."""

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

    with tau_c log-spaced from 2 tokens to `long_conv_l_max`: the window of every channel sums to one.
    Features: s = log(1 + d) / log(1 + l_max), cos(pi m s), sin(pi m s) for m = 1, 2, ...; nothing is stored.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bands = (config.hyena_emb_dim - 1) // 2
        self.width = config.hidden_size

    def features(self, length: int) -> torch.Tensor:
        device = self.skip.device
        s = torch.log1p(torch.arange(length, device=device, dtype=torch.float32)) / math.log1p(self.l_max)
        phase = math.pi * s[:, None] * torch.arange(1, self.bands + 1, device=device)
        return torch.cat([s[:, None], torch.cos(phase), torch.sin(phase)], dim=-1)

    def window(self, length: int) -> torch.Tensor:
        device = self.skip.device
        tau = torch.logspace(math.log10(2), math.log10(self.l_max), self.width, device=device)
        distance = torch.arange(length, device=device, dtype=torch.float32)[:, None]
        return -torch.expm1(-1 / tau) * torch.exp(-distance / tau)


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
        self.short_conv = nn.Conv1d(3 * width, 3 * width, kernel_size=3, groups=3 * width, padding=2)
        self.filter = filter_class(config)
        self.residual_filter = filter_class(config) if config.residual_long_conv else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, u: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        length = u.shape[1]
        if self.norm is not None:
            u = self.norm(u)
        if mask is not None:
            u = torch.where(mask[..., None], u, 0.0)
        v, gate = short_conv(self.in_proj(u), self.short_conv.weight, self.short_conv.bias, mask)
        y = long_conv(self.dropout(v), *self.filter(length), self.filter.skip, gate)
        if self.residual_filter is not None:
            y = y + long_conv(u.transpose(1, 2), *self.residual_filter(length), self.residual_filter.skip)
        return self.out_proj(self.dropout(y.transpose(1, 2)))


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return blockdiag_glu(
            x,
            self.gate_proj.weight,
            self.out_proj.weight,
            self.out_bias,
            self.norm.weight,
            self.norm.bias,
            self.norm.eps,
            dropout=self.dropout if self.training else 0.0,
        )


class M2BertLayer(nn.Module):
    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.mixer = M2BertMixer(config)
        self.mlp = M2BertMLP(config)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.mlp(self.mixer(x, mask))


class M2BertPreTrainedModel(PreTrainedModel):
    config_class = M2BertConfig
    base_model_prefix = "bert"
    _no_split_modules = ["M2BertLayer"]
    # The filters' positional features need fp32 whatever the rest runs in.
    _keep_in_fp32_modules_strict = ["filter", "residual_filter"]

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
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, BlockdiagLinear):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, M2BertMLP):
            init.zeros_(module.out_bias)
        elif isinstance(module, ImplicitMLP):
            for linear in (module.input, module.hidden1, module.hidden2, module.output):
                bound = 1 / math.sqrt(linear.in_features)
                init.uniform_(linear.weight, -bound, bound)
        elif isinstance(module, HyenaFilter):
            init.normal_(module.skip)
            init.constant_(module.freq, self.config.hyena_w)
            for target, value in zip((module.z, module.t, module.deltas), module.analytic_positions()):
                init.copy_(target, value)
        elif isinstance(module, MultiscaleFilter):
            # Near the identity: the skip path carries the signal until the taps have learned something.
            init.ones_(module.skip)
            init.constant_(module.freq, self.config.hyena_w)


class M2BertModel(M2BertPreTrainedModel):
    """The encoder and its pooling.

    `model(input_ids, attention_mask)` returns `last_hidden_state` (B, L, D) and `pooler_output` (B, D).

    Raises:
        InputTooLongError: L exceeds `config.max_tokens`.
        InvalidInputError: masked padding was given a mask with an empty row.
    """

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        self.layers = nn.ModuleList(M2BertLayer(config) for _ in range(config.num_hidden_layers))
        has_dense = add_pooling_layer and config.pooling != "mean"
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if has_dense else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
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
        given_length = input_ids.shape[1]
        if given_length > config.max_tokens:
            raise InputTooLongError(0, given_length, config.max_tokens)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if config.padding == "max_length":
            missing = config.max_position_embeddings - given_length
            input_ids = F.pad(input_ids, (0, missing), value=config.pad_token_id)
            if token_type_ids is not None:
                token_type_ids = F.pad(token_type_ids, (0, missing))
        mixing_mask = None
        if config.padding == "masked" and attention_mask is not None and not bool(mask.all()):
            if not bool(mask.any(dim=1).all()):
                raise InvalidInputError("attention_mask has a row without any token")
            mixing_mask = mask

        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x = layer(x, mixing_mask)
        x = x[:, :given_length]

        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pool(x, mask))

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
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """Encoder with the masked-language-model head.

    `labels` (B, L) hold the id to predict where a token was masked and -100 elsewhere; 0 (the pad) is ignored as well,
    as in the published training. Returns the mean cross entropy, and logits (B, L, V).
    """

    _tied_weights_keys = {"head.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config, add_pooling_layer=False)
        self.head = M2BertMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.head.decoder = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits = self.head(hidden)
        loss = None
        if labels is not None:
            targets = torch.where(labels > 0, labels, -100)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """Encoder with a linear classifier on the pooled vector: logits (B, num_labels).

    The loss is mean squared error for one label, cross entropy for several, binary cross entropy where
    `config.problem_type` is `"multi_label_classification"`.
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
            if self.config.problem_type == "multi_label_classification":
                loss = F.binary_cross_entropy_with_logits(logits, labels.float())
            elif self.config.num_labels == 1:
                loss = F.mse_loss(logits.squeeze(-1), labels.float())
            else:
                loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
