"""Models with a masked-language-model head as folders: what pretraining and extension start from and leave behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import BertTokenizer

from m2rag.errors import CheckpointError, NonFiniteError
from m2rag.models import M2BertForMaskedLM, load_checkpoint
from m2rag.models.checkpoints import TOKENIZER_FILES, resolve_checkpoint
from m2rag.tokenizer import VOCABULARY, TextTokenizer
from m2rag_train.files import replacing


def load_masked_lm(base: str | Path) -> tuple[M2BertForMaskedLM, TextTokenizer]:
    """Model with its head, in eval mode, and its tokenizer: the folder's own, else the bundled one.

    Raises:
        CheckpointError: nothing there, damaged, without the head, or a tokenizer with more ids than embeddings.
    """
    path = resolve_checkpoint(base)
    # The head's training knows no pooler, and files with the head hold none.
    model = load_checkpoint(path, head="mlm", pooling="mean")
    assert isinstance(model, M2BertForMaskedLM)
    tokenizer = TextTokenizer.from_folder(path if path.is_dir() else path.parent) or TextTokenizer.bundled()
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def check_vocabulary(model: M2BertForMaskedLM, tokenizer: TextTokenizer) -> None:
    """Every id must have an embedding.

    Raises:
        CheckpointError: names both numbers.
    """
    if model.config.vocab_size < tokenizer.vocab_size:
        raise CheckpointError(
            f"the model has {model.config.vocab_size} word embeddings, the tokenizer {tokenizer.vocab_size} ids"
        )


def save_masked_lm(model: M2BertForMaskedLM, out: Path, base: str | Path | None = None) -> Path:
    """Write weights in fp32, configuration and tokenizer.

    The folder loads with `load_checkpoint(out, head="mlm")`, `AutoModelForMaskedLM` and, as an encoder with mean
    pooling, with `M2Embedder` and `AutoModel`.

    Args:
        base: checkpoint whose tokenizer files, if it has any, go into the folder; else the bundled ones.

    Raises:
        NonFiniteError: a weight is not finite.
        CheckpointWriteError: the folder could not be written; a model that was there before is intact.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(f"{name}: not finite")
    own = [] if base is None else _tokenizer_files(resolve_checkpoint(base))
    model.config.dtype = torch.float32
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as folder:
        model.save_pretrained(folder)
        for path in own:
            shutil.copyfile(path, folder / path.name)
        if not own:
            limit = model.config.max_tokens
            BertTokenizer(str(VOCABULARY), do_lower_case=True, model_max_length=limit).save_pretrained(folder)
    return out


def _tokenizer_files(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
