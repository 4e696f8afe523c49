"""Any published M2-BERT file -> our models: one explicit key map, strict, no remote code, no pickled code.

| family | repositories | file | head |
|---|---|---|---|
| retrieval v0 | togethercomputer/m2-bert-80M-{2k,8k,32k}-retrieval | pytorch_model.bin, `bert.` prefix | pooled |
| retrieval V1 | hazyresearch/M2-BERT-{128,2k,8k,32K}-Retrieval-Encoder-V1 | model.safetensors | encoder, MLM head |
| pretrained, long | togethercomputer/m2-bert-80M-{2k,8k,32k} | pytorch_model.bin | MLM head |
| pretrained, 128 | danfu09/m2-bert-{80M,110M,260m,341m} | pytorch_model.bin | MLM head |
| Composer `.pt` | training checkpoints of the reference | `state.model.` and `module.` prefixes | MLM head |

All are read by the same path: the tensors say which of the optional parts a file holds.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from m2rag.errors import CheckpointError, NonFiniteError
from m2rag.models.configuration_m2_bert import M2BertConfig
from m2rag.models.modeling_m2_bert import (
    HyenaFilter,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin", "model.pt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
BUNDLED = Path(__file__).resolve().parents[1] / "checkpoints"

_HEADS: dict[str | None, type[PreTrainedModel]] = {
    None: M2BertModel,
    "mlm": M2BertForMaskedLM,
    "classification": M2BertForSequenceClassification,
}

_HEAD_PARTS = ("pooler.", "head.", "classifier.")

_PREFIX = re.compile(r"^(?:(?:state|model|module|_orig_mod|bert)\.)+")

# A folder written by `save_pretrained` of our models.
_OURS = re.compile(r"^(?:bert\.)?(?:layers\.\d+\.mixer|embeddings\.layer_norm)\.")

# Tensors of the reference that carry nothing: index buffers, and the constant DFT matrices of a FlashFFTConv module
# (`flashfft.f_16_fft`, `flashfftconv.twiddle_factors_fft_16_16`, ...).
_IGNORED = re.compile(r"(?:^|\.)(?:position_ids|token_type_ids|flash_?fft\w*\..+)$", re.IGNORECASE)

# Keys of a `config.json` that speak of the code or the file they came with.
_FOREIGN_KEYS = frozenset(
    ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "model_type")
)

# What `torch.load` raises on damaged files, besides UnpicklingError: the unpickler trusts the file's structure.
_DAMAGED = (
    RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, struct.error,
)  # fmt: skip

# Training checkpoints keep clocks and random states beside the tensors; constructing these runs no code of the file's.
_PLAIN_DATA: list[Any] = [
    datetime.timedelta,
    datetime.datetime,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np.dtypes.Int64DType,
    np.dtypes.Float64DType,
    *((np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

_LAYER = r"encoder\.layer\.(\d+)\."
_FILTER = _LAYER + r"attention\.(filter_fn2?)\."
_SINE_POSITIONS = {"0": "input", "2": "hidden1", "4": "hidden2", "6": "output"}
_KEY_MAP: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), ours)
    for pattern, ours in [
        (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"embeddings.\1_embeddings.weight"),
        (r"embeddings\.LayerNorm\.(weight|bias)", r"embeddings.layer_norm.\1"),
        (_LAYER + r"attention\.layernorm\.(weight|bias)", r"layers.\1.mixer.norm.\2"),
        (_LAYER + r"attention\.in_linear\.(weight|bias)", r"layers.\1.mixer.in_proj.\2"),
        (_LAYER + r"attention\.short_filter\.(weight|bias)", r"layers.\1.mixer.short_conv.\2"),
        (_LAYER + r"attention\.out_linear\.(weight|bias)", r"layers.\1.mixer.out_proj.\2"),
        (_FILTER + r"bias", r"layers.\1.mixer.\2.skip"),
        (_FILTER + r"implicit_filter(?:_rev)?\.[135]\.freq", r"layers.\1.mixer.\2.freq"),
        (_FILTER + r"implicit_filter\.([0246])\.(weight|bias)", r"layers.\1.mixer.\2.mlp.\3.\4"),
        (_FILTER + r"implicit_filter_rev\.([0246])\.(weight|bias)", r"layers.\1.mixer.\2.mlp_rev.\3.\4"),
        (_FILTER + r"pos_emb\.(z|t)", r"layers.\1.mixer.\2.\3"),
        (_FILTER + r"modulation\.deltas", r"layers.\1.mixer.\2.deltas"),
        (_LAYER + r"mlp\.gated_layers\.weight", r"layers.\1.mlp.gate_proj.weight"),
        (_LAYER + r"mlp\.wo\.weight", r"layers.\1.mlp.out_proj.weight"),
        (_LAYER + r"mlp\.wo\.bias", r"layers.\1.mlp.out_bias"),
        (_LAYER + r"mlp\.layernorm\.(weight|bias)", r"layers.\1.mlp.norm.\2"),
        (r"pooler\.dense\.(weight|bias)", r"pooler.\1"),
        (r"cls\.predictions\.transform\.dense\.(weight|bias)", r"head.dense.\1"),
        (r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)", r"head.norm.\1"),
        (r"cls\.predictions\.decoder\.(weight|bias)", r"head.decoder.\1"),
        (r"cls\.predictions\.bias", r"head.decoder.bias"),
        (r"classifier\.(weight|bias)", r"classifier.\1"),
    ]
]


def translate_key(key: str) -> str | None:
    """Name of a reference tensor in our encoder (heads: `head.`, `classifier.`); None if it carries nothing.

    Raises:
        KeyError: the name belongs to no known part.
    """
    bare = _PREFIX.sub("", key)
    if _IGNORED.search(bare):
        return None
    for pattern, ours in _KEY_MAP:
        match = pattern.fullmatch(bare)
        if match:
            name = match.expand(ours).replace("filter_fn2.", "residual_filter.").replace("filter_fn.", "filter.")
            return re.sub(r"(mlp(?:_rev)?\.)([0246])\.", lambda m: m[1] + _SINE_POSITIONS[m[2]] + ".", name)
    raise KeyError(key)


def translate_state_dict(state_dict: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Reference tensors -> fp32 copies under our encoder's names. Aliases of one tensor must agree.

    Raises:
        CheckpointError: unknown names, or two names of one tensor with different values.
        NonFiniteError: NaN or infinity in a tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    unknown = []
    for key, given in state_dict.items():
        try:
            name = translate_key(key)
        except KeyError:
            unknown.append(key)
            continue
        if name is None:
            continue
        value = _weights_of(key, given, where)
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("z", "t") and value.dim() == 3:
            value = value[0]
        elif leaf == "deltas":
            value = value.flatten()
        elif name.endswith(("gate_proj.weight", "mlp.out_proj.weight")) and value.dim() == 2:
            value = value[None]
        if name in tensors and not torch.equal(tensors[name], value):
            raise CheckpointError(f"{where}: {key} disagrees with another name of the same tensor ({name})")
        tensors[name] = value
    if unknown:
        raise CheckpointError(f"{where}: unexpected tensors: {_listing(unknown)}")
    return tensors


def from_reference(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], head: str | None = None
) -> PreTrainedModel:
    """Build a model from the reference's configuration keys and its tensors under the reference's names.

    The model behaves as the reference's raw encoder does (`padding="as_given"`), in eval mode, fp32.

    Args:
        config: keys of a published `config.json`; structural keys that are absent are read off the tensors.
        state_dict: reference tensors, with or without the prefixes `state.`, `model.`, `module.`, `bert.`.
        head: None (encoder with pooling), `"mlm"` or `"classification"`.

    Raises:
        CheckpointError: missing, unexpected or wrongly shaped tensors, all listed.
        NonFiniteError: NaN or infinity in a tensor.
    """
    _check_head(head)
    where = "state dict"
    return _load_translated({"padding": "as_given", **config}, translate_state_dict(state_dict, where), head, where)


def load_checkpoint(
    model: str | Path, *, head: str | None = None, config: Mapping[str, Any] | None = None, **overrides: Any
) -> PreTrainedModel:
    """Load an M2-BERT from a folder, a weights file, a bundled name or a repository id of the model hub.

    Folders written by `save_pretrained` and the published ones are both understood. Published checkpoints get
    `padding="max_length"`, the way they were trained.

    Args:
        model: path, name of a bundled checkpoint (`m2rag-mini`) or `organisation/name`.
        head: None, `"mlm"` or `"classification"`.
        config: configuration keys, where a bare weights file has no `config.json` beside it.
        overrides: configuration keys that win over the checkpoint's (`pooling="mean"`, ...).

    Raises:
        CheckpointError: nothing there, unreadable, unsafe or incomplete; the message says what to do.
        NonFiniteError: NaN or infinity in a tensor.
        TypeError: an override is no configuration key.
        ValueError: unknown head.
    """
    _check_head(head)
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(M2BertConfig)})
    if unknown:
        raise TypeError(f"load_checkpoint: no configuration key is named {', '.join(unknown)}")
    path = resolve_checkpoint(model)
    folder, weights = (path.parent, path) if path.is_file() else (path, _weights_file(path))
    settings = dict(config) if config is not None else _read_config(folder)
    tensors = read_tensors(weights)
    where = str(weights)
    if any(_OURS.search(key) for key in tensors):
        copies = {key: _weights_of(key, value, where) for key, value in tensors.items()}
        return _load({**settings, **overrides}, copies, head, where)
    if config is None and not any(
        key.startswith("hyena_") or key == "monarch_mixer_sequence_mixing" for key in settings
    ):
        raise CheckpointError(
            f"{folder}: config.json describes a {settings.get('model_type', 'model')!r}, not an M2-BERT "
            "(no monarch_mixer_sequence_mixing, no hyena_* keys)"
        )
    settings = {"padding": "max_length", **settings, **overrides}
    return _load_translated(settings, translate_state_dict(tensors, where), head, where)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors`, `.bin` or `.pt` file. Pickles are read as data only: code in them never runs.

    Raises:
        CheckpointError: the file is truncated, damaged, or holds pickled objects other than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or truncated ({error}); download it again") from error
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, the file holds pickled objects other than tensors, or is damaged "
            f"({str(error).splitlines()[0]}). Save the bare state dict, best as .safetensors"
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); download it again") from error
    for key in ("state", "model", "state_dict", "module"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, expected a state dict")
    tensors = {str(key): value for key, value in data.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def _check_head(head: str | None) -> None:
    if head not in _HEADS:
        raise ValueError(f"head is {head!r}, must be one of {', '.join(map(repr, _HEADS))}")


def _weights_of(key: str, value: torch.Tensor, where: str) -> torch.Tensor:
    """An fp32 copy: the model must not write into the caller's tensors."""
    if not value.is_floating_point():
        raise CheckpointError(f"{where}: tensor {key} holds {value.dtype}, expected floating-point weights")
    value = value.detach().to(torch.float32, copy=True)
    # A sum is finite only if every term is, and it is many times cheaper; only the rare overflow needs a closer look.
    if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        raise NonFiniteError(f"{where}: tensor {key} holds NaN or infinity; the file is damaged")
    return value


