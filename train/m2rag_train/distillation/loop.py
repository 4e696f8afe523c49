"""Distillation of a sentence encoder into a whole-document encoder: the loop, in one place.

The student reads windows of whole documents; the mean of its hidden states over each span of 254 tokens must match
the teacher's vector of that span, so the mean over all tokens, the document's vector, is made of meanings. Short texts
(titles, headings, questions) are matched directly. Later stages add a contrastive loss on the whole window's vector.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2rag.models import M2BertModel
from m2rag.models.modeling_m2_bert import M2BertMixer
from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation.batches import Batch, BatchSampler, ShortTexts
from m2rag_train.distillation.cache import STUDENT_FILE, build_cache, load_cache
from m2rag_train.distillation.losses import classification_loss, contrastive_loss, cosine_loss
from m2rag_train.distillation.recipe import DistillRecipe, Stage
from m2rag_train.distillation.teacher import load_teacher
from m2rag_train.errors import DivergedError, RecipeError
from m2rag_train.export import save_embedder
from m2rag_train.files import replacing
from m2rag_train.optimizer import parameter_groups, warmup_cosine
from m2rag_train.progress import Meter
from m2rag_train.recipe import RunOptions, check_same_recipe
from m2rag_train.trainer import deferred_interrupt

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"


def build_student(recipe: DistillRecipe, word_embeddings: torch.Tensor) -> M2BertModel:
    """A student that passes its input through nearly unchanged, on word embeddings (V, D) from the teacher.

    Raises:
        ValueError: the embeddings do not fit into the student's.
    """
    torch.manual_seed(recipe.seed)
    model = M2BertModel(recipe.model_config())
    own = model.embeddings.word_embeddings.weight
    n_words, width = word_embeddings.shape
    if n_words > own.shape[0] or width != own.shape[1]:
        raise ValueError(f"word embeddings are {n_words, width}, the student's are {tuple(own.shape)}")
    with torch.no_grad():
        own[:n_words] = word_embeddings * recipe.embedding_scale
        model.embeddings.token_type_embeddings.weight.zero_()
        for mixer in (module for module in model.modules() if isinstance(module, M2BertMixer)):
            nn.init.normal_(mixer.short_conv.weight, std=0.02)
            mixer.short_conv.weight[:, 0, -1] += 1
            nn.init.normal_(mixer.out_proj.weight, std=0.02)
            mixer.out_proj.weight.add_(torch.eye(model.config.hidden_size))
            for filter_ in (mixer.filter, mixer.residual_filter):
                if filter_ is not None:
                    filter_.skip.fill_(1)
    return model


class DocumentBank:
    """Vectors of the documents of the last steps, as extra negatives.

    Attributes:
        vectors: (K, D) fp32 on the CPU, newest first; K grows to `size`.
        documents: (K,) their numbers.
    """

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self.vectors = torch.zeros(0, width)
        self.documents = torch.zeros(0, dtype=torch.long)

    def push(self, vectors: torch.Tensor, documents: torch.Tensor) -> None:
        """Add (N, D) and (N,); the oldest make room."""
        self.vectors = torch.cat([vectors.detach().float().cpu(), self.vectors])[: self.size]
        self.documents = torch.cat([documents, self.documents])[: self.size]


def step_losses(
    model: M2BertModel, batch: Batch, stage: Stage, recipe: DistillRecipe, bank: DocumentBank
) -> dict[str, torch.Tensor]:
    """Losses of one batch: `cosine`, `classification`, and where the stage asks `document` and `contrastive`."""
    device = model.device
    spans, documents = [], []
    for window in batch.windows:
        hidden = model(window.input_ids.to(device)).last_hidden_state[0].float()
        ends = torch.cumsum(hidden, 0)[window.span_starts.to(device) - 1]
        lengths = window.span_starts.diff()[:, None].to(device)
        spans.append(ends.diff(dim=0) / lengths)
        documents.append(hidden.mean(0))
    texts = batch.short_texts
    short = _encode_short_texts(model, texts)

    students = torch.cat([*spans, short])
    teachers = torch.cat([*(w.targets for w in batch.windows), texts.targets]).to(device)
    losses = {
        "cosine": cosine_loss(students, teachers),
        "classification": classification_loss(students, teachers, recipe.classification_temperature),
    }
    document_vectors = torch.stack(documents)
    if stage.document_weight:
        means = torch.stack([w.targets.mean(0) for w in batch.windows]).to(device)
        losses["document"] = cosine_loss(document_vectors, means)
    if stage.contrastive_weight:
        numbers = torch.tensor([w.document for w in batch.windows])
        owned = texts.windows >= 0
        if owned.any():
            losses["contrastive"] = contrastive_loss(
                short[owned.to(device)],
                document_vectors,
                texts.windows[owned].to(device),
                bank.vectors.to(device),
                (numbers[:, None] == bank.documents[None]).to(device),
                recipe.contrastive_temperature,
            )
        bank.push(document_vectors, numbers)
    return losses


def _encode_short_texts(model: M2BertModel, texts: ShortTexts, group: int = 16) -> torch.Tensor:
    """Vectors (T, D), in groups of like length: most texts are far shorter than the longest."""
    lengths = texts.attention_mask.sum(1)
    order = torch.argsort(lengths)
    vectors = []
    for rows in order.split(group):
        width = int(lengths[rows].max())
        ids, mask = texts.input_ids[rows, :width], texts.attention_mask[rows, :width]
        vectors.append(model(ids.to(model.device), mask.to(model.device)).pooler_output.float())
    return torch.cat(vectors)[torch.argsort(order).to(model.device)]


def total_loss(losses: dict[str, torch.Tensor], stage: Stage, recipe: DistillRecipe) -> torch.Tensor:
    """The weighted sum that is minimised."""
    weights = {
        "cosine": 1.0,
        "classification": recipe.classification_weight,
        "document": stage.document_weight,
        "contrastive": stage.contrastive_weight,
    }
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def run(recipe: DistillRecipe, options: RunOptions) -> Path | None:
    """Teacher's vectors (once), training, the finished model; see `Recipe.run`."""
    check_same_recipe(recipe, options.run)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = TextTokenizer.bundled()
    if (size := recipe.model_config().vocab_size) < tokenizer.vocab_size:
        raise RecipeError(f"{recipe.name}: model: vocab_size is {size}, the tokenizer has {tokenizer.vocab_size} ids")
    cache = options.run / "teacher"
    if not (cache / STUDENT_FILE).exists():
        build_cache(recipe, options.data, load_teacher(recipe.teacher.model, tokenizer, device=device), cache)
    state = train(
        recipe,
        options.run,
        cls_id=tokenizer.prefix[0],
        sep_id=tokenizer.suffix[0],
        device=device,
        stop_after=options.stop_after,
    )
    if _steps_of(state) < recipe.total_steps:
        return None
    with replacing(options.model) as folder:
        save_embedder(trained(recipe, state), folder)
    return options.model


