"""From a run to the hub: what is written, what stops it, who is asked, and that it loads as its card says."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from helpers import finished, hubserver, provenances
from helpers.hubserver import TOKEN, Fault, Hub, Repo
from skinvl.data import metadata
from skinvl.data.licences import LicenceError
from skinvl.recipe.recipe import load_base
from skinvl.recipe.run import RunError
from skinvl.release import publish, vetting
from skinvl.release.publish import PublishError
from skinvl.release.upload import UploadError

REPO = "ada/skin"
LLAMA = {"name": "llama", "model": "meta-llama/Llama-3.2-11B-Vision-Instruct"}
ADAPTER = [
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "loss.png"),
    *("processor_config.json", "recipe.yaml", "scores.json", "scores.md", "tokenizer.json", "tokenizer_config.json"),
]


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run by hand has no processor that could be asked for its image budget."""
    size = {"size": {"shortest_edge": 3136, "longest_edge": 50176}}
    monkeypatch.setattr(publish, "_as_trained", lambda found: (size, None))


def dry(run: Path, *words: str, repo: str = REPO) -> Path:
    assert publish.main([str(run), repo, "--dry-run", *words]) == 0
    return run / "publish"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.usefixtures("_no_model")
def test_a_dry_run_writes_what_would_be_uploaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished.run(tmp_path)
    out = dry(run)
    assert names(out) == ADAPTER
    assert (out / "adapter_model.safetensors").samefile(run / "adapter" / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Qwen2-VL-2B-Instruct", "c" * 40)
    processor = json.loads((out / "processor_config.json").read_text())
    assert processor == {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 50176}}}
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"name_or_path": "qwen"}
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["data"]["train"][0]["source"] == "ham"
    assert recipe["train"]["deepspeed"] == "zero2.json"
    assert recipe["base"]["revision"] == "c" * 40
    plot = (out / "loss.png").read_bytes()
    assert metadata.stripped(plot, "PNG", 1) == plot != (run / "loss.png").read_bytes()
    scores = json.loads((out / "scores.json").read_text())
    assert scores["sets"]["ham"]["answers"]["settings"]["data"] == {"test.parquet": "0" * 32}
    assert scores["sets"]["ham"]["answers"]["metrics"]["closed_accuracy"]["value"] == 0.701
    assert (run / "adapter" / "complete.json").exists()
    said = capsys.readouterr().out
    assert "adapter_model.safetensors" in said
    assert "licence: apache-2.0" in said
    assert "nothing was" in said
    (run / "adapter" / "tokenizer.json").write_text('{"model": 2}')
    (run / "scores.json").unlink()
    dry(run)  # is written anew
    assert names(out) == [name for name in ADAPTER if not name.startswith("scores")]
    assert (out / "tokenizer.json").read_text() == '{"model": 2}'
    assert "**Not evaluated.**" in (out / "README.md").read_text()


