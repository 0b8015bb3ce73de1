"""A GPU by its name, or by memory and rate."""

from __future__ import annotations

import pytest

from skinvl.plan import gpus


@pytest.mark.parametrize(
    ("text", "memory", "tflops"),
    [("a100-80gb", 80, 312), ("RTX 4090", 24, 165.2), ("L40S", 48, 362), ("20:0.5", 20, 0.5)],
)
def test_a_gpu_has_a_name_or_numbers(text: str, memory: int, tflops: float) -> None:
    found = gpus.find(text)
    assert (found.memory, found.tflops) == (memory, tflops)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a100", "did you mean a100-40gb or a100-80gb"),
        ("h10", "did you mean h100 or h100-pcie"),
        ("abacus", "expected one of t4, .*GIB:TFLOPS"),
        ("0:300", "not known"),
        ("80:0", "not known"),
        ("80:", "not known"),
    ],
)
def test_what_is_not_known_is_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gpus.find(text)


def test_every_name_can_be_asked_for() -> None:
    for name, gpu in gpus.KNOWN.items():
        assert gpus.find(name) is gpu
        assert gpu.memory > 0 < gpu.tflops
    assert not gpus.KNOWN["t4"].bf16
    assert gpus.KNOWN["h100"].bf16