def trained(recipe: DistillRecipe, state: Path) -> M2BertModel:
    """The student of a saved state."""
    model = M2BertModel(recipe.model_config())
    model.load_state_dict(_load(state)["model"])
    return model


def train(
    recipe: DistillRecipe,
    run: Path,
    *,
    cls_id: int,
    sep_id: int,
    device: str = "cpu",
    stop_after: int | None = None,
) -> Path:
    """Run the recipe from the last saved state to its end.

    A run in pieces (stopped, interrupted or killed, and called again) takes the same steps as one in a piece.

    Args:
        run: folder with what `build_cache` made in `teacher/`; states are saved to `state.pt` every `save_every` steps.
        cls_id, sep_id: special tokens of the student.
        device: "cpu", "cuda", "cuda:1", ...
        stop_after: steps of this call, for a run in pieces.

    Returns:
        Path of the last saved state.

    Raises:
        DivergedError: a loss or gradient is not finite; names the step. The last saved state is intact.
        CheckpointWriteError: a state could not be written. The one before is intact.
        KeyboardInterrupt: Ctrl-C; the step that ran was finished and saved.
        FileNotFoundError: there are no teacher vectors.
        ValueError: the teacher's vectors and the recipe do not belong together.
    """
    cache = load_cache(run / "teacher")
    sampler = BatchSampler(
        cache.shard,
        span_tokens=recipe.teacher.span_tokens,
        cls_id=cls_id,
        sep_id=sep_id,
        seed=recipe.seed,
    )
    model = build_student(recipe, torch.from_numpy(cache.words)).to(device).train()
    beta1, beta2 = recipe.betas
    groups = parameter_groups(
        model,
        lr=recipe.lr,
        embedding_lr=recipe.embedding_lr,
        filter_lr=recipe.filter_lr,
        weight_decay=recipe.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), foreach=True)
    bank = DocumentBank(recipe.bank_size, model.config.hidden_size)
    state_path = run / STATE_FILE
    first = _restore(state_path, model, optimizer, bank)
    last = recipe.total_steps if stop_after is None else min(first + stop_after, recipe.total_steps)
    logger.info("%s: steps %d to %d, %d documents", recipe.name, first, last, len(sampler.queries_of))
    meter = Meter(recipe.total_steps, lambda done: _tokens_left(recipe, sampler, done))
    with deferred_interrupt() as interrupted:
        for step in range(first, last):
            stage = recipe.stage_at(step)
            batch = sampler.batch(step, stage)
            # Dropout is the only chance inside a step: seeded here, it does not depend on where a run was resumed.
            torch.manual_seed(recipe.seed + step)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe.autocast):
                losses = step_losses(model, batch, stage, recipe, bank)
            loss = total_loss(losses, stage, recipe)
            _check_finite("loss", loss, recipe, step)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            _check_finite("gradient norm", norm, recipe, step)
            factor = warmup_cosine(step, total=recipe.total_steps, warmup=recipe.warmup_steps, final=recipe.final_lr)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            meter.add(step, batch.n_tokens, losses)
            if (step + 1) % recipe.save_every == 0 or step + 1 == last or interrupted():
                _save(state_path, step + 1, model, optimizer, bank)
            if interrupted():
                logger.info("stopped after step %d; saved to %s: run again to resume", step + 1, state_path)
                raise KeyboardInterrupt
    return state_path


def _check_finite(what: str, value: torch.Tensor, recipe: DistillRecipe, step: int) -> None:
    if not torch.isfinite(value):
        raise DivergedError(f"{recipe.name}: {what} is {value.item()} at step {step}")


def _tokens_left(recipe: DistillRecipe, sampler: BatchSampler, done: int) -> float:
    """About how many tokens the run needs after `done` steps."""
    tokens = 0.0
    for stage in recipe.stages:
        tokens += max(stage.steps - done, 0) * sampler.expected_tokens(stage)
        done = max(done - stage.steps, 0)
    return tokens


def _save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, bank: DocumentBank) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bank": {"vectors": bank.vectors, "documents": bank.documents},
    }
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, bank: DocumentBank) -> int:
    if not path.exists():
        return 0
    state = _load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    bank.vectors, bank.documents = state["bank"]["vectors"], state["bank"]["documents"]
    return int(state["step"])


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _steps_of(path: Path) -> int:
    return int(_load(path)["step"])
