"""Fine-tuning with `SentenceTransformerTrainer`: put the parts together, train, keep the best, write the model."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from m2rag.models import M2BertModel, load_checkpoint
from m2rag.models.checkpoints import TOKENIZER_FILES, resolve_checkpoint
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import RecipeError
from m2rag_train.export import save_embedder
from m2rag_train.files import replacing
from m2rag_train.finetuning.data import Pairs, load_pairs
from m2rag_train.finetuning.evaluation import METRIC, TaskEvaluator, encoder_of, load_tasks
from m2rag_train.finetuning.losses import Anchors, DocumentBank, OrthogonalLoss, RankingLoss
from m2rag_train.finetuning.negatives import base_vectors, find_negatives
from m2rag_train.finetuning.recipe import FinetuneRecipe
from m2rag_train.finetuning.schedule import BatchCollator, TokenTable, plan_batches, token_spans
from m2rag_train.optimizer import parameter_groups, warmup_cosine
from m2rag_train.recipe import RunOptions, check_same_recipe
from m2rag_train.trainer import (
    CHECKPOINTS,
    GuardedTrainer,
    StepCallback,
    compute_layers_twice,
    deferred_interrupt,
    last_checkpoint,
    on_cpu,
    one_device,
)

logger = logging.getLogger(__name__)

BASE_FOLDER = "base"
RESULT_FILE = "result.json"
WEIGHTS = "model.safetensors"
BANK = "bank.pt"


class FinetuneTrainer(GuardedTrainer, SentenceTransformerTrainer):
    """The trainer of sentence-transformers with our guards; its checkpoints hold the encoder's weights and the bank."""

    bank: DocumentBank | None = None

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: writing one asks the model hub about the base model."""

    def get_batch_sampler(self, dataset: Any, **_: Any) -> BatchSampler:
        """The plan's order; a row of the dataset is a batch."""
        return BatchSampler(SequentialSampler(dataset), batch_size=1, drop_last=False)

    def save_extra(self, folder: Path) -> None:
        if self.bank is not None:
            torch.save(self.bank.state(), folder / BANK)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in encoder_of(self.model).state_dict().items()}
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        encoder_of(self.model).load_state_dict(load_file(Path(checkpoint_path) / WEIGHTS))
        if self.bank is not None:
            self.bank.restore(torch.load(Path(checkpoint_path) / BANK, map_location="cpu", weights_only=True))


