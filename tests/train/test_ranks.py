"""Two gloo ranks, alone or under ZeRO, give the losses, the gradients and the weights of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from helpers import runs
from skinvl.train import checkpoint

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]


def launch(tmp_path: Path, name: str, ranks: int, *overrides: str) -> list[dict[str, float]]:
    """The log of a run of `small.yaml` on some ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "skinvl", "sft", "small.yaml", f"run={name}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    (tmp_path / f"{name}.out").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]


def unused_port() -> int:
    """A free port that no outgoing connection is given: those of 32768 and above may be taken before it is used."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("none of 100 ports is free")


def compare(one: list[dict[str, float]], two: list[dict[str, float]], tolerance: float, least: int = 8) -> None:
    """Fails where losses or gradient norms of two runs differ."""
    keys = ("loss", "grad_norm", "eval_drawn_loss")
    seen = 0
    for first, second in zip(one, two, strict=True):
        for key in keys:
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=tolerance), (first["step"], key)
                seen += 1
    assert seen >= least


def weights(tmp_path: Path, name: str) -> dict[str, torch.Tensor]:
    """What a run trained."""
    return load_file(tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    settings = {"train__eval_strategy": "steps", "train__eval_steps": 1, "data__max_tokens": 200}
    runs.make(tmp_path, "qwen2_vl", **settings)
    one = launch(tmp_path, "one", 1)
    two = launch(tmp_path, "two", 2, "train.per_device_train_batch_size=2")
    kept = launch(tmp_path, "kept", 2, "train.per_device_train_batch_size=2", "cache_gb=1")
    assert "6 of them computed now" in (tmp_path / "kept.out").read_text()  # of 11 images, by the first rank
    for name, other in (("two", two), ("kept", kept)):
        compare(one, other, 2e-4)
        first, second = weights(tmp_path, "one"), weights(tmp_path, name)
        assert first.keys() == second.keys()
        for key, weight in first.items():  # AdamW amplifies rounding where a gradient is nearly zero
            assert (weight - second[key]).norm() <= 0.01 * weight.norm() + 1e-6, (name, key)
    with pytest.raises(AssertionError):
        compare(one, [{**entry, "grad_norm": entry.get("grad_norm", 0) / 2} for entry in two], 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "qwen3_5", "gemma3"])
def test_zero_2_and_zero_3_are_one_process(tmp_path: Path, family: str) -> None:
    settings = {"train__eval_strategy": "steps", "train__eval_steps": 3, "train__activation_checkpointing": True}
    one = runs.make(tmp_path, family, **settings, train__max_steps=12, train__learning_rate=2e-3)
    # 33 conversations: batches without an image on one rank, or on both, and an odd last batch.
    runs.source(Path(one.data.train[0].source), text_only=9)
    whole = launch(tmp_path, "one", 1)
    offloads = ("zero2_offload", "zero3_offload") if family == "qwen2_vl" else ()
    for name in ("zero2", "zero3", *offloads):
        # Features in place of pixels where the other family runs its tower.
        kept = f"cache_gb={int((family, name) in (('qwen2_vl', 'zero3'), ('mllama', 'zero2')))}"
        two = launch(tmp_path, name, 2, "train.per_device_train_batch_size=2", f"train.deepspeed={name}", kept)
        compare(whole[:1], two[:1], 1e-5, least=2)
        compare(whole, two, 1e-3)
        first, second = weights(tmp_path, "one"), weights(tmp_path, name)
        assert first.keys() == second.keys()
        for key, weight in first.items():
            assert second[key].dtype == torch.float32
            assert (weight - second[key]).norm() <= 0.01 * weight.norm() + 1e-6, (name, key)
        assert any("multi_modal_projector" in key or "merger" in key for key in first)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "nf4"), [("zero2", False), ("zero2", True), ("zero3", False)])
def test_bf16_under_zero_is_bf16_in_one_process(tmp_path: Path, engine: str, nf4: bool) -> None:
    """With a projector that trains in fp32 behind a bf16 tower, as autocast has it and DeepSpeed's own bf16 has not."""
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if nf4 else None
    changes = {"train__bf16": True, "train__eval_strategy": "steps", "train__eval_steps": 1}
    runs.make(tmp_path, "mllama", **changes, quantization=quantization)
    one = launch(tmp_path, "one", 1)
    two = launch(tmp_path, "two", 2, "train.per_device_train_batch_size=2", f"train.deepspeed={engine}")
    compare(one, two, 1e-2)
    assert json.loads((tmp_path / "runs" / "two" / "env.json").read_text())["precision"] == "bf16"
    first, second = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert first.keys() == second.keys()
    assert any("multi_modal_projector" in key for key in first)
    for key, weight in first.items():
        assert second[key].dtype == torch.float32
        # AdamW amplifies rounding: 12 % where the CPU has bf16 of its own (AVX512-BF16), less where it is emulated.
        assert (weight - second[key]).norm() <= 0.2 * weight.norm() + 1e-6, key
        # Had they been bf16 while training, no number would need the bits that bf16 lacks.
        assert not torch.equal(second[key], second[key].bfloat16().float()) or not second[key].any(), key


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_sharded_run_goes_on_to_the_same_weights(tmp_path: Path, engine: str) -> None:
    runs.make(tmp_path, "qwen3_vl", lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}, train__max_steps=9)
    given = ["train.per_device_train_batch_size=2", f"train.deepspeed={engine}"]
    given += ["train.save_strategy=steps", "train.save_steps=2", "train.eval_strategy=steps", "train.eval_steps=2"]
    # The loss falls; were more of it better, the first evaluation would be the best and the second the last.
    given += ["train.metric_for_best_model=loss", "train.greater_is_better=true"]
    given += ["early_stopping={early_stopping_patience: 1}"]
    whole = launch(tmp_path, "whole", 2, *given)
    best = tmp_path / "runs" / "whole" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors"
    assert [entry["step"] for entry in whole if "eval_loss" in entry] == [2, 4, 4]
    assert all(torch.equal(weight, weights(tmp_path, "whole")[key]) for key, weight in load_file(best).items())
    shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    shutil.rmtree(tmp_path / "runs" / "cut" / "checkpoints" / "checkpoint-4")
    shutil.rmtree(tmp_path / "runs" / "cut" / "adapter")
    cut = launch(tmp_path, "cut", 2, *given, "resume=auto")
    for key in ("loss", "eval_loss"):
        assert [entry.get(key) for entry in cut] == [entry.get(key) for entry in whole]
    first, second = weights(tmp_path, "whole"), weights(tmp_path, "cut")
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())
    with pytest.raises(AssertionError, match="ranks were 2 and are 1"):
        launch(tmp_path, "cut", 1, *given, "resume=auto")