@pytest.mark.usefixtures("_no_model")
def test_a_merged_model(tmp_path: Path) -> None:
    run = finished.run(tmp_path)
    finished.merged(run)
    out = dry(run, "--merged")
    rest = [name for name in ADAPTER if not name.startswith("adapter")]
    assert names(out) == sorted([*rest, "config.json", "merge.json", "model.safetensors"])
    assert json.loads((out / "merge.json").read_text())["base"]["model"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert json.loads((out / "config.json").read_text())["_name_or_path"] == "qwen"
    assert ModelCard.load(out / "README.md").data.to_dict()["library_name"] == "transformers"
    (run / "merged" / "model.safetensors").rename(run / "merged" / "model-00001-of-00001.safetensors")
    (run / "merged" / "extra").mkdir()
    (run / "merged" / "extra" / "notes.txt").write_text("x")
    with pytest.raises(PublishError, match=r"extra/notes\.txt: not a file of a published model"):
        publish.main([str(run), REPO, "--merged", "--dry-run"])


@pytest.mark.usefixtures("_no_model")
def test_all_that_must_stay_is_listed_and_nothing_is_sent(tmp_path: Path, hub: Hub) -> None:
    run = finished.run(tmp_path)
    (run / "adapter" / "optimizer.pt").write_bytes(b"\x80\x02.")
    (run / "adapter" / "lesion.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (run / "adapter" / "chat_template.jinja").write_text(f"{{# {TOKEN} #}}")
    with pytest.raises(PublishError) as error:
        publish.main([str(run), REPO])
    said = str(error.value)
    for words in (
        "optimizer.pt: a pickle",
        "lesion.jpg: an image (JPEG)",
        "chat_template.jinja:1: a token of the Hugg",
    ):
        assert words in said
    assert "must not be uploaded as it is, and was not" in said
    assert TOKEN not in said
    assert hub.calls == []
    for name in ("optimizer.pt", "lesion.jpg"):
        (run / "adapter" / name).unlink()
    (run / "adapter" / "chat_template.jinja").write_text("")
    publish.main([str(run), REPO])  # what was found before does not stand in the way


@pytest.mark.usefixtures("_no_model")
def test_the_token_and_the_folders_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "my-odd-token")
    monkeypatch.setenv("HOME", "/h")
    run = finished.run(tmp_path)
    (run / "adapter" / "chat_template.jinja").write_text("my-odd-token\n/h/x")
    with pytest.raises(PublishError, match=r"(?s)jinja:1: the token in use.*jinja:2: the token in use, or a folder"):
        publish.main([str(run), REPO, "--dry-run"])


@pytest.mark.usefixtures("_no_model")
def test_an_adapter_needs_a_base_that_others_can_have(tmp_path: Path) -> None:
    local = {"name": "qwen", "model": "/home/ada/bases/qwen", "licence": "Apache-2.0"}
    run = finished.run(tmp_path, base=local, commit=None)
    with pytest.raises(PublishError, match=r"its base qwen is not on the hub, .*--merged, or name with --base"):
        publish.main([str(run), REPO, "--dry-run"])
    out = dry(run, "--base", "qwen2-vl-2b")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("Qwen/Qwen2-VL-2B-Instruct", None)
    assert ModelCard.load(out / "README.md").data.to_dict()["base_model"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert "/home/ada" not in "".join(path.read_text() for path in out.glob("*.[jmy]*"))
    for name in ("tiny-qwen2_vl", str(tmp_path)):
        with pytest.raises(PublishError, match="not on the hub"):
            publish.main([str(run), REPO, "--dry-run", "--base", name])
    finished.merged(run)
    assert "base_model" not in ModelCard.load(dry(run, "--merged") / "README.md").data.to_dict()
    run = finished.run(tmp_path / "c", base={**local, "licence": None}, commit=None)
    for name, licence in (("ada/unknown", "other"), ("Qwen/Qwen2-VL-2B-Instruct", "apache-2.0")):
        assert f"license: {licence}" in (dry(run, "--base", name) / "README.md").read_text()
    with pytest.raises(LicenceError, match="begin with"):
        publish.main([str(run), REPO, "--dry-run", "--base", "llama-3.2-11b-vision"])
    run = finished.run(tmp_path / "b")
    with pytest.raises(PublishError, match="trained on Qwen/Qwen2-VL-2B-Instruct, and an adapter fits no other"):
        publish.main([str(run), REPO, "--dry-run", "--base", "qwen3-vl-4b"])
    dry(run, "--base", "Qwen/Qwen2-VL-2B-Instruct")


@pytest.mark.usefixtures("_no_model")
def test_licences_and_names(tmp_path: Path) -> None:
    run = finished.run(tmp_path, licence="CC-BY-NC-4.0")
    with pytest.raises(LicenceError, match=r"--license apache-2\.0 grants more .* ham is non-commercial"):
        publish.main([str(run), REPO, "--dry-run", "--license", "apache-2.0"])
    assert not (run / "publish").exists()
    assert "license: cc-by-nc-4.0" in (dry(run) / "README.md").read_text()
    assert not (run / "publish" / "LICENSE").exists()
    out = dry(run, "--license", "other")
    assert "- trained on ham: CC-BY-NC-4.0" in (out / "LICENSE").read_text()
    for rights in ("ham", "ham=", "ham=mine"):
        with pytest.raises(PublishError, match="expected NAME=LICENCE"):
            publish.main([str(run), REPO, "--dry-run", "--rights", rights])
    unknown = finished.run(tmp_path / "b", licence="unknown")
    assert "license_name: terms-not-known" in (dry(unknown) / "README.md").read_text()
    assert (
        "license: cc-by-4.0"
        in (dry(unknown, "--rights", "ham=CC-BY-4.0", "--license", "cc-by-4.0") / "README.md").read_text()
    )


@pytest.mark.usefixtures("_no_model")
def test_what_is_made_of_llama(tmp_path: Path) -> None:
    facts = {"model": LLAMA["model"], "commit": "c" * 40, "model_type": "mllama"}
    run = finished.run(tmp_path, base=LLAMA, environment={"base": facts})
    with pytest.raises(LicenceError, match=r"such as ada/Llama-skin"):
        publish.main([str(run), REPO, "--dry-run"])
    with pytest.raises(PublishError, match=r"LICENSE-BASE: no copy of the licence of Llama 3\.2, .* save it as"):
        publish.main([str(run), "ada/Llama-skin", "--dry-run"])
    (run / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    out = dry(run, repo="ada/Llama-skin")
    assert (out / "NOTICE").read_text().startswith("Llama 3.2 is licensed under the Llama 3.2 Community License")
    assert (out / "LICENSE-BASE").read_text() == "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"
    assert "**Built with Llama.**" in (out / "README.md").read_text()
    assert not (dry(finished.run(tmp_path / "b")) / "NOTICE").exists()


@pytest.mark.usefixtures("_no_model")
def test_a_private_upload(tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished.run(tmp_path)
    hub.faults = [Fault("POST", "/commit/", 500)]
    with pytest.raises(UploadError, match="the hub failed"):
        publish.main([str(run), REPO])
    assert publish.main([str(run), REPO]) == 0
    assert len(hub.sent) == 2  # the weights and the plot, once
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.files == {path.name: path.read_bytes() for path in (run / "publish").iterdir()}
    said = capsys.readouterr().out
    size = sum(map(len, repo.files.values()))
    assert f"{hub.endpoint}/{REPO}: private; exists; 11 files, {size / 1e6:,.1f} MB; replaces nothing" in said
    assert f"{hub.endpoint}/{REPO}/commit/{repo.sha}" in said
    assert TOKEN not in said
    repo.files["notes.md"] = b"mine"
    publish.main([str(run), REPO])
    assert "stays: notes.md" in capsys.readouterr().out
    repo.private = False
    with pytest.raises(UploadError, match="exists and is public"):
        publish.main([str(run), REPO])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("_no_model")
def test_the_public_is_asked_for(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished.run(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{REPO}\n"))
    with pytest.raises(PublishError, match="nobody is there to be asked; add --yes"):
        publish.main([str(run), REPO, "--public"])
    for answer in ("\n", "y\n", "yes\n", "ada/other\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        with pytest.raises(PublishError, match="not confirmed; nothing was uploaded"):
            publish.main([str(run), REPO, "--public"])
    assert hub.repos == {}
    monkeypatch.setattr(sys, "stdin", Terminal(f"{REPO}\n"))
    publish.main([str(run), REPO, "--public"])
    assert not hub.repos[REPO].private
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    publish.main([str(run), "ada/other", "--public", "--yes"])
    assert not hub.repos["ada/other"].private
    hub.repos["ada/third"] = Repo(private=True)
    with pytest.raises(UploadError, match="exists and is private"):
        publish.main([str(run), "ada/third", "--public", "--yes"])


@pytest.mark.usefixtures("_no_model")
def test_what_may_not_be_public(tmp_path: Path, hub: Hub) -> None:
    run = finished.run(tmp_path, scored=False)
    with pytest.raises(PublishError, match="was not evaluated"):
        publish.main([str(run), REPO, "--public", "--yes"])
    run = finished.run(tmp_path / "b", licence="unknown")
    with pytest.raises(PublishError, match="--public: ham has terms that are not known"):
        publish.main([str(run), REPO, "--public", "--yes"])
    assert hub.calls == []
    publish.main([str(run), REPO])  # private it may be
    publish.main([str(run), "ada/known", "--public", "--yes", "--rights", "ham=CC-BY-4.0"])
    assert not hub.repos["ada/known"].private


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("licence", ["CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0, CC-BY-4.0, no derivatives by its gate"])
def test_what_was_trained_on_data_without_derivatives_goes_nowhere(tmp_path: Path, hub: Hub, licence: str) -> None:
    run = finished.run(tmp_path, licence=licence)
    for words in ((), ("--public", "--yes"), ("--dry-run",)):
        with pytest.raises(PublishError, match=r"trained on data whose terms permit no derivatives.*ham \(CC-BY-NC"):
            publish.main([str(run), REPO, *words])
    assert hub.calls == []
    assert not (run / "publish").exists()
    publish.main([str(run), REPO, "--rights", "ham=CC-BY-NC-4.0"])  # as its owners have permitted
    assert "cc-by-nc-4.0" in (run / "publish" / "README.md").read_text()


@pytest.mark.usefixtures("_no_model")
def test_two_towers_of_weights_without_derivatives_stay_private(
    tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.run(tmp_path)
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    panderm = load_base("dermlip-panderm")
    recipe = {
        "name": "dermlip",
        "base": panderm.model_dump(),
        "data": {name: values["data"][name] for name in ("train", "eval")},
        "towers": {"image": {"train": "lora"}},
        "objective": {"name": "clip"},
        "batch": {"images": 256},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    of_towers = {"texts": {"caption": 9}, "distinct": 9, "text_length": 256, "too_long": 0, "conversion": None}
    base = {"model": panderm.model, "commit": "c" * 40, "model_type": "beit + bert"}
    provenances.made(base=base, towers=of_towers).write(run)
    with pytest.raises(PublishError, match=r"--public: the base allows no derivatives \(CC-BY-NC-ND-4.0\)"):
        publish.main([str(run), REPO, "--public", "--yes"])
    assert hub.calls == []
    publish.main([str(run), REPO])
    assert "not to be made public: the base allows no derivatives (CC-BY-NC-ND-4.0)" in capsys.readouterr().out
    assert hub.repos[REPO].private


@pytest.mark.usefixtures("_no_model")
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run = finished.run(tmp_path)
    out = tmp_path / "mine"
    dry(run, "--out", str(out))
    assert names(out) == ADAPTER
    (out / "thesis.txt").write_text("x")
    with pytest.raises(PublishError, match="holds what skinvl publish does not write"):
        publish.main([str(run), REPO, "--dry-run", "--out", str(out)])
    assert (out / "thesis.txt").exists()
    with pytest.raises(RunError, match="no run"):
        publish.main([str(tmp_path), REPO, "--dry-run"])
    with pytest.raises(UploadError, match="expected owner/name"):
        publish.main([str(run), "skin", "--dry-run"])


def execute(folder: Path, repo: str, base: Path, image: Path, question: str) -> str:
    """What the card's own snippet answers, as it stands but for the two addresses, the image and the question."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    places = {repo: str(folder), "ada/base": str(base), "lesion.png": str(image), "What does the image show?": question}
    for old, new in places.items():
        assert old in code or old == "ada/base"
        code = code.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), made)
    return str(made["answer"]).strip()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "repo"), [("qwen2_vl", REPO), ("mllama", "ada/Llama-skin")])
def test_the_card_loads_what_was_trained(
    family: str, repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    from helpers import runs, tiny  # these load torch, which nothing else here needs
    from skinvl import __main__
    from skinvl.evaluate import generate
    from skinvl.recipe import run
    from skinvl.score import score
    from skinvl.train import sft

    monkeypatch.chdir(tmp_path)
    qwen = family == "qwen2_vl"
    small = 4 if qwen else 64  # positions of Qwen, fewer than the image would take
    generation = {"max_new_tokens": 8}
    made = runs.make(tmp_path, family, data__image_tokens=small, train__max_steps=8, evaluate__generation=generation)
    source = Path(made.data.train[0].source)
    path = source / "card.json"
    path.write_text(json.dumps({**finished.CARD, **json.loads(path.read_text())}))
    sft.train(made)
    (trained,) = (tmp_path / "runs").iterdir()
    generate.generate_sets(*run.evaluated(str(trained), []))
    score.main([str(trained)])
    assert __main__.main(["merge", str(trained)]) == 0
    rows = [json.loads(line) for line in (trained / "eval/answers/drawn.jsonl").read_text().splitlines()]
    words = [str(trained), repo, "--rights", "base=apache-2.0"] if qwen else [str(trained), repo]
    if not qwen:  # of unknown terms, a base of this architecture is taken for Llama
        (trained / "LICENSE.txt").write_text("the licence of Llama")
    assert __main__.main(["publish", *words, "--base", "ada/base"]) == 0
    folder = trained / "publish"
    assert hub.repos[repo].files == {one.name: one.read_bytes() for one in folder.iterdir()}
    for row in rows[:2]:
        image = Path(row["images"][0])
        assert execute(folder, repo, tiny.base(family), image, row["question"]) == row["answer"].strip()
    if qwen:
        assert sent(folder, image) <= small
        (folder / "processor_config.json").write_bytes((trained / "adapter/processor_config.json").read_bytes())
        assert sent(folder, image) > small  # another image than the one that was trained on
    assert __main__.main(["publish", *words, "--merged", "--dry-run"]) == 0
    assert execute(folder, repo, tiny.base(family), image, row["question"])
    assert vetting.check(folder) == []


def sent(folder: Path, image: Path) -> int:
    """The positions that an image takes with the published processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    found = processor.image_processor(images=[Image.open(image).convert("RGB")], return_tensors="pt")
    return int(found["image_grid_thw"][0].prod()) // processor.image_processor.merge_size**2


@pytest.mark.slow
def test_the_verb_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The endpoint, the login and the answers of the hub as a user has them."""
    run = finished.run(tmp_path)
    (run / "adapter" / "optimizer.pt").write_bytes(b"\x80\x02.")
    with hubserver.running() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        code = (
            "import sys; from skinvl import __main__ as cli; from skinvl.release import publish; "
            "publish._as_trained = lambda found: ({}, None); "
            "assert 'torch' not in sys.modules; sys.exit(cli.main(sys.argv[1:]))"
        )
        words = [sys.executable, "-c", code, "publish", str(run), REPO]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90)
        assert (done.returncode, hub.calls) == (2, [])
        assert re.search(r"^skinvl publish: .*must not be uploaded.*:\n  optimizer\.pt: a pickle; ", done.stderr)
        assert "Traceback" not in done.stderr
        (run / "adapter" / "optimizer.pt").unlink()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        assert hub.repos[REPO].private
        assert TOKEN not in done.stdout + done.stderr