class BestCallback(TrainerCallback):
    """Saves what was measured, and ends training when the best is `patience` steps old."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        control.should_save = True
        best = state.best_metric
        if self._patience is None or best is None or metrics[f"eval_{METRIC}"] > best:
            return
        if state.global_step - state.best_global_step >= self._patience:
            logger.info("no better than %.1f since step %d: done", 100 * best, state.best_global_step)
            control.should_training_stop = True


@dataclass(frozen=True)
class Prepared:
    """What a run needs besides its recipe."""

    model: SentenceTransformer
    hub_tokenizer: PreTrainedTokenizerBase | None
    tokenizer: TextTokenizer
    max_tokens: int
    pairs: Pairs
    queries: TokenTable
    documents: TokenTable
    evaluator: TaskEvaluator | None


def run(recipe: FinetuneRecipe, options: RunOptions) -> Path | None:
    """See `Recipe.run`."""
    folder = options.run
    if (folder / RESULT_FILE).exists() and options.model.exists():
        logger.info("%s: finished already; another --run starts anew", recipe.name)
        return options.model
    began = time.monotonic()
    arguments = _arguments(recipe, options)
    with PartialState().main_process_first():
        check_same_recipe(recipe, folder)
        prepared = _prepare(recipe, options, torch.device(arguments.device))
    vectors = None
    mined = recipe.negatives.per_document and recipe.negatives.by == "model"
    from_base = recipe.loss.bank and recipe.loss.bank_start == "base"
    if recipe.loss.anchor_weight or from_base or mined:
        dtype = torch.bfloat16 if recipe.autocast else torch.float32
        cache = folder / "base_vectors.pt"
        with PartialState().main_process_first():
            vectors = base_vectors(prepared.model, prepared.queries, prepared.documents, dtype, cache)
    candidates = find_negatives(recipe.negatives, prepared.pairs, vectors)
    lengths = [prepared.documents.used(number) for number in range(len(prepared.documents))]
    batches = plan_batches(
        prepared.pairs, recipe, lengths, candidates, multiple=recipe.accumulation * PartialState().num_processes
    )
    weight = recipe.loss.passage_weight
    passages = token_spans(prepared.pairs, prepared.tokenizer, prepared.max_tokens) if weight else None
    collator = BatchCollator(
        batches,
        prepared.pairs,
        prepared.queries,
        prepared.documents,
        columns=recipe.loss.name == "cached_mnrl",
        passages=passages,
    )
    base = None
    if prepared.evaluator is not None:
        logger.info("the base model:")
        base = _measured(prepared, folder)
    trainer = _trainer(recipe, arguments, prepared, collator, len(batches), vectors)
    if not _train(trainer, recipe, options, collator):
        return None
    if not trainer.is_world_process_zero():
        return options.model
    result = {"base": base, "steps": trainer.state.global_step, **_release(recipe, prepared, trainer, options)}
    result["seconds"] = round(time.monotonic() - began, 1)
    with replacing(folder / RESULT_FILE) as path:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return options.model


def _arguments(recipe: FinetuneRecipe, options: RunOptions) -> SentenceTransformerTrainingArguments:
    evaluation = recipe.evaluation
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.run / CHECKPOINTS),
        # The plan holds every epoch, and a row of the dataset is a batch.
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        bf16=recipe.autocast,
        use_cpu=on_cpu(options.device),
        save_strategy="steps",
        save_steps=recipe.save_every,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=None if evaluation is None else evaluation.every,
        metric_for_best_model=None if evaluation is None else METRIC,
        greater_is_better=None if evaluation is None else True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    return one_device(arguments, options.device)


def _prepare(recipe: FinetuneRecipe, options: RunOptions, device: torch.device) -> Prepared:
    pairs = load_pairs(recipe.sources, options.data)
    tasks = [] if recipe.evaluation is None else load_tasks(recipe.evaluation.tasks, options.data)
    path = options.data / recipe.base
    source = resolve_checkpoint(path if path.exists() else recipe.base)
    overrides: dict[str, Any] = {} if recipe.pooling is None else {"pooling": recipe.pooling}
    encoder = load_checkpoint(source, **overrides)
    config = encoder.config
    if config.padding == "as_given":
        raise RecipeError(f"{recipe.name}: the base has padding 'as_given': its vectors depend on the batch")
    limit = recipe.max_tokens or config.max_tokens
    if limit > config.max_tokens:
        raise RecipeError(f"{recipe.name}: max_tokens is {limit:,}, {recipe.base} takes at most {config.max_tokens:,}")
    own = source if source.is_dir() else source.parent
    tokenizer = TextTokenizer.from_folder(own) or TextTokenizer.bundled()
    hub_tokenizer = None
    if any((own / name).is_file() for name in TOKENIZER_FILES):
        hub_tokenizer = AutoTokenizer.from_pretrained(own, model_max_length=config.max_tokens)
    if recipe.loss.dimensions:
        config.matryoshka_dimensions = _dimensions(recipe, config.hidden_size)
    base = options.run / BASE_FOLDER
    if not (base / "modules.json").exists():
        with replacing(base) as temporary:
            save_embedder(encoder, temporary, dtype=torch.float32, tokenizer=hub_tokenizer)
    queries = TokenTable(pairs.queries, tokenizer, min(recipe.max_query_tokens, limit))
    queries.report("queries")
    documents = TokenTable(pairs.documents, tokenizer, limit)
    documents.report("documents")
    evaluator = TaskEvaluator(tasks, tokenizer, limit) if tasks else None
    return Prepared(stack_of(base, device), hub_tokenizer, tokenizer, limit, pairs, queries, documents, evaluator)


def stack_of(folder: Path, device: torch.device) -> SentenceTransformer:
    """The folder as sentence-transformers loads it; a dense layer behind the pooling is the model's own pooler."""
    stack = SentenceTransformer(str(folder), device=str(device))
    for module in stack:
        if isinstance(module, Dense):
            module.linear = encoder_of(stack).pooler
    return stack


def _dimensions(recipe: FinetuneRecipe, full: int) -> list[int]:
    if not recipe.loss.dimensions:
        return []
    if max(recipe.loss.dimensions) > full:
        raise RecipeError(f"{recipe.name}: loss.dimensions has {max(recipe.loss.dimensions)}, the model has {full}")
    return sorted({*recipe.loss.dimensions, full})


def _loss(
    recipe: FinetuneRecipe, prepared: Prepared, vectors: dict[str, torch.Tensor] | None, bank: DocumentBank | None
) -> torch.nn.Module:
    settings, model = recipe.loss, prepared.model
    dimensions = _dimensions(recipe, encoder_of(model).config.hidden_size)
    if settings.name == "cached_mnrl":
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / settings.temperature, mini_batch_size=1)
        return MatryoshkaLoss(model, loss, dimensions) if dimensions else loss
    anchors = None
    if settings.anchor_weight:
        assert vectors is not None
        anchors = Anchors(vectors["queries"], vectors["documents"], settings.anchor_weight)
    if settings.name == "orthogonal":
        return OrthogonalLoss(model, form=settings.form, dimensions=dimensions, anchors=anchors)
    return RankingLoss(
        model,
        temperature=settings.temperature,
        bank=bank,
        cached=settings.cached,
        document_tokens=recipe.batch_tokens or 1,
        passage_weight=settings.passage_weight,
        dimensions=dimensions,
        anchors=anchors,
    )