def _load_translated(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], head: str | None, where: str
) -> PreTrainedModel:
    """What a published configuration leaves out is read off the tensors."""
    return _load({**_infer_config(tensors), **config}, tensors, head, where)


def _infer_config(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Structural keys as the tensors show them."""
    found: dict[str, Any] = {
        "use_positional_encodings": "embeddings.position_embeddings.weight" in tensors,
        "bidirectional": any(".mlp_rev." in name for name in tensors),
        "residual_long_conv": any(".residual_filter." in name for name in tensors),
        "hyena_training_additions": any(".mixer.norm." in name for name in tensors),
    }
    layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}
    found["num_hidden_layers"] = len(layers)
    shapes = {
        "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
        "embeddings.position_embeddings.weight": ("max_position_embeddings", None),
        "layers.0.mixer.filter.z": ("long_conv_l_max", "hyena_emb_dim"),
        "layers.0.mixer.filter.freq": (None, "hyena_filter_order"),
    }
    for name, keys in shapes.items():
        if name in tensors:
            found.update({key: size for key, size in zip(keys, tensors[name].shape, strict=False) if key})
    out_proj = tensors.get("layers.0.mlp.out_proj.weight")
    if out_proj is not None and out_proj.dim() == 3:
        n_blocks, _, block_in = out_proj.shape
        found["use_monarch_mlp"] = n_blocks > 1
        found["monarch_mlp_nblocks"] = n_blocks
        found["intermediate_size"] = n_blocks * block_in
    return found


def _load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], head: str | None, where: str
) -> PreTrainedModel:
    """Build the model and fill it: tensors under our names, with or without `bert.` in front, all fp32 and finite."""
    bare = {name.removeprefix("bert."): value for name, value in tensors.items()}
    settings = {key: value for key, value in config.items() if key not in _FOREIGN_KEYS}
    if "classifier.bias" in bare and "num_labels" not in settings and "id2label" not in settings:
        settings["num_labels"] = len(bare["classifier.bias"])
    try:
        m2_config = M2BertConfig(**settings)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: configuration refused: {error}") from error
    if m2_config.tie_word_embeddings:
        _tie(bare, head, where)
    # Nothing is allocated or drawn at random here: the checkpoint's tensors become the parameters.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = _HEADS[head](m2_config)
    expected = model.state_dict()
    prefix = "" if head is None else "bert."
    # Positions that were never stored have their analytic values.
    for name, module in model.named_modules():
        if isinstance(module, HyenaFilter):
            for leaf, value in zip(("z", "t", "deltas"), module.analytic_positions(), strict=True):
                bare.setdefault(f"{name.removeprefix(prefix)}.{leaf}", value)

    fitted: dict[str, torch.Tensor] = {}
    unexpected, problems = [], []
    for name, value in bare.items():
        target = name if name in expected else prefix + name
        if target not in expected:
            # Heads that this model does not have may stay in the file.
            if not name.startswith(_HEAD_PARTS):
                unexpected.append(name)
        elif expected[target].shape != value.shape:
            problems.append(
                f"{name} is {tuple(value.shape)}, the configuration asks for {tuple(expected[target].shape)}"
            )
        else:
            fitted[target] = value
    missing = [name for name in expected if name.removeprefix(prefix) not in bare]
    if missing and all(name.startswith(prefix + "pooler.") for name in missing):
        problems.append("the file has no pooler: load it with pooling='mean'")
    if missing:
        problems.append(f"missing tensors: {_listing(missing)}")
    if unexpected:
        problems.append(f"unexpected tensors: {_listing(unexpected)}")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems[:12])}")
    model.load_state_dict(fitted, assign=True)
    model.tie_weights()
    return model.eval()


def _tie(tensors: dict[str, torch.Tensor], head: str | None, where: str) -> None:
    """One tensor under two names, of which a file may hold either."""
    words, decoder = "embeddings.word_embeddings.weight", "head.decoder.weight"
    if words not in tensors and decoder in tensors:
        tensors[words] = tensors[decoder]
    elif decoder not in tensors and words in tensors:
        tensors[decoder] = tensors[words]
    elif head == "mlm" and words in tensors and not torch.equal(tensors[words], tensors[decoder]):
        raise CheckpointError(
            f"{where}: {decoder} differs from {words}, which the configuration ties: pass tie_word_embeddings=False"
        )


def _listing(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"


def resolve_checkpoint(model: str | Path) -> Path:
    """Folder or weights file of a checkpoint named by path, bundled name or repository id (which is downloaded).

    Raises:
        CheckpointError: there is none.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if (BUNDLED / str(model)).is_dir():
        return BUNDLED / str(model)
    if isinstance(model, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not path.parent.exists():
        return _download(model)
    bundled = sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()) if BUNDLED.is_dir() else []
    raise CheckpointError(
        f"no checkpoint at {model!r}: give a folder, a weights file, organisation/name of the model hub, "
        f"or a bundled name ({', '.join(bundled) or 'none'})"
    )


def _download(repository: str) -> Path:
    # Imported here: only this path may touch the network.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", *TOKENIZER_FILES, *WEIGHT_FILES]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"cannot fetch {repository!r} from the model hub ({type(error).__name__}): check the name and the "
            "connection, or download the repository elsewhere and pass its folder"
        ) from error


def _weights_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: no weights, expected one of {', '.join(WEIGHT_FILES)}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no config.json; a bare weights file needs config={{...}}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: holds a {type(settings).__name__}, expected an object")
    return settings
