"""What a training shows as it goes: a line for each logged step and each evaluation, and how far it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from helpers import printed, runs
from skinvl.model.adapter import Trained
from skinvl.train import summary
from skinvl.train.callbacks import Speed, Steps
from skinvl.train.image_control import Control

STEP = {"loss": 0.0812345, "grad_norm": 1.5, "learning_rate": 2.519e-08, "epoch": 5.0}
SPOKEN = {"eval_drawn_loss": 0.25, "eval_other_loss": 0.5, "eval_loss": 0.3, "eval_tokens": 1592.0, "eval_runtime": 0.6}


def state(step: int = 10, steps: int = 1_330) -> TrainerState:
    return TrainerState(global_step=step, max_steps=steps, is_world_process_zero=True)


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (STEP, "step 10 of 1,330: loss 0.08123, learning rate 2.519e-08, 3.3/s, 0:06:40 left"),
        (SPOKEN, "step 10 of 1,330, evaluated: drawn loss 0.25, other loss 0.5, loss 0.3"),
        ({"eval_a_loss": 2, "eval_loss": 2, "eval_bleu-1": 0.5}, "step 10 of 1,330, evaluated: a loss 2, bleu-1 0.5"),
        ({"train_runtime": 33.87, "train_loss": 0.6129, "epoch": 5}, ""),  # the summary says it
    ],
)  # fmt: skip
def test_what_is_logged_is_one_sentence(logs: dict[str, Any], line: str) -> None:
    assert Steps.line(logs, state(), "3.3/s, 0:06:40 left") == line
    assert len(line) <= 80


def logged(console: Console, steps: Steps, tmp_path: Path) -> None:
    args, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    with steps:
        steps.on_log(args, state(), control, logs=STEP)  # before it begins
        steps.on_train_begin(args, state(0), control)
        steps.on_step_end(args, state(10), control)
        steps.on_log(args, state(10), control, logs=STEP)
        steps.on_log(args, state(10), control, logs={"train_runtime": 33.87})
    steps.on_log(args, state(10), control, logs=SPOKEN)  # the evaluation after it, which the summary shows


def test_a_log_file_gets_a_line_for_each_logged_step_and_nothing_else(tmp_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=False)
    logged(console, Steps(console), tmp_path)
    assert file.getvalue().startswith("step 10 of 1,330: loss 0.08123, learning rate 2.519e-08, ")
    assert file.getvalue().count("\n") == 1
    assert "\r" not in file.getvalue()


def test_a_terminal_gets_a_bar_too_and_other_ranks_nothing(tmp_path: Path) -> None:
    for quiet in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=120, quiet=quiet)
        logged(console, Steps(console), tmp_path)
        assert ("10/1330" in file.getvalue()) is not quiet
        assert ("loss 0.08123" in file.getvalue()) is not quiet


def test_the_result_fits_into_80_columns() -> None:
    losses = {"train_loss": 0.6, "eval_skincap_loss": 0.1, "eval_mm_skin-closed_loss": 0.2, "eval_loss": 0.15}
    speed = Speed(330, 0.093, 1_017_641.0, 12_344.7, 0.67, (0.12, 0.1), (130_358.0, 130_358.0))

    def show(console: Console) -> None:
        summary.result(console, losses, Control(0.9, 0.4, 512), speed, 1_234.5, Path("runs/skinvl-mm--qwen2.5-vl-7b"))

    rows = [line for line in printed.unbroken(show) if line.startswith("│")]
    assert len(rows) == 3 + 1 + 2 + 4 + 2


def test_what_trains_fits_into_80_columns(tmp_path: Path) -> None:
    recipe = runs.make(tmp_path, "qwen2_vl")
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    big = Trained(1_161_480_704, 72_615_616_512, dict.fromkeys(names, 80), 0)
    counts = {
        "language": big,
        "projector": Trained(44_615_616, 44_615_616, {}, 1),
        "vision": Trained(0, 632_615_616, {}, 0),
    }

    class Made:
        engine, ranks, effective_batch, precision, attention = "deepspeed", 64, 1024, "bf16", "flash_attention_2"
        shared = "once a batch"

    made: Any = Made()
    shown = printed.lines(lambda console: summary.parts(console, recipe, 1e-4, counts, made))
    assert all(len(line) <= 80 for line in shown)
    rows = [line for line in shown if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["language", "projector", "vision"]  # one line a part
    assert "projector trains: 1 module" in shown
    assert "q_proj ×80, k_proj ×80" in " ".join(shown)
