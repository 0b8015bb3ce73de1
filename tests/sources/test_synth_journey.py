"""From images to an assistant: a served model writes conversations about them, and another is trained on these."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from helpers.synthesised import SAID, prepared
from skinvl import __main__
from skinvl.data.example import Example, read, text, write
from skinvl.model import tiny
from skinvl.sources.asking.request import Request
from skinvl.sources.synthesis import programme
from skinvl.sources.synthesis.units import Share, units

# Short, so that a tiny model learns in seconds to reply as it is told.
PROGRAMME = """\
version: 1
unit: image
system: You write about skin.
context: [diagnosis]
prompt: |
  {% for name, value in context.items() %}Known to you alone, {{ name }}: {{ value | tojson }}{% endfor %}
  {{ question }} {{ instruction }} Reply with one JSON object: {{ form }}
slots:
  - name: general
    prompts:
      - {name: overview, kind: overview, questions: ["What does this image show?"], instruction: Describe it.}
  - name: specific
    prompts:
      - {name: colour, kind: features, questions: ["Which colours has it?"], instruction: Name them.}
"""
TRAIN = {
    "bf16": False, "use_cpu": True, "activation_checkpointing": False, "per_device_train_batch_size": 4,
    "learning_rate": 5e-3, "logging_steps": 10, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def taught(request: Request) -> Example:
    """The request, and the reply that a model should learn to give to it."""
    assert request.image is not None
    reply = json.dumps({"answer": SAID})
    turns = text("system", request.system), text("user", request.prompt, images=1), text("assistant", reply)
    return Example(request.id, "taught", (request.image,), turns, request.unit, "train", "CC0-1.0")


def recipe(file: Path, base: Path, source: Path, steps: int) -> str:
    tree = {
        "base": str(base),
        "data": {"train": [{"source": str(source), "split": "train"}], "image_tokens": 4, "max_tokens": 512},
        "parts": {"language": {"train": "lora"}, "projector": {"train": "full"}},
        "lora": {"r": 32, "lora_alpha": 64},
        "evaluate": {"generation": {"max_new_tokens": 8}},
        "train": {**TRAIN, "max_steps": steps},
    }
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@contextmanager
def served(run: Path) -> Iterator[tuple[str, str]]:
    """The address of a run that is served as its users serve it, and its name there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [sys.executable, "-m", "skinvl", "serve", str(run), "--engine", "transformers", "--port", str(port)]
    began = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert began.stdout is not None
    try:
        told = ""
        while "print(answer" not in told:
            line = began.stdout.readline()
            assert line, told
            told += line
        yield f"http://127.0.0.1:{port}/v1", run.name
    finally:
        began.terminate()
        began.wait(60)


@pytest.mark.slow
def test_what_a_served_model_writes_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, out = prepared(tmp_path / "photos", count=6), tmp_path / "asked"
    (tmp_path / "short.yaml").write_text(PROGRAMME)
    asks = programme.load(str(tmp_path / "short.yaml"))
    requests = [one for unit in units(asks, source, Share()) for one in asks.requests(unit, 0, "any")]
    assert len(requests) == 12
    lessons = prepared(tmp_path / "lessons", count=6)
    (lessons / "test.parquet").unlink()
    write(lessons, "train", [taught(one) for one in requests])
    words = [one.system for one in requests[:1]] + [one.prompt for one in requests]
    base = tiny.build("qwen2_vl", tmp_path / "base", texts=[*words, json.dumps({"answer": SAID})])

    assert __main__.main(["sft", recipe(tmp_path / "teacher.yaml", base, lessons, 60)]) == 0
    (teacher,) = (tmp_path / "runs").iterdir()
    assert __main__.main(["merge", str(teacher)]) == 0
    synth = ["synth", str(source), str(out), "--programme", str(tmp_path / "short.yaml"), "--terms", "Apache-2.0"]
    synth += ["--max-tokens", "150", "--concurrency", "2"]
    with served(teacher) as (address, name):
        synth += ["--model", name, "--endpoint", address]
        assert __main__.main(synth) == 0
    journal = (out / "journal" / "0-of-1.jsonl").read_bytes()
    assert __main__.main(synth) == 0  # the server is gone: nothing is asked twice
    assert (out / "journal" / "0-of-1.jsonl").read_bytes() == journal

    card = json.loads((out / "card.json").read_text())
    kept = read(out, "train")
    assert card["synthesis"]["requests"] == card["rows"] == 12
    assert card["synthesis"]["prompt_tokens"] > 12 * 40
    assert len(kept) >= 6, card["ledger"]
    assert {one.messages[1]["content"][0]["text"] for one in kept} == {SAID}
    assert __main__.main(["sft", recipe(tmp_path / "pupil.yaml", base, out, 2)]) == 0
    (pupil,) = set((tmp_path / "runs").iterdir()) - {teacher}
    assert (pupil / "adapter" / "adapter_model.safetensors").is_file()