def _trainer(
    recipe: FinetuneRecipe,
    arguments: SentenceTransformerTrainingArguments,
    prepared: Prepared,
    collator: BatchCollator,
    n_batches: int,
    vectors: dict[str, torch.Tensor] | None,
) -> FinetuneTrainer:
    encoder = encoder_of(prepared.model)
    if recipe.gradient_checkpointing:
        compute_layers_twice(encoder)
    total = n_batches // (recipe.accumulation * arguments.world_size)
    beta1, beta2 = recipe.betas
    groups = parameter_groups(
        encoder,
        lr=recipe.lr,
        embedding_lr=recipe.embedding_lr or recipe.lr,
        filter_lr=recipe.filter_lr or recipe.lr,
        weight_decay=recipe.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=recipe.eps)
    factor = partial(warmup_cosine, total=total, warmup=round(recipe.warmup * total), final=recipe.final_lr)
    bank = None
    if recipe.loss.bank:
        bank = DocumentBank(recipe.loss.bank)
        if recipe.loss.bank_start == "base":
            assert vectors is not None
            bank.push(vectors["documents"], torch.arange(len(vectors["documents"])))
    trainer = FinetuneTrainer(
        model=prepared.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"batch": list(range(n_batches))}),
        loss=_loss(recipe, prepared, vectors, bank),
        evaluator=prepared.evaluator,
        data_collator=collator,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)),
    )
    trainer.run_name, trainer.bank = recipe.name, bank
    if recipe.evaluation is not None:
        patience = recipe.evaluation.patience
        trainer.add_callback(BestCallback(patience and patience * recipe.evaluation.every))
    return trainer


def _train(trainer: FinetuneTrainer, recipe: FinetuneRecipe, options: RunOptions, collator: BatchCollator) -> bool:
    """Train from the last checkpoint; whether the run is at its end.

    Raises:
        KeyboardInterrupt: Ctrl-C; the step that ran was finished and saved.
    """
    last = last_checkpoint(options.run / CHECKPOINTS)
    per_step = recipe.accumulation * trainer.args.world_size
    total = len(trainer.train_dataset) // per_step
    with deferred_interrupt() as interrupted:
        steps = StepCallback(
            trainer,
            interrupted,
            stop_after=options.stop_after,
            step_tokens=lambda step: sum(collator.tokens(i) for i in range(step * per_step, (step + 1) * per_step)),
            total_steps=total,
        )
        trainer.add_callback(steps)
        if last is not None and _ended_early(last, recipe):
            trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
            return True
        logger.info("%s: %d steps%s", recipe.name, total, f", going on from {last.name}" if last else "")
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if interrupted():
            logger.info("stopped after step %d; saved: run again to resume", trainer.state.global_step)
            raise KeyboardInterrupt
    return not steps.stopped


def _ended_early(checkpoint: Path, recipe: FinetuneRecipe) -> bool:
    """Whether a run that was cut off here had no patience left, so that nothing but the release is to be done."""
    if recipe.evaluation is None or recipe.evaluation.patience is None:
        return False
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    measured = any(entry["step"] == state.global_step and f"eval_{METRIC}" in entry for entry in state.log_history)
    since = state.global_step - (state.best_global_step or 0)
    return measured and since >= recipe.evaluation.patience * recipe.evaluation.every


def _measured(prepared: Prepared, folder: Path) -> dict[str, float]:
    """The base model's figures, measured once per run."""
    path = folder / "base_result.json"
    if not path.exists():
        assert prepared.evaluator is not None
        figures = prepared.evaluator(prepared.model)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def _release(
    recipe: FinetuneRecipe, prepared: Prepared, trainer: FinetuneTrainer, options: RunOptions
) -> dict[str, Any]:
    """Write the best weights, mixed with the base's, as a model; what it scores."""
    state, encoder = trainer.state, encoder_of(prepared.model)
    best = state.best_global_step
    if best:
        trainer._load_from_checkpoint(str(options.run / CHECKPOINTS / f"checkpoint-{best}"))
    if recipe.keep:
        mix_weights(encoder, load_file(options.run / BASE_FOLDER / WEIGHTS), recipe.keep)
    released = None
    if prepared.evaluator is not None:
        logger.info("the released model, of step %s:", best)
        released = prepared.evaluator(prepared.model)
    with replacing(options.model) as out:
        save_embedder(encoder, out, dtype=getattr(torch, recipe.dtype), tokenizer=prepared.hub_tokenizer)
    return {"best_step": best, "best": state.best_metric, "released": released}


@torch.no_grad()
def mix_weights(model: M2BertModel, base: dict[str, torch.Tensor], keep: float) -> None:
    """Set each weight to (1 - keep) * itself + keep * base: WiSE-FT, arXiv:2109.01903."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(base[name].to(value.device), keep)
