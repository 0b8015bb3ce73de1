"""The card holds what the run's files say and nothing else, in the hub's form, with its licences and its gaps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from safetensors.numpy import save_file

from helpers import colours, finished, pictures, provenances
from skinvl.data import licences
from skinvl.data.pixels import size, upright
from skinvl.recipe.recipe import Base
from skinvl.recipe.run import RunError, adapter_digest
from skinvl.release import card, record
from skinvl.release.record import Record, RecordError

REPO = "ada/skin"
QWEN = Base(name="qwen2-vl-2b", model="Qwen/Qwen2-VL-2B-Instruct", revision="c" * 40)


def made(run: Path, rights: dict[str, str] | None = None, base: Base | None = QWEN, **more: Any) -> str:
    """The card of a run."""
    found = record.read(run, rights)
    licence = licences.chosen(found.base, found.terms)
    return card.text(found, REPO, licence, base, more.get("merge"), more.get("quantization"), rights or {})


def section(text: str, title: str) -> str:
    return re.split(r"^##+ ", text.split(f"# {title}\n", 1)[1], flags=re.MULTILINE)[0]


def test_the_front_matter_is_the_hubs(tmp_path: Path) -> None:
    found = ModelCard(made(finished.run(tmp_path)))
    data = found.data.to_dict()
    assert {key: value for key, value in data.items() if key != "model-index"} == {
        "base_model": "Qwen/Qwen2-VL-2B-Instruct",
        "base_model_relation": "adapter",
        "language": ["en"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["dermatology", "medical", "vision-language", "lora", "skinvl"],
    }
    again = ModelCard(str(found))
    assert again.data.to_dict() == data
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "skin"
    assert eval_results_to_model_index(name, results) == data["model-index"]
    assert [(one.task_type, one.dataset_config, one.metric_type, one.metric_value) for one in results] == [
        ("visual-question-answering", "ham", "closed_accuracy", 0.701),
        ("image-classification", "ham-classes sum", "accuracy", 0.613),
        ("image-classification", "ham-classes sum", "sensitivity", 0.287),
        ("image-classification", "ham-classes sum", "specificity", 0.934),
    ]
    assert results[0].metric_name == "closed accuracy (95% CI 0.651 to 0.751)"
    counts = {"n": 123, "groups": 41, "unscored": 4}
    assert results[0].metric_args == {"low": 0.651, "high": 0.751, "method": "Wilson", **counts}
    assert results[0].dataset_type == "ham"


def test_a_dataset_of_the_hub_is_linked(tmp_path: Path) -> None:
    run = finished.run(tmp_path, address="https://huggingface.co/datasets/redlessone/Derm1M", source="llava")
    data = ModelCard(made(run)).data.to_dict()
    assert data["datasets"] == ["redlessone/Derm1M"]
    assert "language" not in data  # a file in LLaVA's form may be in any


def test_what_was_measured_stands_in_the_text(tmp_path: Path) -> None:
    text = made(finished.run(tmp_path))
    evaluation = section(text, "Evaluation")
    control, majority = r"0.411 \[0.361, 0.461\] W", r"0.402 \[0.352, 0.452\] W"
    assert rf"| closed\_accuracy | 0.701 \[0.651, 0.751\] W | {control} | {majority} | 123 | 41 | 4 |" in evaluation
    assert "| rouge-l | 0.300 too few groups (3) | – | – | 3 | 3 | 0 |" in evaluation
    assert evaluation.index("| accuracy | 0.613") < evaluation.index("| sensitivity | 0.287") < evaluation.index("spec")
    assert "Not scored: ham: missing-image 4." in evaluation
    groups = section(text, "By group")
    assert (
        r"| ham | skin\_type | closed\_accuracy | VI: 0.437 [0.387, 0.487] W (n 123, groups 41) | "
        "0.375 [0.325, 0.425] W (n 123, groups 41) |"
    ) in groups
    assert "- ham: not known by sex" in groups
    assert "by skin type is not known" not in text
    leaks = section(text, "Leaks between training and evaluation")
    assert "2 eval conversations shared a group or an image" in leaks
    assert "(moved-to-train 1, left-out-of-eval 1)" in leaks
    left_out = section(text, "What was left out before training")
    assert left_out.strip() == "- too-long: 2 conversations"
    assert "not a medical device" in section(text, "Out of scope")
    assert "Not evaluated" not in text


def test_how_it_was_trained_stands_in_the_text(tmp_path: Path) -> None:
    training = section(made(finished.run(tmp_path)), "Training")
    for row in (
        "| base | Qwen/Qwen2-VL-2B-Instruct, commit " + "c" * 40 + " |",
        "| language | lora |",
        "| projector | full, learning rate 2e-05 |",
        "| lora.r | 16 |",
        "| deepspeed | zero2.json |",
        "| conversations | 2,345, each of at most 256 tokens |",
        "| effective batch | 32 conversations |",
        "| steps | 678 |",
        "| train loss, mean of the run | 0.6128 |",
        "| eval loss at the end | 0.1001 |",
        "| hardware | NVIDIA H100, 1 rank, one process |",
        "| versions | Python 3.11.7, torch 2.15.0, skinvl 0.1.0 |",
        "Command: `skinvl sft ham.yaml 'data.train=[{source: ham, split: train}]'`",
        "![training loss](loss.png)",
    ):
        assert row in training
    assert "/home/ada" not in training


def test_no_number_is_made_up(tmp_path: Path) -> None:
    """Without scores, losses and steps nothing of them is left; every number of the card stands in a file."""
    run = finished.run(tmp_path, scored=False)
    bare = made(run)
    for name in ("summary.json", "loss.png", "log.jsonl", "ledger.jsonl"):
        (run / name).unlink()
    bare = made(run)
    assert "**Not evaluated.** Nothing is known" in bare
    assert "**Not evaluated.** There are no scores" in bare
    assert "model-index" not in bare
    assert "| steps |" not in bare
    assert "loss" not in section(bare, "Training")
    assert "How well it does by skin type is not known." in bare
    assert "Nothing: every conversation" in bare
    files = "".join(path.read_text() for path in run.glob("*.*")) + (tmp_path / "data/ham/card.json").read_text()
    body = re.sub(r"```.*?```", "", bare.split("---\n", 2)[2], flags=re.DOTALL).replace(",", "")
    numbers = set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", body))
    assert {one for one in numbers if one not in files} == set()


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    text = made(finished.run(tmp_path, terms="See [x](javascript:1) | <script>"))
    data = section(text, "Training data")
    assert r"**HAM\|10000 &lt;b&gt;** (ham), https://doi.org/10.7910/DVN/DBW86T." in data
    assert r"See \[x\](javascript:1) \| &lt;script&gt;" in data
    assert "2 conversations of train; left out with a reason: refusal 3." in data
    assert r"- Tschandl et al., The \*HAM10000\* dataset, 2018" in section(text, "Citation")


def test_leaks_that_were_allowed_are_said_loudly(tmp_path: Path) -> None:
    run = finished.run(tmp_path, environment={"allow_leak": True, "leaking": 31})
    assert "**allowed by this recipe; 31 eval conversations share" in made(run)


def test_the_strictest_licence_is_carried_through(tmp_path: Path) -> None:
    text = made(finished.run(tmp_path, licence="CC-BY-NC-4.0"))
    assert ModelCard(text).data.to_dict()["license"] == "cc-by-nc-4.0"
    assert "| ham | CC-BY-NC-4.0 | non-commercial |" in text
    unknown = made(finished.run(tmp_path / "b", licence="unknown"))
    data = ModelCard(unknown).data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "terms-not-known", "LICENSE")
    assert "**Not to be made public as it is:** ham has terms that are not known (unknown)." in unknown


def test_the_licences_of_the_conversations_count(tmp_path: Path) -> None:
    run = finished.run(tmp_path, licence="CC-BY-NC-4.0")
    path = tmp_path / "data/ham/card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": "by image (CC0-1.0 or CC-BY-4.0)"}))
    assert record.read(run).terms["ham"].id == "cc-by-nc-4.0"
    for file in path.parent.glob("*.parquet"):
        file.unlink()
    assert record.read(run).terms["ham"].id == "cc-by-4.0"


def test_rights_can_be_stated_for_what_states_none(tmp_path: Path) -> None:
    run = finished.run(tmp_path, licence="unknown", base={"name": "own", "model": "ada/own"})
    rights = {"ham": "CC-BY-4.0", "base": "Apache-2.0"}
    found = record.read(run, rights)
    assert (found.base.id, found.terms["ham"].id) == ("apache-2.0", "cc-by-4.0")
    assert "That ham is under CC-BY-4.0 is what the publisher of this model states" in made(run, rights)
    known = finished.run(tmp_path / "b", licence="CC-BY-NC-4.0")
    for name in ("ham", "base", "elsewhere"):
        with pytest.raises(RecordError, match=f"--rights {name}: neither a base .* nor a source .* those are none"):
            record.read(known, {name: "CC0-1.0"})


def test_a_base_is_known_by_its_model_id_and_its_architecture(tmp_path: Path) -> None:
    llama = {"model": "meta-llama/Llama-3.2-11B-Vision-Instruct", "commit": "c" * 40, "model_type": "mllama"}
    run = finished.run(tmp_path, base={"name": "l", "model": llama["model"]}, environment={"base": llama})
    assert record.read(run).base.id == "llama3.2"
    own = {**llama, "model": "ada/own"}
    run = finished.run(tmp_path / "b", base={"name": "l", "model": "ada/own"}, environment={"base": own})
    assert record.read(run).base.id == "llama3.2"
    text = made(run)
    assert "**Built with Llama.**" in text
    assert "domiciled in the European Union" in text
    assert ModelCard(text).data.to_dict()["license"] == "llama3.2"
    random = {"name": "t", "random": "mllama", "licence": "none needed; random weights"}
    run = finished.run(tmp_path / "c", base=random, environment={"base": {**own, "commit": None}})
    assert record.read(run).base.id == "cc0-1.0"


def test_what_an_earlier_adapter_was_trained_on_counts(tmp_path: Path) -> None:
    first = finished.run(tmp_path / "first", licence="CC-BY-NC-4.0")
    (tmp_path / "first/data/ham").rename(tmp_path / "first/data/derm")
    recipe = (first / "recipe.yaml").read_text().replace("first/data/ham", "first/data/derm")
    (first / "recipe.yaml").write_text(recipe)
    run = finished.run(tmp_path, recipe={"init_adapter": str(first / "adapter")})
    assert {name: one.id for name, one in record.read(run).terms.items()} == {"derm": "cc-by-nc-4.0", "ham": "cc0-1.0"}
    text = made(run)
    assert "what it was trained on is among these" in text
    assert str(tmp_path) not in text
    shutil.rmtree(run)
    run = finished.run(tmp_path, recipe={"init_adapter": "bob/adapter"})
    assert not record.read(run).terms["bob/adapter"].known
    assert "of which it is not known what it was trained on" in made(run)
    assert record.read(run, {"bob/adapter": "MIT"}).terms["bob/adapter"].id == "mit"


def test_data_that_is_gone_or_new(tmp_path: Path) -> None:
    run = finished.run(tmp_path)
    data = tmp_path / "data" / "ham"
    shutil.rmtree(data)
    with pytest.raises(RecordError, match=r"card\.json: no such file, .* put the source back"):
        record.read(run)
    finished.source(data, "CC-BY-4.0")
    text = section(made(run), "Training data")
    assert "prepared anew after this training" in text
    assert "refusal" not in text


def test_a_merged_model(tmp_path: Path) -> None:
    run = finished.run(tmp_path)
    finished.merged(run)
    text = made(run, merge=record.merged(run, record.read(run)))
    data = ModelCard(text).data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("transformers", "finetune")
    assert "lora" not in data["tags"]
    assert "peft" not in section(text, "How to load it")
    assert "on 17 examples the logits differ by at most 3e-06" in section(text, "Merged and unmerged")
    assert "99.8 % of the most likely tokens" in text
    facts = json.loads((run / "merged/merge.json").read_text())
    (run / "merged/merge.json").write_text(json.dumps({**facts, "check": None}))
    assert "It was not compared" in made(run, merge=record.merged(run, record.read(run)))
    (run / "merged/merge.json").write_text(json.dumps({**facts, "adapter": "0" * 32}))
    with pytest.raises(RecordError, match=r"of another adapter .* merge again"):
        record.merged(run, record.read(run))
    shutil.rmtree(run / "merged")
    with pytest.raises(RecordError, match="merge first, with skinvl merge"):
        record.merged(run, record.read(run))


def test_a_base_in_4_bits_is_loaded_so(tmp_path: Path) -> None:
    recipe = {"quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    run = finished.run(tmp_path, recipe=recipe)
    quantization = {**recipe["quantization"], "llm_int8_skip_modules": ["model.visual", "lm_head"]}
    load = section(made(run, quantization=quantization), "How to load it")
    code = load.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    for words in ('bnb_4bit_quant_type="nf4",', "load_in_4bit=True,", "['model.visual', 'lm_head']", "=quantization"):
        assert words in code


def odd_images() -> dict[str, bytes]:
    """Files that a plain `Image.open(path).convert("RGB")` reads otherwise than we do."""
    noise, saved, exif = pictures.NOISE, pictures.saved, pictures.exif
    clear = Image.merge("RGBA", [*noise.split(), Image.linear_gradient("L").resize(noise.size)])
    deep = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60
    return {
        **{f"turned-{turn}": saved(noise, "JPEG", quality=95, exif=exif(turn)) for turn in range(2, 9)},
        **{f"turned-{kind}": saved(noise, kind, exif=exif(6)) for kind in ("PNG", "TIFF")},
        "clear": saved(clear, "PNG"),
        "clear-turned": saved(clear, "PNG", exif=exif(8)),
        "clear-palette": saved(noise.quantize(8), "PNG", transparency=1, exif=exif(6)),
        "clear-grey": saved(noise.convert("L"), "PNG", transparency=noise.convert("L").getpixel((3, 3))),
        "clear-animated": saved(noise.quantize(8), "GIF", transparency=2),
        "deep": saved(Image.fromarray(deep), "PNG"),
        "deep-turned": saved(Image.fromarray(deep), "TIFF", exif=exif(6)),
        "integer": saved(Image.fromarray(deep.astype(np.int32) - 500), "TIFF"),
        "float": saved(Image.fromarray(np.where(deep > 99, deep / 7e4, np.nan).astype(np.float32)), "TIFF"),
    }


def test_the_cards_code_reads_images_as_training_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import runs, tiny  # these load torch, which nothing else here needs
    from skinvl.data.example import Example
    from skinvl.data.example import text as turn

    recipe = {"evaluate": {"generation": {"max_new_tokens": 1}}}
    run = finished.run(tmp_path, recipe=recipe)
    finished.merged(run)
    code = made(run, merge=record.merged(run, record.read(run))).split("```python\n")[1].split("```")[0]
    code = code.replace(REPO, str(tiny.base("qwen2_vl")))
    chat = runs.chat(runs.make(tmp_path, "qwen2_vl", data__image_tokens=64))
    turns = (turn("user", "What does the image show?", 1), turn("assistant", "-"))

    monkeypatch.chdir(tmp_path)
    alike = []
    for name, data in odd_images().items():
        path = tmp_path / "lesion.png"  # whatever it holds: files are told by their content
        path.write_bytes(data)
        executed: dict[str, Any] = {}
        exec(compile(code, "card", "exec"), executed)
        picture = upright(path)
        assert executed["image"].mode == "RGB", name
        assert np.array_equal(executed["image"], picture), name
        example = Example("a", "s", ("x",), turns, "g", "none", "none")
        assert executed["inputs"]["input_ids"].tolist() == [chat.prompt(example, [size(path)]).ids], name
        if np.array_equal(Image.open(path).convert("RGB"), picture):
            alike.append(name)
    assert alike == ["turned-TIFF"]  # which Pillow itself turns


def test_the_cards_code_reads_colours_as_training_did(tmp_path: Path) -> None:
    pictures.NOISE.save(tmp_path / "p3.png", icc_profile=colours.ICC["Display P3"])
    pictures.NOISE.save(tmp_path / "plain.png")
    for reading, words in (("srgb", "converted to sRGB"), ("ignore", "read as their values stand")):
        run = finished.run(tmp_path / reading)
        tree = yaml.safe_load((run / "recipe.yaml").read_text())
        tree["data"]["profiles"] = reading
        (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
        text = made(run)
        assert f"tagged with a colour profile were {words}." in text
        lines = text.split("```python\n")[1].split("```")[0].splitlines()
        first, last = lines.index("def read(path):"), lines.index('image = read("lesion.png")')
        imports = [line for line in lines[:first] if line.startswith(("import io", "import numpy", "from PIL"))]
        executed: dict[str, Any] = {}
        exec(compile("\n".join([*imports, *lines[first:last]]), "card", "exec"), executed)
        for name in ("p3.png", "plain.png"):
            assert np.array_equal(executed["read"](tmp_path / name), upright(tmp_path / name, reading)), name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("env.json", None, r"no run, it has no env\.json: nothing was trained here"),
        ("adapter/adapter_model.safetensors", None, "no adapter yet"),
        ("adapter/adapter_model.safetensors", "another", r"was asked of another adapter .* make eval"),
        ("env.json", "{", "not JSON"),
        ("env.json", "[]", "holds a list"),
        ("env.json", "{}", r"not as this version writes it .*python"),
        ("scores.json", "{}", "score again"),
        ("recipe.yaml", "name: 1", "not a recipe of this version"),
        ("recipe.yaml", "a: [", "not a recipe of this version"),
        ("ledger.jsonl", "{", "not JSON lines"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    run = finished.run(tmp_path)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises((RecordError, RunError), match=said):
        record.read(run)


def test_the_terms_that_no_one_licence_covers(tmp_path: Path) -> None:
    found: Record = record.read(finished.run(tmp_path, licence="research use agreement"))
    text = card.licence_text(found, licences.chosen(found.base, found.terms))
    assert text.startswith("research-only: no single licence covers this model.")
    assert "- the base, Qwen/Qwen2-VL-2B-Instruct: Apache-2.0 (any use)" in text
    assert "- trained on ham: research use agreement (research only)" in text


def towers(root: Path, whole: bool) -> Path:
    """A run of two towers that has ended and was evaluated: a whole model, or an adapter."""
    run = finished.run(root, scored=False)
    data = yaml.safe_load((run / "recipe.yaml").read_text())["data"]
    recipe = {
        "name": "dermlip",
        "base": {"name": "clip-b16", "kind": "dual", "model": "openai/clip-vit-base-patch16", "licence": "MIT"},
        "data": {name: data[name] for name in ("train", "eval")},
        "towers": {"image": {"train": "full" if whole else "lora"}, "text": {"train": "frozen"}},
        "objective": {"name": "clip"},
        "batch": {"images": 256, "at_once": 64},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    of_towers = {
        "texts": {"caption": 1234, "ontology": 567},
        "distinct": 890,
        "text_length": 77,
        "too_long": 45,
        "conversion": {"images": 6.1e-8, "texts": 0.0},
    }
    provenances.made(rows={"train": 2345}, base={"commit": "c" * 40}, towers=of_towers).write(run)
    (run / "summary.json").write_text(json.dumps({"pairs": {"same_text_positive": 77}}))
    trained = run / "adapter"
    if whole:
        shutil.rmtree(trained)
        trained = run / "model"
        trained.mkdir()
        (trained / "config.json").write_text('{"model_type": "skinvl_dual_encoder"}')
        save_file({"scale.log": np.zeros(1, np.float32)}, trained / "model.safetensors")

    # Retrieval, worse than the base's.
    direction = {
        "n": 123,
        "pool": 456,
        "numbers": {"R@10": finished.number(0.414)},
        "chance": {"R@10": 0.022},
        "blind": {"R@10": 0.03},
    }
    settings = {"adapter": adapter_digest(trained)}
    block = {"directions": {"image to text": {**direction, "same_group": {}}}, "left_out": {}, "settings": settings}
    test = {"set": "ham", "what": "image to text", "metric": "R@10", "n": 123, "groups": 41, "unpaired": 0}
    test |= {"ours": 0.414, "theirs": 0.512, "difference": finished.number(-0.098), "p": 0.01, "p_holm": 0.02}
    beside = {"against": "dermlip--clip-b16--untrained", "tests": [{**test, "test": "McNemar"}], "why": None}
    scores = finished.scores("") | {"sets": {"ham": {"retrieval": block}}, "untrained": beside}
    (run / "scores.json").write_text(json.dumps(scores))
    return run


def test_merged_towers_say_how_near_they_are_to_base_and_adapter(tmp_path: Path) -> None:
    check = {"images": 1e-7, "texts": 2e-7, "tolerance": 1e-5, "texts_compared": 3}
    clip = Base(name="clip-b16", kind="dual", model="openai/clip-vit-base-patch16", revision="c" * 40)
    text = made(towers(tmp_path, whole=False), base=clip, merge={"base": {}, "adapter": "", "check": check})
    said = section(text, "Merged and unmerged")
    assert "On probes, images of noise and 3 texts, its embeddings differ by at most 2.0e-07 from those of" in said
    assert "DualEncoder.from_pretrained" in text


@pytest.mark.parametrize("whole", [True, False])
def test_two_towers_say_what_they_were_trained_on_and_how_they_retrieve(tmp_path: Path, whole: bool) -> None:
    clip = Base(name="clip-b16", kind="dual", model="openai/clip-vit-base-patch16", revision="c" * 40)
    text = made(towers(tmp_path, whole), base=clip)
    data = ModelCard(text).data.to_dict()
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert data["library_name"] == ("transformers" if whole else "peft")
    assert data["base_model_relation"] == ("finetune" if whole else "adapter")
    assert ("lora" in data["tags"]) is not whole
    (result,) = model_index_to_eval_results(data["model-index"])[1]
    assert (result.task_type, result.dataset_config, result.metric_value) == ("retrieval", "ham image to text", 0.414)

    training, evaluation = section(text, "Training"), section(text, "Evaluation")
    for line in (
        "| objective | clip |",
        "| texts | caption 1,234, ontology 567; 890 of them read differently |",
        "| longer than 77 tokens | 45 texts (cut) |",
        f"| image tower | {'full' if whole else 'lora'} |",
        "| text tower | frozen |",
        "| augmentation | mild |",
        "| batch | 256 images compared with each other, 64 in memory at a time |",
        "| pairs of an epoch that are no negatives | same text positive 77 |",
        "| converted from open_clip | on probe inputs within 6e-08 (images) and 0 (texts) of",
    ):
        assert line in training
    assert r"| R@10 | 0.414 \[0.364, 0.464\] W | 0.022 | 0.030 | 123 | 41 |" in evaluation
    assert text.index("Worse than the base without training") < text.index("## Licence")
    assert "ham, image to text: R@10 0.414 instead of 0.512" in text
    load = section(text, "How to load it")
    assert ("DualEncoder.from_pretrained" in load) is whole
    assert ("init_adapter=ada/skin" in load) is not whole
    assert "vision-language" not in text


def test_scores_of_other_towers_are_refused(tmp_path: Path) -> None:
    run = towers(tmp_path, whole=True)
    save_file({"scale.log": np.ones(1, np.float32)}, run / "model" / "model.safetensors")
    with pytest.raises(RecordError, match="was asked of another model than"):
        made(run)
