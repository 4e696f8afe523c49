"""Configuration of M2-BERT: the keys of the published `config.json` files, and ours."""

# No `from __future__ import annotations` here: `strict` checks field types, and skips those it sees as strings.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

PADDING_MODES = ("max_length", "masked", "as_given")
POOLINGS = ("cls_tanh", "mean_tanh", "mean")
FILTERS = ("hyena", "multiscale")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "long_conv_l_max",
    "monarch_mlp_nblocks",
    "hyena_filter_order",
)


@strict
class M2BertConfig(PreTrainedConfig):
    r"""Configuration of [`M2BertModel`].

    Published keys (Monarch Mixer BERT, arXiv:2310.12109; long-context retrieval models, arXiv:2402.07440) keep their
    names and meanings. Keys that only the reference's training code reads (`hyena_wd`, `hyena_lr_pos_emb`, ...) are
    kept so that a published configuration survives a round trip.

    Args:
        long_conv_l_max (`int`): number of positions the implicit filters are defined on; the longest input.
        bidirectional (`bool`): a second filter convolves from the right; without it the encoder is causal.
        residual_long_conv (`bool`): a second long convolution of the layer's input is added to the gated one.
        monarch_mlp_nblocks (`int`): blocks of the block-diagonal MLP, if `use_monarch_mlp`.
        hyena_filter_order (`int`): width of the implicit filter's MLP.
        hyena_emb_dim (`int`): odd number of positional features of the implicit filter.
        hyena_training_additions (`bool`): LayerNorm and dropout inside the mixer, as in the first published 80M model.
        pool_all (`bool`): published name of `pooling="mean_tanh"`.
        padding (`str`): how pads are treated.
            `"max_length"`: pads are mixed like tokens and every input is padded to `max_position_embeddings` inside
            `forward`, which is what the published checkpoints were trained with.
            `"masked"`: pads are zeroed before every mixing step; the result does not depend on padding or batch.
            `"as_given"`: pads are mixed like tokens and nothing is added (the reference's raw encoder).
        pooling (`str`): `"cls_tanh"` is tanh(W h[CLS] + b), `"mean_tanh"` the same of the mean over real tokens,
            `"mean"` that mean itself.
        filter (`str`): `"hyena"` (published) or `"multiscale"` (one time constant per channel, log-spaced from
            2 tokens to `multiscale_l_max`).
        multiscale_l_max (`int`, *optional*): length that the features and time constants of multiscale filters are
            spaced for; default: `long_conv_l_max`. Shorter than that in a model whose context was extended while its
            filters stayed what they were.
        sketch_size (`int`): channels of the vector, the last ones, that sketch the text's words
            ([`LexicalSketch`][m2rag.models.lexical_sketch.LexicalSketch]); 0: none. Needs `pooling="mean"` and
            `padding="masked"`.
        use_positional_encodings (`bool`): learned absolute positions are added to the word embeddings.
    """

    model_type = "m2_bert"

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 32768
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True

    monarch_mixer_sequence_mixing: bool = True
    long_conv_l_max: int = 32768
    long_conv_kernel_learning_rate: float | int | None = 1e-3
    bidirectional: bool = True
    residual_long_conv: bool = True
    use_glu_mlp: bool = True
    use_monarch_mlp: bool = True
    monarch_mlp_nblocks: int = 4
    use_positional_encodings: bool = True
    hyena_emb_dim: int = 5
    hyena_filter_order: int = 128
    hyena_filter_dropout: float | int = 0.2
    hyena_lr_pos_emb: float | int = 1e-5
    hyena_w: float | int = 10
    hyena_w_mod: float | int = 1
    hyena_wd: float | int = 0.1
    hyena_training_additions: bool = False
    pool_all: bool = False

    padding: str = "masked"
    pooling: str | None = None
    filter: str = "hyena"
    multiscale_l_max: int | None = None
    sketch_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.pooling is None:
            self.pooling = "mean_tanh" if self.pool_all else "cls_tanh"
        super().__post_init__(**kwargs)

    def validate_m2_bert(self) -> None:
        """Run by `strict` on construction, which wraps these ValueErrors into a StrictDataclassClassValidationError."""
        for name, choice, allowed in (
            ("padding", self.padding, PADDING_MODES),
            ("pooling", self.pooling, POOLINGS),
            ("filter", self.filter, FILTERS),
        ):
            if choice not in allowed:
                raise ValueError(f"{name} is {choice!r}, must be one of {', '.join(map(repr, allowed))}")
        if not self.monarch_mixer_sequence_mixing or not self.use_glu_mlp:
            raise ValueError(
                "only the Monarch Mixer encoder with the GLU MLP is supported: monarch_mixer_sequence_mixing and "
                "use_glu_mlp must be true (attention encoders: use transformers' BertModel)"
            )
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}, M2-BERT has 'gelu' only")
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id ({self.pad_token_id}) must be below vocab_size ({self.vocab_size})")
        if self.multiscale_l_max is not None and self.multiscale_l_max < 1:
            raise ValueError(f"multiscale_l_max is {self.multiscale_l_max}, must be at least 1")
        if not 0 <= self.sketch_size < self.hidden_size:
            raise ValueError(f"sketch_size is {self.sketch_size}, must be from 0 to hidden_size - 1")
        if self.sketch_size and (self.pooling != "mean" or self.padding != "masked"):
            raise ValueError(
                f"sketch_size is {self.sketch_size}, which needs pooling 'mean' and padding 'masked', not "
                f"{self.pooling!r} and {self.padding!r}"
            )
        blocks = self.n_blocks
        for name, value in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            if value % blocks:
                raise ValueError(f"{name} ({value}) must be divisible by monarch_mlp_nblocks ({blocks})")
        if self.hyena_emb_dim < 3 or self.hyena_emb_dim % 2 == 0:
            raise ValueError(f"hyena_emb_dim ({self.hyena_emb_dim}) must be odd and at least 3")

    @property
    def n_blocks(self) -> int:
        """Blocks of the MLP's weight matrices: 1 is a dense MLP."""
        return self.monarch_mlp_nblocks if self.use_monarch_mlp else 1

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, special tokens included."""
        if self.use_positional_encodings or self.padding == "max_length":
            return min(self.max_position_embeddings, self.long_conv_l_max)
        return self.long_conv_l_max
