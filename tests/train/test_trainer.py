"""The loss is the mean over all supervised tokens, however the batch is cut; parts learn at their own rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from helpers import runs, tiny
from skinvl.data import mixture
from skinvl.model.chat import UNTRAINED
from skinvl.model.lengths import sizes
from skinvl.model.pack import Collator
from skinvl.model.row import encode_row
from skinvl.recipe.recipe import Recipe
from skinvl.train import sft
from skinvl.train.callbacks import TrainingError
from skinvl.train.log import mean
from skinvl.train.trainer import RowDataset, Trainer, token_losses


def trainer(one: Recipe, tmp_path: Path, **changes: Any) -> Trainer:
    """A trainer over the recipe's rows."""
    set_seed(0)
    sets = mixture.load(one.data)
    kind = runs.family_of(one)
    args = sft.arguments(one, tmp_path / "run")
    collator = Collator(runs.chat(one))
    return Trainer(runs.attached(one), args, one, kind, sets.train, sets.evaluation, collator, tmp_path / "log.jsonl")


def first_gradients(one: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, Any]]:
    """The loss of the first optimizer step, and the gradients it saw."""
    made = trainer(one, tmp_path)
    torch.manual_seed(1)
    for parameter in made.model.parameters():
        if parameter.requires_grad:  # lora_B at zero would leave lora_A without a gradient
            parameter.data += 0.02 * torch.randn_like(parameter)
    found: dict[str, torch.Tensor] = {}
    step = made.create_optimizer().step

    def look(*args: Any, **settings: Any) -> Any:
        if not found:
            found.update({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
        return step(*args, **settings)

    monkeypatch.setattr(made.optimizer, "step", look)
    made.train()
    losses = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    return losses[0]["loss"], found


@pytest.mark.parametrize("family", tiny.SOME)
def test_batch_8_is_4_accumulated_twice(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train__max_steps": 1, "train__max_grad_norm": 0.0}
    one = runs.make(tmp_path, family, train__per_device_train_batch_size=8, **settings)
    (tmp_path / "whole").mkdir()
    loss, gradients = first_gradients(one, tmp_path / "whole", monkeypatch)
    two = runs.make(tmp_path, family, train__gradient_accumulation_steps=2, **settings)
    (tmp_path / "halves").mkdir()
    again, others = first_gradients(two, tmp_path / "halves", monkeypatch)
    assert again == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == others.keys()
    for name, value in gradients.items():
        difference = (value - others[name]).norm() / value.norm().clamp(min=1e-12)
        assert difference < 1e-4, name


def test_a_mean_of_batch_means_would_be_seen(tmp_path: Path) -> None:
    made = trainer(runs.make(tmp_path, "qwen2_vl"), tmp_path)
    rows = made.train_dataset.rows
    batches = [made.data_collator([{"row": row} for row in rows[start : start + 4]]) for start in (0, 4)]
    with torch.no_grad():
        sums = [token_losses(made.model.eval(), batch)[0] for batch in batches]
    true = torch.cat(sums).mean()
    assert (
        abs(torch.stack([one.mean() for one in sums]).mean() - true) / true > 1e-4
    )  # lengths differ, so this can fail
    parts = [
        made.compute_loss(made.model, batch, num_items_in_batch=torch.tensor(sum(map(len, sums)))) for batch in batches
    ]
    assert sum(part.item() for part in parts) == pytest.approx(float(true), rel=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_is_that_of_hugging_face_at_the_supervised_tokens(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    model, chat = tiny.model(family), runs.chat(one)
    found, wrong, expected = [], [], []
    with torch.no_grad():
        for row in mixture.load(one.data).train[:4]:
            batch = runs.alone(chat, row)
            labels = torch.tensor([encode_row(chat, row).encoded.labels])
            theirs = model(**batch.inputs, labels=labels).loss
            losses, right = token_losses(model, batch)
            assert len(losses) == int((labels != UNTRAINED).sum()) == len(right)
            assert float(losses.mean()) == pytest.approx(float(theirs), rel=1e-5)
            rolled = replace(batch, targets=torch.roll(batch.targets, 1, 1))
            found.append(losses)
            expected.append(theirs.expand(len(losses)))
            wrong.append(token_losses(model, rolled)[0])
    mean = float(torch.cat(expected).mean())
    assert float(torch.cat(found).mean()) == pytest.approx(mean, rel=1e-5)
    assert float(torch.cat(wrong).mean()) != pytest.approx(mean, rel=1e-2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_computed_where_a_token_is_supervised_and_nowhere_else(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    model, batch = runs.attached(one), runs.batch(one, mixture.load(one.data).train[:8])
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: seen.append(logits.shape))
    losses, _ = token_losses(model, batch)
    assert [shape[:2] for shape in seen] == [(1, len(losses))]
    assert len(losses) == int((batch.targets != UNTRAINED).sum())


def test_every_part_and_decay_has_its_group(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", train__weight_decay=0.1)
    made = trainer(one, tmp_path)
    optimizer = made.create_optimizer()
    names = {id(p): n for n, p in made.model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-3 if "merger" in name else 1e-2), name
            assert group["weight_decay"] == (0.0 if name.endswith("bias") or "ln_q" in name else 0.1), name
    trained = {id(p) for p in made.model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained


def test_eval_loss_is_a_sum_over_tokens_whatever_the_batch(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", train__per_device_eval_batch_size=1)
    made = trainer(one, tmp_path)
    rows = made.eval_dataset["drawn"].rows
    single = made.sums(rows)
    made.args.per_device_eval_batch_size = 5
    torch.testing.assert_close(made.sums(rows), single, rtol=1e-5, atol=1e-5)
    metrics = made.evaluate()
    assert metrics["eval_drawn_loss"] == pytest.approx(float(single[0] / single[1]))
    assert metrics["eval_tokens"] == single[1]
    answers = sum(len(made.data_collator.chat.encode(r.example, ((112, 112),)).ids) for r in rows)
    assert 0 < single[2] == single[1] - len(rows) < answers


def test_a_part_that_nothing_reaches_stops_the_run(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    made = trainer(one, tmp_path)
    for name, parameter in made.model.named_parameters():
        if "merger" in name and parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=r"parts\.projector: every gradient is zero in step 2"):
        made.train()


def test_text_only_batches_do_not_alarm(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "mllama")
    source = runs.source(tmp_path / "texts", images=0, text_only=12)
    one = one.model_copy(
        update={"data": one.data.model_copy(update={"train": [mixture.SourceSpec(source=str(source), split="train")]})}
    )
    trainer(one, tmp_path).train()


def test_a_qlora_adapter_keeps_its_fp32_masters_and_moves_alone(tmp_path: Path) -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    one = runs.make(tmp_path, "qwen2_vl", quantization=nf4)
    made = trainer(one, tmp_path)
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made.train()
    for name, parameter in made.model.named_parameters():
        same = torch.equal(before[name], parameter)
        assert same != parameter.requires_grad, name


def test_workers_change_no_number(tmp_path: Path) -> None:
    losses = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        trainer(runs.make(folder, "qwen2_vl", train__dataloader_num_workers=workers), folder).train()
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]


def test_the_mean_loss_is_of_all_steps_whatever_is_logged(tmp_path: Path) -> None:
    means = []
    for steps in (1, 2, 10):  # of 3
        folder = tmp_path / str(steps)
        folder.mkdir()
        trainer(runs.make(folder, "qwen2_vl", train__logging_steps=steps), folder).train()
        means.append(mean(folder / "log.jsonl", "loss"))
    assert means == [pytest.approx(means[0], rel=1e-5)] * 3


def test_a_step_without_an_image_moves_the_projector_by_its_momentum(tmp_path: Path) -> None:
    settings = {"train__max_steps": 2, "train__per_device_train_batch_size": 1, "train__lr_scheduler_type": "constant"}
    one = runs.make(tmp_path, "qwen2_vl", data__eval=[], **settings)
    made = trainer(one, tmp_path)
    rows = made.train_dataset.rows
    made.train_dataset = RowDataset([next(row for row in rows if row.example.images)])
    made.train()
    projector = [p for n, p in made.model.named_parameters() if p.requires_grad and "lora" not in n]
    before = [p.detach().clone() for p in projector]
    optimizer = made.optimizer
    assert optimizer is not None
    for p in projector:
        p.grad = None
    made.callback_handler.on_pre_optimizer_step(made.args, made.state, made.control)
    assert all(p.grad is not None and not p.grad.any() for p in projector)
    optimizer.step()
    assert any(not torch.equal(p, earlier) for p, earlier in zip(projector, before, strict=True))


@pytest.mark.parametrize("family", tiny.SOME)
def test_a_filler_lets_the_tower_run_and_changes_nothing(tmp_path: Path, family: str) -> None:
    one = runs.make(tmp_path, family)
    runs.source(tmp_path / "drawn", text_only=3)
    rows = mixture.load(one.data).train
    model = runs.attached(one)
    plain, filled = Collator(runs.chat(one)), Collator(runs.chat(one), filler=True)
    text = [{"row": row} for row in rows if not row.example.images][:2]
    batch, more = plain(text), filled(text)
    assert "pixel_values" in more.inputs
    assert "pixel_values" not in batch.inputs
    assert more.names == batch.names
    assert (batch.filler, more.filler) == (False, True)
    assert more.tokens == batch.tokens
    losses, _ = token_losses(model, batch)
    again, _ = token_losses(model, more)
    assert torch.allclose(losses, again, rtol=1e-5, atol=1e-6)
    again.sum().backward()
    projector = [p for n, p in model.named_parameters() if p.requires_grad and "lora" not in n]
    assert projector
    assert all(p.grad is not None and not p.grad.any() for p in projector)
    mixed = [{"row": row} for row in rows if row.example.images][:1] + text
    assert not filled(mixed).filler  # an image is there already


def test_the_speed_of_a_run_counts_its_conversations(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__eval=[])
    made = trainer(one, tmp_path)
    assert made.throughput.speed(made.accelerator) is None
    made.train()
    speed = made.throughput.speed(made.accelerator)
    assert speed is not None
    assert speed.steps == 3
    seconds = speed.steps * speed.step_seconds
    assert speed.samples_per_second * seconds == pytest.approx(12)  # three batches of four
    chat = runs.chat(one)
    lengths = [len(chat.encode(row.example, sizes(row.root, row.example)).ids) for row in made.train_dataset.rows]
    assert 12 * min(lengths) <= speed.tokens_per_second * seconds <= 12 * max(lengths)
    assert 0 < speed.data_wait[0] < 1
    assert speed.peak_memory[0] > 100


def test_transformers_counts_the_positions_of_every_batch(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl", data__eval=[], train__include_num_input_tokens_seen="all")
    made = trainer(one, tmp_path)
    made.train()
    assert made.state.num_input_tokens_seen == made.throughput.positions > 0
    assert made.state.total_flos == 6 * made.throughput.positions * made.model.num_parameters(exclude_embeddings=True)


def test_several_gpus_of_one_process_do_not_cut_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    arguments = sft.arguments

    def two(*given: Any) -> Any:
        args = arguments(*given)
        args._n_gpu = 2
        return args

    monkeypatch.setattr(sft, "arguments", two)
    made = trainer(one, tmp_path)
    assert made.args.n_gpu == 1
    assert made.args.train_batch_size == one.train["per_device_train_batch_size"]