@pytest.mark.slow
def test_ranks_share_the_questions_that_are_asked_while_training(tmp_path: Path) -> None:
    evaluate = {"during": 7, "batch_size": 2, "generation": {"max_new_tokens": 6}}
    steps = {"train__max_steps": 60, "train__eval_strategy": "steps", "train__eval_steps": 30}
    runs.make(tmp_path, "qwen2_vl", **steps, evaluate=evaluate)
    one = launch(tmp_path, "one", 1)
    two = launch(tmp_path, "two", 2, "train.per_device_train_batch_size=2", "train.deepspeed=zero2")
    found = [[entry["eval_token_f1"] for entry in log if "eval_token_f1" in entry] for log in (one, two)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert len(found[0]) == 3
    assert found[0][-1] > 0.1  # it has learnt something that an answer could miss


@pytest.mark.slow
def test_qlora_runs_under_zero_2_and_zero_3_refuses_it(tmp_path: Path) -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    runs.make(tmp_path, "qwen2_vl", quantization=nf4, train__eval_strategy="steps", train__eval_steps=1)
    one = launch(tmp_path, "one", 1)
    compare(one, launch(tmp_path, "two", 2, "train.per_device_train_batch_size=2", "train.deepspeed=zero2"), 2e-3)
    with pytest.raises(
        AssertionError, match=r"zero3\.json shards the weights of the base.*use zero2 with quantization"
    ):
        launch(tmp_path, "three", 2, "train.deepspeed=zero3")


def start(tmp_path: Path, ranks: int, *overrides: str) -> subprocess.Popen[bytes]:
    """The launcher of a run called `one`, once that has taken a few steps; what it says goes into the file `said`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w") as said:
        given = [*command, "-m", "skinvl", "sft", "small.yaml", "run=one", *overrides]
        process = subprocess.Popen(given, cwd=tmp_path, env=environment, stdout=said, stderr=said)
    log = tmp_path / "runs" / "one" / "log.jsonl"
    deadline = time.monotonic() + 200
    while not (log.is_file() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, (tmp_path / "said").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The ranks of a launcher."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if "skinvl" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.slow
def test_sigterm_stops_all_ranks_at_one_step(tmp_path: Path) -> None:
    runs.make(tmp_path, "qwen2_vl", train__max_steps=400)
    process = start(tmp_path, 2, "train.per_device_train_batch_size=2")
    os.kill(children(process)[0], signal.SIGTERM)  # one rank alone is told
    assert process.wait(60) == 0, (tmp_path / "said").read_text()[-6000:]
    assert "stopped by SIGTERM; runs/one/checkpoints/checkpoint-" in " ".join((tmp_path / "said").read_text().split())
    assert len(list((tmp_path / "runs" / "one" / "checkpoints").glob("checkpoint-*/complete.json"))) == 1


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(tmp_path: Path) -> None:
    runs.make(tmp_path, "qwen2_vl", train__max_steps=400, train__save_strategy="steps", train__save_steps=2)
    process = start(tmp_path, 2, "train.per_device_train_batch_size=2", "train.save_total_limit=2")
    os.kill(children(process)[1], signal.SIGKILL)
    died = time.monotonic()
    assert process.wait(60) != 0
    assert time.monotonic() - died < 60
    said = (tmp_path / "said").read_text()
    assert "Signal 9 (SIGKILL)" in said
    assert len(said[said.rindex(": loss ") :].splitlines()) < 150
    last = checkpoint.last(tmp_path / "runs" / "one" / "checkpoints")
    assert last is not None
    checkpoint.verify(last)


LOADING = """
import json
import threading
import time
from pathlib import Path
import deepspeed
from transformers import AutoConfig
from skinvl.model import families
from skinvl.model.base import load_base
from skinvl.recipe import recipe
from skinvl.train import sft
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
def watch():
    while True:
        seen.append(private())
        time.sleep(0.002)
one = recipe.load("small.yaml", ["train.deepspeed=zero3", "base=large"])
arguments = sft.arguments(one, Path("run"))
deepspeed.init_distributed()
before, seen = private(), []
threading.Thread(target=watch, daemon=True).start()
loaded = load_base(Path("large"), families.load("qwen2_vl"), one)
held = sum(weight.ds_tensor.numel() for weight in loaded.parameters())
found = {"held": held, "peak": (max(seen) - before) / 1024}
Path(f"rank{arguments.world_size}-{arguments.process_index}").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_zero_3_loads_a_share_of_the_base_into_each_rank(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    shutil.copytree(one.base.location, tmp_path / "large")
    config = AutoConfig.from_pretrained(one.base.location)
    text = config.text_config
    text.hidden_size, text.intermediate_size, config.vision_config.hidden_size = 768, 3072, 768
    text.rope_parameters["mrope_section"] = [24, 36, 36]
    large = AutoModelForImageTextToText.from_config(config)
    size = 4 * sum(weight.numel() for weight in large.parameters()) / 2**20  # MiB
    (tmp_path / "large" / "model.safetensors").unlink()
    large.save_pretrained(tmp_path / "large", max_shard_size="40MB")
    (tmp_path / "loading.py").write_text(LOADING)
    # The allocator gives back what is free, so that what is measured is what is needed.
    allocator = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **allocator, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for ranks in ("1", "2"):
        command = [*launcher, ranks, "loading.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
    whole, first, second = (json.loads((tmp_path / f"rank{name}").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first["held"] == second["held"]
    assert whole["held"] / 2 <= first["held"] <= 0.51 * whole["held"]
    assert whole["peak"] > size
    assert max(first["peak"], second["peak"]) < 0.7 * whole["peak"]


@pytest.mark.slow
def test_two_machines_form_one_job(tmp_path: Path) -> None:
    """Two torchrun agents on one machine, started by the commands that make would run."""
    runs.make(tmp_path, "qwen2_vl", train__eval_strategy="steps", train__eval_steps=1)
    one = launch(tmp_path, "one", 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    port = unused_port()
    given = ["RECIPE=small.yaml", "RUN=two", "DEEPSPEED=zero2", "ARGS=train.per_device_train_batch_size=2", "NNODES=2"]
    given += ["MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
    started = []
    for rank in range(2):
        asked = ["make", "--dry-run", "--old-file=setup", "sft", *given, f"NODE_RANK={rank}"]
        shown = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        threads, torchrun, *rest = next(line for line in shown.splitlines() if "torchrun" in line).split()
        assert threads == "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}"
        assert torchrun.endswith("bin/torchrun")
        command = [sys.executable, "-m", "torch.distributed.run", *rest]
        with (tmp_path / f"said{rank}").open("w") as said:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said))
    deadline = time.monotonic() + 280
    # A machine that fails leaves the other waiting for it: the failure is to be shown, not the wait.
    while (codes := [process.poll() for process in started]) != [0, 0]:
        if any(codes) or time.monotonic() > deadline:
            for process in started:
                process.terminate()
            said = [(tmp_path / f"said{rank}").read_text()[-3000:] for rank in range(2)]
            pytest.fail("\n".join([f"exit codes {codes}", *said]))
        time.sleep(0.2)
    two = [json.loads(line) for line in (tmp_path / "runs" / "two" / "log.jsonl").read_text().splitlines()]
    compare(one, two, 2e-3)
    assert json.loads((tmp_path / "runs" / "two" / "env.json").read_text())["ranks"] == 2
