"""Bytes by item: exact where they are weights, and divided where DeepSpeed divides them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers import runs
from skinvl.data import mixture
from skinvl.model import adapter
from skinvl.model.base import load_base, read_config
from skinvl.model.pack import Collator
from skinvl.plan import memory
from skinvl.plan.memory import ParameterBytes
from skinvl.plan.meta_step import MetaStep, Trace
from skinvl.recipe import recipe
from skinvl.recipe.recipe import Recipe
from skinvl.train import sft
from skinvl.train.trainer import Trainer

TRACE = Trace((5e6, 50e6, 1e6), {})
GROUPS = ((8 * 10**5, 10**5), (10**5,))
HELD = ParameterBytes(plain=10**9, quantised=0, groups=GROUPS, adapter=4 * 10**6, dequantised=0, layer=3 * 10**7)


def stage(one: Recipe) -> MetaStep:
    config, family = read_config(Path(one.base.location))
    return MetaStep(one, config, family, cached=False, checkpointing=False)


def training(tmp_path: Path, **train: Any) -> Recipe:
    one = runs.make(tmp_path, "qwen2_vl")
    return one.model_copy(update={"train": {**one.train, **train}})


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_take_what_bitsandbytes_makes_of_them(double: bool, tmp_path: Path) -> None:
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    one = runs.make(tmp_path, "qwen2_vl", quantization=settings)
    path = Path(one.base.location)
    family = read_config(path)[1]
    peft_model = adapter.attach(load_base(path, family, one, device_map={"": "cpu"}), family, one)
    quantised, plain, largest = 0, sum(buffer.nbytes for buffer in peft_model.buffers()), 0
    for parameter in peft_model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            quantised += parameter.nbytes + state.absmax.nbytes + state.code.nbytes
            largest = max(largest, state.shape.numel() * state.dtype.itemsize)
            if state.nested:
                quantised += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes
        elif not parameter.requires_grad:
            plain += parameter.nbytes
    found = memory.weights(stage(one))
    assert (found.quantised, found.plain, found.dequantised) == (quantised, plain, largest)


def test_weights_are_those_of_the_model(tmp_path: Path) -> None:
    one = runs.make(tmp_path, "qwen2_vl")
    found, peft_model = memory.weights(stage(one)), runs.attached(one)
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in peft_model.parameters() if not parameter.requires_grad]
    buffers = sum(buffer.nbytes for buffer in peft_model.buffers())
    assert found.trained == sum(parameter.numel() for parameter in trained)
    assert found.adapter == sum(parameter.nbytes for parameter in trained)
    assert found.plain == sum(parameter.nbytes for parameter in frozen) + buffers
    assert found.quantised == found.dequantised == 0
    half = memory.weights(stage(one.model_copy(update={"train": {**one.train, "bf16": True}})))
    assert half.trained == found.trained
    assert half.plain - buffers == (found.plain - buffers) / 2


@pytest.mark.slow
def test_the_published_bases_have_their_published_parameters(shared: Path) -> None:
    golden = json.loads((shared / "configs" / "golden_parameter_counts.json").read_text())
    assert len(golden) == 7
    for name, count in golden.items():
        config, family = read_config(shared / "configs" / name)
        one = recipe.load("skinvl-mm", ["base=owner/model"])
        found = adapter.check(MetaStep(one, config, family, cached=False, checkpointing=False).model(), family, one)
        assert sum(part.parameters for part in found.values()) == count, name
        assert found["projector"].trainable == found["projector"].parameters


def test_one_gpu_holds_everything(tmp_path: Path) -> None:
    found = memory.needed(training(tmp_path), HELD, TRACE, overhead=7)
    assert found.items == {
        "frozen weights, unquantised": 1e9,
        "adapter and full parts, fp32": 4e6,
        "gradients, fp32": 4e6,
        "optimizer": 8e6,
        "activations": 50e6 - 4e6,  # gradients come as they go
        "CUDA context": 7,
    }
    assert found.total == sum(found.items.values())
    more = memory.needed(training(tmp_path, gradient_accumulation_steps=2), HELD, TRACE, overhead=7)
    assert more.total - found.total == 4e6
    assert memory.needed(training(tmp_path), HELD, TRACE, 2).items["buckets (DDP)"] == 4e6
    held = replace(HELD, quantised=100, dequantised=50)
    assert memory.needed(training(tmp_path), held, TRACE, overhead=7).total == found.total + 150


def test_deepspeed_divides_stage_by_stage(tmp_path: Path) -> None:
    two, three = (memory.needed(training(tmp_path, deepspeed=name), HELD, TRACE, 4) for name in ("zero2", "zero3"))
    assert two.items["frozen weights, unquantised"] == 1e9
    assert two.items["gradients, fp32"] == 1e6
    assert two.items["optimizer"] == 12e6 / 4
    assert two.items["adapter and full parts, fp32"] == 4e6
    assert two.items["activations"] == 50e6
    assert three.items["frozen weights, unquantised"] == 1e9 / 4
    assert three.items["adapter and full parts, fp32"] == 1e6
    assert three.items["gathered weights (ZeRO)"] == 3e7 + 2 * 5e7 * 4
    assert not two.host
    assert not three.host


def test_what_is_offloaded_lies_with_the_host(tmp_path: Path) -> None:
    two = memory.needed(training(tmp_path, deepspeed="zero2_offload"), HELD, TRACE, 4)
    three = memory.needed(training(tmp_path, deepspeed="zero3_offload"), HELD, TRACE, 4)
    assert two.host == {"optimizer": 3e6}
    assert "optimizer" not in two.items
    assert set(three.host) == {"optimizer", "frozen weights, unquantised", "adapter and full parts, fp32"}
    assert not set(three.host) & set(three.items)


@pytest.mark.parametrize("numbers", [100, 3_584, 4_095, 4_096, 5_000])
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "lion_32bit", "adamw_torch", "sgd"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_optimizers_keep_what_they_keep(tmp_path: Path, name: str, numbers: int) -> None:
    tensor = torch.nn.Parameter(torch.ones(numbers))
    tensor.grad = torch.ones(numbers)
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(
        transformers.TrainingArguments(str(tmp_path), optim=name, use_cpu=True)
    )
    optimizer = kind([tensor], **settings)
    optimizer.step()
    assert memory.state(training(tmp_path, optim=name), numbers) == kept(optimizer)


def kept(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what an optimizer keeps of its tensors; its steps and its one table of codes are no moments."""
    moments = ("state1", "state2", "absmax1", "absmax2", "exp_avg", "exp_avg_sq")
    return sum(state[key].nbytes for state in optimizer.state.values() for key in moments if key in state)


