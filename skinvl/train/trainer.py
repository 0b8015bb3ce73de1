"""The little that is ours on top of TRL's SFTTrainer: sampling, loss, evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from trl import SFTConfig, SFTTrainer

from skinvl.data.mixture import NOTHING, Row
from skinvl.data.sampler import MixtureSampler, alike, row_of, together
from skinvl.evaluate.engine import Question, Transformers, blocks, questions
from skinvl.model.base import autocast, logits
from skinvl.model.families import Family
from skinvl.model.loaded import LoadedModel
from skinvl.model.pack import Batch, Collator
from skinvl.recipe.recipe import Recipe
from skinvl.score.metrics import load as load_metric
from skinvl.score.metrics import measure
from skinvl.score.predictions import Answer
from skinvl.train.loop import Loop


class Trainer(Loop, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer over Rows: the loss is the mean over all supervised tokens of a step, on every rank and accumulation.

    Args:
        evaluation: the eval rows of each source.
        log: the JSON-lines file that every logged dictionary is appended to.
    """

    section = "parts"
    unreached = "A projector or tower without gradient belongs to a base that ignores images"

    def __init__(
        self,
        model: PeftModel,
        args: SFTConfig,
        recipe: Recipe,
        family: Family,
        train: Sequence[Row],
        evaluation: Mapping[str, Sequence[Row]],
        collator: Collator,
        log: Path,
    ) -> None:
        self.recipe, self.family, self.parts = recipe, family, recipe.parts
        args._n_gpu = min(args.n_gpu, 1)  # more GPUs are ranks: DataParallel would cut a row of many conversations
        masters = {p: p.data for p in model.parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=_numbers(train),
            eval_dataset={name: _numbers(rows) for name, rows in evaluation.items()} or None,
            processing_class=collator.chat.processor,
        )
        # TRL takes nothing but a datasets.Dataset, which would copy every conversation into Arrow; it only looks at it.
        self.train_dataset = RowDataset(train)
        self.eval_dataset = {name: RowDataset(rows) for name, rows in evaluation.items()}
        for parameter, master in masters.items():
            if parameter.dtype != master.dtype:  # TRL casts a QLoRA adapter to bf16
                parameter.data = master.to(parameter.device)
        # Our compute_loss divides by the supervised tokens of the whole step, whatever the model's own forward accepts.
        self.model_accepts_loss_kwargs = True
        self.sampled = _sample(evaluation, recipe)  # the questions of `evaluate.during`
        self.watch(log, recipe.early_stopping)

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the accelerator; on a CPU it leaves fp16 out without a word, and gets autocast and scaler here."""
        super().create_accelerator_and_postprocess()
        if self.args.fp16 and self.args.device.type == "cpu":
            self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu")

    def log(self, logs: dict[str, float], *positional: Any, **named: Any) -> None:
        """Logs a dictionary; beside a step's loss stands what it was scaled by, in fp16."""
        scaler = self.accelerator.scaler
        if scaler is not None and "loss" in logs:
            logs["loss_scale"] = scaler.get_scale()
        super().log(logs, *positional, **named)

    def part_of(self, name: str) -> str:
        """The part of a base that a parameter belongs to."""
        part: str = self.family.part_of(name)
        return part

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = (train_dataset or self.train_dataset).rows
        batch, ranks = self.args.per_device_train_batch_size, self.args.world_size
        step = batch * ranks * self.args.gradient_accumulation_steps
        sampler = MixtureSampler(
            rows,
            self.args.seed,
            self.recipe.data.balance,
            multiple=batch * ranks if ranks > 1 else 1,
            batch=batch,
            step=step if self.data_collator.share else 1,
            drawn=self.recipe.data.references == "drawn",
        )
        return cast(Sampler[int], sampler)  # a DataLoader takes any iterable that has a length

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The summed token loss over the supervised tokens of the step, float32[].

        `num_items_in_batch` counts those of all ranks and accumulated batches; ranks average their gradients, hence
        the factor of their number.

        Raises:
            TrainingError: the loss is not a number; the message names the conversations of the batch.
        """
        assert not return_outputs
        self.images_seen = self.images_seen or ("pixel_values" in inputs.inputs and not inputs.filler)
        losses, _ = token_losses(model, inputs)
        if not losses.isfinite().all():
            overflow = ", set train.bf16 or none of the two, since fp16 ends at 65,504" * bool(self.args.fp16)
            self.refuse_loss(inputs.names, f"look at these conversations with skinvl show{overflow}")
        if num_items_in_batch is None:
            return losses.mean()
        ranks: int = self.accelerator.num_processes
        return losses.sum() / num_items_in_batch * ranks

    # What transformers moves to the device and counts of a batch, which it expects to be a dictionary.

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return replace(inputs.to(self.args.device), inputs=super()._prepare_inputs(inputs.inputs))

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | int | None:
        labels = [{"labels": batch.targets, "shift_labels": batch.targets} for batch in batch_samples]
        items: torch.Tensor | int | None = super()._get_num_items_in_batch(labels, device)
        return items

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        super()._track_num_input_tokens(inputs.inputs)

    def floating_point_ops(self, inputs: Batch) -> int:
        """The operations of a step by transformers' own rule, from the positions of the batch."""
        operations: int = super().floating_point_ops(inputs.inputs)
        return operations

    def get_batch_samples(self, *positional: Any, **named: Any) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The batches of the next step, and their supervised tokens."""
        started = time.perf_counter()
        batches, items = super().get_batch_samples(*positional, **named)
        waited = time.perf_counter() - started
        samples = sum(len(batch.names) for batch in batches)  # a filler does not count
        tokens, positions = sum(batch.tokens for batch in batches), sum(batch.ids.numel() for batch in batches)
        self.throughput.batches(samples, tokens, positions, waited)
        return batches, items

    def evaluate(
        self,
        eval_dataset: Mapping[str, RowDataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Summed token losses over supervised tokens, for each source and for all, over all ranks."""
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics, total, started = {}, torch.zeros(2, dtype=torch.float64), time.monotonic()
        for name, rows in sets.items():
            sums = self.sums(rows.rows)
            metrics[f"{metric_key_prefix}_{name}_loss"] = float(sums[0] / sums[1])
            total += sums[:2]
        metrics[f"{metric_key_prefix}_loss"] = float(total[0] / total[1])
        metrics[f"{metric_key_prefix}_tokens"] = float(total[1])
        if eval_dataset is None and self.sampled:
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in self.answered().items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def answered(self) -> dict[str, float]:
        """The metrics of the answers to the questions of `evaluate.during`, which ranks share; none that no row has."""
        evaluate = self.recipe.evaluate
        engine = Transformers(LoadedModel(self.model, self.data_collator, self.recipe, {}), evaluate.generation)
        self.model.eval()
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = blocks(self.sampled, evaluate.batch_size)[rank::ranks]
        rows: list[Answer] = gather_object([row for block in engine.answers(mine) for row in block])
        values = measure(rows, [load_metric(name) for name in evaluate.metrics])
        return {name: value for name, value in values.items() if value == value}

    @torch.no_grad()
    def sums(self, rows: Sequence[Row]) -> torch.Tensor:
        """(token losses, supervised tokens, answer tokens, those that are the most likely ones), float64[4].

        Answer tokens are the supervised ones without the end of turn. Each row counts once whatever the number of
        ranks, and all ranks run the same number of forwards.
        """
        blocks = list(together(alike(rows), range(len(rows)), self.args.per_device_eval_batch_size))
        ranks = self.accelerator.num_processes
        blocks += [[NOTHING]] * (-len(blocks) % ranks)
        loader = DataLoader(
            RowDataset(rows),
            batch_sampler=blocks[self.accelerator.process_index :: ranks],
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        close = self.processing_class.tokenizer.convert_tokens_to_ids(self.family.turn_close)
        sums = torch.zeros(4, dtype=torch.float64)
        self.model.eval()
        for batch in loader:
            batch = self._prepare_inputs(batch)
            with autocast(self.recipe, self.args.device):
                losses, right = token_losses(self.model, batch)
            answer = batch.targets[batch.supervised] != close
            counts = torch.tensor([len(losses), int(answer.sum()), int((right & answer).sum())])
            sums += torch.cat([losses.double().sum().cpu()[None], counts])
        gathered: torch.Tensor = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
        return gathered


def token_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, whether the token is the most likely one) of each supervised token, float32[N] and bool[N], row by row.

    Logits are computed at those positions alone.
    """
    supervised = batch.supervised
    predicted = logits(model, batch.inputs, supervised)
    targets = batch.targets[supervised]
    return cross_entropy(predicted, targets, reduction="none"), predicted.argmax(-1) == targets


def _sample(evaluation: Mapping[str, Sequence[Row]], recipe: Recipe) -> list[Question]:
    every = [question for rows in evaluation.values() for row in rows for question in questions(row)]
    count = min(recipe.evaluate.during, len(every))
    return random.Random(recipe.evaluate.generation.seed).sample(every, count)


def _numbers(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict({"row": list(range(len(rows)))})


class RowDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of a set as dictionaries, the form in which the Trainer's data loader hands them to the collator.

    An index is one of a MixtureSampler: at NOTHING the row is None.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row": row_of(self.rows, index)}
