"""From data to the world: sft, eval, merge, publish, serve and ask, one after the other, as a user types them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from helpers import finished, runs
from helpers.hubserver import Hub
from skinvl.__main__ import main

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
@pytest.mark.parametrize(("family", "repo"), [("qwen2_vl", "ada/skin"), ("mllama", "ada/Llama-skin")])
def test_from_data_to_the_world(
    family: str,
    repo: str,
    quantization: dict[str, Any] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hub: Hub,
) -> None:
    monkeypatch.chdir(tmp_path)
    generation = {"max_new_tokens": 12}
    runs.make(tmp_path, family, quantization=quantization, train__max_steps=20, evaluate__generation=generation)
    file = tmp_path / "drawn" / "card.json"
    file.write_text(json.dumps({**finished.CARD, **json.loads(file.read_text())}))

    def skinvl(*words: object) -> str:
        """What a verb prints."""
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out

    skinvl("sft", "./small.yaml")
    (run,) = Path("runs").iterdir()
    skinvl("eval", run)
    scored = json.loads((run / "scores.json").read_text())["sets"]["drawn"]["answers"]
    assert scored["rows"] == 9
    assert scored["unscored"] == 0

    skinvl("merge", run)
    merged = json.loads((run / "merged" / "merge.json").read_text())
    assert merged["onto"] == ("dequantized" if quantization else "bf16")
    model, told = AutoModelForImageTextToText.from_pretrained(run / "merged", output_loading_info=True)
    assert model.config.model_type == family
    assert not any(told.values())

    words = ["publish", run, repo, "--merged"]
    if family == "mllama":  # of unknown terms, a base of this architecture is taken for Llama
        (run / "LICENSE.txt").write_text("the licence of Llama")
    else:
        words += ["--rights", "base=apache-2.0"]
    skinvl(*words, "--dry-run")
    written = {path.name: path.read_bytes() for path in (run / "publish").iterdir()}
    head, text = written["README.md"].decode().split("---", 2)[1:]
    assert "model-index" not in yaml.safe_load(head)  # of three lesions no number has an interval
    assert "too few groups (3) |" in text
    assert hub.repos == {}
    skinvl(*words)
    assert hub.repos[repo].private
    assert hub.repos[repo].files == written

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    served = skinvl("serve", run, "--engine", "transformers", "--check-only", "--port", port)
    assert "checked: all 6 prompts are as trained" in served

    rows = [json.loads(line) for line in (run / "eval" / "answers" / "drawn.jsonl").read_text().splitlines()]
    image, question = rows[0]["images"][0], rows[0]["question"]
    asked = json.loads(skinvl("ask", run, image, question, "--json"))
    assert asked["answer"] == rows[0]["answer"]