def test_an_optimizer_of_unknown_state_is_refused(tmp_path: Path) -> None:
    assert memory.state(training(tmp_path), 10) == 80
    with pytest.raises(ValueError, match=r"train\.optim: found adafactor; plan knows the state of adamw_torch"):
        memory.state(training(tmp_path, optim="adafactor"), 10)


def test_8_bit_states_are_counted_tensor_by_tensor(tmp_path: Path) -> None:
    """The adapter's tensors of under 4,096 numbers keep 32-bit states, of which most adapters of rank 1 are made."""
    one = training(tmp_path, optim="adamw_8bit")
    held = memory.weights(stage(one))
    assert min(map(min, held.groups)) < memory.LEAST_8BIT <= max(map(max, held.groups))
    args, log = sft.arguments(one, tmp_path / "run"), tmp_path / "log.jsonl"
    rows = mixture.load(one.data).train
    trainer = Trainer(runs.attached(one), args, one, runs.family_of(one), rows, {}, Collator(runs.chat(one)), log)
    optimizer = trainer.create_optimizer()
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    groups = [[tensor.numel() for tensor in group["params"]] for group in optimizer.param_groups]
    assert groups == [list(group) for group in held.groups]
    assert memory.needed(one, held, TRACE).items["optimizer"] == kept(optimizer)
    assert memory.needed(one, held, TRACE, 2).items["optimizer"] == kept(optimizer)  # each rank keeps them all
    assert memory.checkpoint(one, held, 2) == held.adapter + kept(optimizer)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_sharded_8_bit_states_are_those_of_each_ranks_flat_share(tmp_path: Path, name: str) -> None:
    """DeepSpeed's optimizer sees one tensor a group and rank: of one group 4,000 or 4,200 numbers, of the other 50."""
    one = training(tmp_path, optim="adamw_8bit", deepspeed=name)
    small = replace(HELD, groups=((3_000, 4_000, 500, 500), (99,)))
    large = replace(HELD, groups=((3_000, 4_000, 700, 700), (99,)))
    for held, share in ((small, 8 * 4_000 + 8 * 50), (large, 2 * (4_200 + 17 * 4) + 8 * 50)):
        assert memory.states(one, held, 2) == share
        assert memory.needed(one, held, TRACE, 2).items["optimizer"] == share + held.trained * 4 / 2
        assert memory.checkpoint(one, held, 2) == held.adapter + 2 * share


def test_a_checkpoint_holds_adapter_and_optimizer(tmp_path: Path) -> None:
    assert memory.checkpoint(training(tmp_path), HELD) == 12e6
