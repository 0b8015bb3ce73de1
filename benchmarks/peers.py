"""How fast four trainers train the same adapter: `python benchmarks/peers.py [--only skinvl,trl] [--questions 2.45]`.

A random Qwen2-VL, or by `--family` a Qwen2.5-VL or Qwen3.5, of 36 million parameters, drawn images, questions and
answers of real length; each trainer in its own process, one after another, on the CPU. ms-swift and LLaMA-Factory get
environments of their own, made on the first use.
Times are the trainer's own `train_runtime`, so that imports, loading and preparing do not count; skinvl's hold the time
in which it computed the vision features, all of them, before it trained.

What differs is what the trainers are: the order of the conversations, padding, how a batch is made and by how many
processes. Exit status 1: a trainer could not be installed, or failed; the others are still measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3_5Config

from skinvl.model import tiny
from skinvl.model.families.qwen2_5_vl import TinyQwen25VL
from skinvl.model.families.qwen2_vl import TinyQwen2VL, TinyQwenVL
from skinvl.model.families.qwen3_5 import TinyQwen35
from skinvl.sources.prepare.steps import prepare

THREADS, SEED = 2, 42
IMAGE_TOKENS, IMAGE = 144, "<|image_pad|>"
LEARNED = 690  # tokens of the tokenizer: so few that a word of a list this short is 1.2 of them, as in any English text
BATCH, LONGEST = 8, 1024  # conversations, tokens; no conversation comes near it
RANK, ALPHA = 8, 16
LORA = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
INNER = ("gate_proj", "up_proj", "down_proj")
STATE = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
TRAIN = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": 1e-4,
         "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
         "optim": "adamw_torch", "seed": SEED, "use_cpu": True, "save_strategy": "no", "eval_strategy": "no",
         "report_to": "none"}  # fmt: skip
PINS = {
    "ms-swift": (
        "ms-swift==4.6.0", "transformers==5.19.0", "torch==2.15.0", "torchvision==0.29.2", "peft==0.20.0",
        "trl==0.29.1", "accelerate==1.15.0", "datasets==4.8.4", "numpy==2.4.6", "qwen-vl-utils==0.0.14",
        "decord==0.6.0",
    ),
    "llama-factory": (  # imports torchaudio, whose last version wants this torch
        "llamafactory==0.9.5", "transformers==5.6.0", "torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0",
        "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0", "datasets==4.0.0", "numpy==2.4.6",
    ),
}  # fmt: skip
VOCABULARY = """\
the a of and is are in with on at this that which what there it has shows seen most likely more less than both one
two several skin lesion patch plaque papule nodule macule scale crust border colour surface centre edge shape size
network dots globules streaks vessels veil pigment brown black red pink white blue grey yellow pale dark irregular
regular smooth jagged round oval flat raised asymmetric symmetric sharp blurred single multiple small large central
peripheral left right upper lower arm leg back face scalp hand trunk neck patient image photograph dermoscopy clinical
finding diagnosis melanoma naevus keratosis carcinoma eczema psoriasis dermatitis fungal viral benign malignant biopsy
excision follow treatment suggests consistent because within around between without should be considered typical
evidence inflammation ulceration erythema hyperkeratosis telangiectasia regression seborrhoeic actinic basal squamous"""
WORDS = VOCABULARY.split()
TRL = """\
import json
from pathlib import Path

from datasets import Dataset, Image, List
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

if __name__ == "__main__":
    given = json.loads(Path("given.json").read_text())
    file, rows = Path(given["file"]), []
    for row in json.loads(file.read_text()):
        question, answer = (turn["value"].removeprefix("<image>") for turn in row["conversations"])
        prompt, completion = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        rows.append({"images": [str(file.parent / row["image"])], "prompt": [prompt], "completion": [completion]})
    data = Dataset.from_list(rows).cast_column("images", List(Image()))
    loading = {"dtype": given["dtype"]}
    args = SFTConfig("out", max_length=None, model_init_kwargs=loading, **given["train"])
    trainer = SFTTrainer(given["base"], args=args, train_dataset=data, peft_config=LoraConfig(**given["lora"]))
    trainer.train()
    trainer.save_model()
    trainer.save_state()
"""
# ms-swift knows the image token of a family only by its number in the published vocabulary: by another it expands none,
# and trains on rows without images. And it saves an adapter only
# with a checkpoint; on_train_end comes after train_runtime was taken.
PLUGIN = """\
from swift.callbacks import TrainerCallback, callbacks_map
from swift.template.templates.qwen import Qwen2VLTemplate, Qwen3_5Template


class Save(TrainerCallback):
    def on_train_end(self, args, state, control, **given):
        given["model"].save_pretrained("out")


callbacks_map["save"] = Save
Qwen2VLTemplate.image_token_id = Qwen3_5Template.image_token_id = {}
"""
SWIFT = f"""--system= --split_dataset_ratio 0 --tuner_type lora
--target_modules all-linear --lora_rank {RANK} --lora_alpha {ALPHA} --lora_dropout 0 --lora_dtype float32
--max_length {LONGEST} --attn_impl sdpa --gradient_checkpointing false --vit_gradient_checkpointing false
--dataloader_num_workers 1 --use_hf true --external_plugins plugin.py --callbacks save
--output_dir out --add_version false"""


@dataclass(frozen=True, slots=True)
class Model:
    """A random model of one family, and what trainers call it."""

    name: str
    twin: TinyQwenVL
    config: type[Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    pixels: int  # of the side of an image token
    targets: tuple[str, ...]
    trainers: tuple[str, ...]  # that were made to train it here

    @property
    def side(self) -> int:
        """Pixels of the side of an image."""
        return math.isqrt(IMAGE_TOKENS) * self.pixels


LANGUAGE = {"vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 1344, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip
TOWER = {"depth": 4, "num_heads": 4}
TURNS = {"rope_type": "default", "rope_theta": 1e6}
MODELS = {
    "qwen2_vl": Model(
        "Qwen2-VL", TinyQwen2VL(), Qwen2VLConfig,
        {**LANGUAGE, "rope_parameters": {**TURNS, "mrope_section": [8, 12, 12]}},
        {**TOWER, "embed_dim": 256, "hidden_size": 512, "mlp_ratio": 4, "patch_size": 14},
        28, ATTENTION + INNER, ("skinvl", "trl", "ms-swift", "llama-factory"),
    ),
    "qwen2_5_vl": Model(
        "Qwen2.5-VL", TinyQwen25VL(), Qwen2_5_VLConfig,
        {**LANGUAGE, "rope_parameters": {**TURNS, "mrope_section": [8, 12, 12]}},
        {**TOWER, "hidden_size": 256, "out_hidden_size": 512, "intermediate_size": 1024, "patch_size": 14,
         "window_size": 112, "fullatt_block_indexes": [3]},
        28, ATTENTION + INNER, ("skinvl", "trl", "ms-swift"),
    ),
    "qwen3_5": Model(  # three layers of four carry a state, as in the published ones
        "Qwen3.5", TinyQwen35(), Qwen3_5Config,
        {**LANGUAGE, "intermediate_size": 1152, "head_dim": 64,
         "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
         "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
         "rope_parameters": {**TURNS, "mrope_section": [3, 3, 2], "mrope_interleaved": True,
                             "partial_rotary_factor": 0.25}},
        {**TOWER, "hidden_size": 256, "out_hidden_size": 512, "intermediate_size": 1024, "patch_size": 16,
         "num_position_embeddings": 576},
        32, ATTENTION + INNER + STATE, ("skinvl", "trl", "ms-swift"),
    ),
}  # fmt: skip


class PeerError(Exception):
    """A trainer could not be installed, or did not train; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Case:
    """What all train: `base` and `raw` in the folder, so many conversations, for so many epochs."""

    folder: Path
    count: int
    epochs: int
    dtype: str
    model: Model

    @property
    def base(self) -> Path:
        """The folder of the model."""
        return self.folder / "base"

    @property
    def raw(self) -> Path:
        """The folder of the images and of rows.json."""
        return self.folder / "raw"

    @property
    def train(self) -> dict[str, Any]:
        """Settings of transformers' Trainer, by the names that every trainer takes."""
        every = min(10, math.ceil(self.count / BATCH) * self.epochs)
        bf16 = self.dtype == "bfloat16"
        return {**TRAIN, "num_train_epochs": self.epochs, "bf16": bf16, "logging_steps": every}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one trainer did."""

    version: str
    log: list[dict[str, Any]]
    adapter: str  # types of its weights, and their number
    workers: int  # processes that load data
    tokens: float | None  # of a conversation, by the trainer's own count
    peak: float  # MiB, of the largest of its processes

    def last(self, key: str) -> float:
        """The last value that was logged, or NaN."""
        return next((float(line[key]) for line in reversed(self.log) if key in line), math.nan)


def sentence(generator: random.Random, words: int) -> str:
    """So many words; the first ones of the list are the most frequent, as in any text."""
    weights = [1 / (rank + 5) for rank in range(len(WORDS))]
    return " ".join(generator.choices(WORDS, weights, k=words)).capitalize()


def draw(path: Path, generator: random.Random, side: int) -> None:
    """Draws a photo of ellipses on skin into a file."""
    tone, *colours = (tuple(generator.randint(low, 230) for low in (170, 140, 120)) for _ in range(9))
    picture = Image.new("RGB", (side, side), tone)
    for colour in colours:
        left, top, width, height = (generator.randint(10, side * 3 // 5) for _ in range(4))
        shade = tuple(value - generator.randint(0, 100) for value in colour)
        ImageDraw.Draw(picture).ellipse((left, top, left + width, top + height), shade)
    picture.save(path, quality=90)


def write_rows(folder: Path, images: int, questions: float, side: int) -> list[str]:
    """The questions and answers by turns; the folder holds them in LLaVA's form, which all can read, and the images."""
    folder.mkdir(parents=True)
    generator, rows, texts = random.Random(SEED), [], []
    for number in range(images):
        draw(folder / f"{number}.jpg", generator, side)
        for _ in range(int((number + 1) * questions) - int(number * questions)):
            question = sentence(generator, generator.randint(10, 14)) + "?"
            answer = sentence(generator, min(60, max(3, round(generator.lognormvariate(2.95, 0.5))))) + "."
            turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
            rows.append({"image": f"{number}.jpg", "conversations": turns})
            texts += [question, answer]
    (folder / "rows.json").write_text(json.dumps(rows))
    return texts


def build(folder: Path, texts: Iterable[str], dtype: str, family: str) -> int:
    """The parameters of a random model, written into the folder with a tokenizer of the texts."""
    model = MODELS[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=LEARNED, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(model.twin.tokens))
    backend.save(str(file := folder.with_name("tokenizer.json")))
    tiny.build(family, folder, tokenizer_json=file)  # for processor and template: its model is too small
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {**model.twin.text(tokenizer), **model.text}
    ids = model.twin.token_ids(tokenizer)
    torch.manual_seed(SEED)
    config = model.config(text_config=text, vision_config=model.vision, tie_word_embeddings=True, **ids)
    made = AutoModelForImageTextToText.from_config(config)
    model.twin.prepare(made)
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    return sum(parameter.numel() for parameter in made.parameters())


def skinvl(case: Case, work: Path) -> Measured:
    """What skinvl did, from a source that `skinvl prep` made."""
    account = prepare("llava", case.raw, work / "data", workers=1)
    if account is None or account.examples.total() != case.count:
        raise PeerError(f"skinvl prep kept {account and account.examples.total()} of {case.count} conversations")
    source = {"source": str(work / "data"), "split": "train"}
    recipe = {
        "base": str(case.base),
        "data": {"train": [source], "image_tokens": IMAGE_TOKENS, "max_tokens": LONGEST},
        "parts": {"language": {"train": "lora"}},
        "lora": LORA,
        "train": {**case.train, "activation_checkpointing": False},
        "run": "peers",
    }
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    peak = follow([sys.executable, "-m", "skinvl", "sft", str(work / "recipe.yaml")], work)
    run = work / "runs" / "peers"
    speed = json.loads((run / "summary.json").read_text())["speed"]
    tokens = speed["tokens_per_second"] / speed["samples_per_second"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    made = Measured(version("skinvl"), log, adapter(run / "adapter"), 0, tokens, peak)
    kept = json.loads((run / "env.json").read_text())["features"]
    if kept:  # the clock starts with an empty cache
        log.append({"train_runtime": made.last("train_runtime") + kept["seconds"]})
    return made


def trl(case: Case, work: Path) -> Measured:
    """What TRL's SFTTrainer did; on prompts and completions, so that its loss too is that of the answers."""
    targets = rf".*language_model.*\.({'|'.join(case.model.targets)})"
    given = {
        "base": str(case.base),
        "dtype": case.dtype,
        "file": str(case.raw / "rows.json"),
        "lora": {**LORA, "target_modules": targets, "task_type": "CAUSAL_LM"},
        "train": {**case.train, "activation_checkpointing": False},
    }
    (work / "given.json").write_text(json.dumps(given))
    (work / "train.py").write_text(TRL)
    peak = follow([sys.executable, "train.py"], work)
    log = state(work)
    return Measured(version("trl"), log, adapter(work / "out"), 0, seen(case, log, "num_tokens"), peak)


def ms_swift(case: Case, work: Path) -> Measured:
    """What ms-swift did, as its own command line starts it; one process loads data, as is its default."""
    python = environment("ms-swift", work.parent)
    image = Tokenizer.from_file(str(case.base / "tokenizer.json")).token_to_id(IMAGE)
    (work / "plugin.py").write_text(PLUGIN.format(image))
    kind = json.loads((case.base / "config.json").read_text())["model_type"]
    own = {
        "model_type": kind,
        "template": kind,
        "model": case.base,
        "dataset": case.raw / "rows.json",
        "torch_dtype": case.dtype,
    }
    words = [f"--{key}={value}" for key, value in {**case.train, **own}.items()]
    command = [str(python.with_name("swift")), "sft", *SWIFT.split(), *words]
    peak = follow(command, work, ROOT_IMAGE_DIR=str(case.raw))
    first = re.search(r"\[INPUT_IDS\] \[(.*)\]", (work / "log").read_text(errors="replace"))
    if first is None or (shown := first[1].split(", ").count(str(image))) != IMAGE_TOKENS:
        raise PeerError(f"its first row shows {first and shown} image tokens; expected {IMAGE_TOKENS}: no comparison")
    log = [json.loads(line) for line in (work / "out" / "logging.jsonl").read_text().splitlines()]
    return Measured(pinned("ms-swift"), log, adapter(work / "out"), 1, None, peak)


def llama_factory(case: Case, work: Path) -> Measured:
    """What LLaMA-Factory did, as its own command line starts it."""
    python = environment("llama-factory", work.parent)
    columns = {"messages": "conversations", "images": "image"}
    data = {"peers": {"file_name": str(case.raw / "rows.json"), "formatting": "sharegpt", "columns": columns}}
    (work / "dataset_info.json").write_text(json.dumps(data))
    settings = f"""{{stage: sft, do_train: true, template: qwen2_vl, default_system: '', dataset: peers, dataset_dir: .,
        cutoff_len: {LONGEST}, finetuning_type: lora, lora_target: '{",".join(case.model.targets)}', lora_rank: {RANK},
        lora_alpha: {ALPHA}, lora_dropout: 0.0, flash_attn: sdpa, disable_gradient_checkpointing: true, output_dir: out,
        dataloader_num_workers: 0, include_num_input_tokens_seen: non_padding}}"""
    own = {"model_name_or_path": str(case.base), "media_dir": str(case.raw)}
    (work / "train.yaml").write_text(yaml.safe_dump({**yaml.safe_load(settings), **case.train, **own}))
    peak = follow([str(python.with_name("llamafactory-cli")), "train", "train.yaml"], work)
    log = state(work)
    tokens = seen(case, log, "num_input_tokens_seen")
    return Measured(pinned("llama-factory"), log, adapter(work / "out"), 0, tokens, peak)


TRAINERS: dict[str, tuple[str, Callable[[Case, Path], Measured]]] = {
    "skinvl": ("skinvl", skinvl),
    "trl": ("TRL", trl),
    "ms-swift": ("ms-swift", ms_swift),
    "llama-factory": ("LLaMA-Factory", llama_factory),
}


def environment(name: str, work: Path) -> Path:
    """The Python of a trainer's own environment with its pinned packages, made where it is not there."""
    folder = work / "environments" / name
    python, done, log = folder / "bin" / "python", folder / "pins.json", folder.with_suffix(".log")
    if done.is_file() and json.loads(done.read_text()) == list(PINS[name]):
        return python
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    log.parent.mkdir(parents=True, exist_ok=True)
    install = [uv, "pip", "install", "--python", str(python), *PINS[name]]
    with log.open("w") as file:
        for step in ([uv, "venv", "--clear", "--python", sys.executable, str(folder)], install):
            if subprocess.run(step, stdout=file, stderr=subprocess.STDOUT, check=False).returncode:
                raise PeerError(f"could not be installed; {tail(log)}")
    done.write_text(json.dumps(PINS[name]))
    return python


def follow(command: Sequence[str], work: Path, **variables: str) -> float:
    """MiB at the peak of the largest process of a command, which has ended; its output is in work/log.

    Raises:
        PeerError: it failed; the message holds the end of its output.
    """
    own = {"OMP_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    cache = {name: str(work / "cache") for name in ("HF_HOME", "MODELSCOPE_CACHE")}
    given = {**os.environ, **own, **cache, **variables}
    with (work / "log").open("w") as file:
        process = subprocess.Popen(command, cwd=work, env=given, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise PeerError(f"failed with status {process.returncode}; {tail(work / 'log')}")
    return usage.ru_maxrss / 1024


def tail(log: Path) -> str:
    """Where the log is, and its last lines."""
    return f"the end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def state(work: Path) -> list[dict[str, Any]]:
    """What transformers' Trainer logged, from the state that it saved."""
    log: list[dict[str, Any]] = json.loads((work / "out" / "trainer_state.json").read_text())["log_history"]
    return log


def adapter(folder: Path) -> str:
    """The types of a saved adapter's weights, which are those that trained, and how many there are."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        weights = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (it is no mapping)
    types = sorted({str(one.dtype).removeprefix("torch.") for one in weights})
    return f"{' and '.join(types)}, {sum(one.numel() for one in weights) / 1e6:.4f} M"


def seen(case: Case, log: Sequence[dict[str, Any]], key: str) -> float | None:
    """Tokens of a conversation, by the last count that was logged; None where there is none."""
    last = next((float(line[key]) for line in reversed(log) if line.get(key)), None)
    return last and last / (case.count * case.epochs)


def pinned(name: str) -> str:
    """The version of a trainer that has its own environment."""
    return PINS[name][0].partition("==")[2]


def show(case: Case, found: dict[str, Measured]) -> None:
    """Prints the table, and how many times as fast as each other one skinvl was."""
    columns = "trainer", "version", "samples/s", "training, s", "peak, MiB", "last loss", "tokens", "adapter", "workers"
    table = Table(*columns)
    speeds = {name: case.count * case.epochs / one.last("train_runtime") for name, one in found.items()}
    for name, one in found.items():
        rates = f"{speeds[name]:.2f}", f"{one.last('train_runtime'):.1f}", f"{one.peak:,.0f}"
        rest = f"{one.last('loss'):.4f}", f"{one.tokens:.1f}" if one.tokens else "", one.adapter, str(one.workers)
        table.add_row(TRAINERS[name][0], one.version, *rates, *rest)
    Console(width=120).print(table)
    for name in speeds:
        if "skinvl" in speeds and name != "skinvl":
            print(f"ratio to {TRAINERS[name][0]}: {speeds['skinvl'] / speeds[name]:.2f}")


def main() -> int:
    """0 where all that were asked for have trained, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=MODELS, default="qwen2_vl", help="of the model")
    parser.add_argument("--only", help="trainers, separated by commas; without it all that train the family")
    parser.add_argument("--questions", type=float, default=2.45, help="conversations about an image, on average")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of base and computation")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "skinvl-peers", help="for all files")
    given = parser.parse_args()
    model = MODELS[given.family]
    names = given.only.split(",") if given.only else list(model.trainers)
    if unknown := [name for name in names if name not in model.trainers]:
        parser.error(f"--only: {', '.join(unknown)}; expected some of {', '.join(model.trainers)}")
    work = given.work.resolve()
    shutil.rmtree(work / "case", ignore_errors=True)
    texts = write_rows(work / "case" / "raw", given.images, given.questions, model.side)
    case = Case(work / "case", len(texts) // 2, given.epochs, given.dtype, model)
    parameters = build(case.base, texts, case.dtype, given.family)
    print(f"{model.name} of {parameters / 1e6:.1f} M random parameters, {case.dtype}, {THREADS} threads")
    print(f"{case.count} conversations about {given.images} images of {model.side} x {model.side} pixels")
    print(f"LoRA on {', '.join(model.targets)} of the language model: {LORA}; vision tower and merger frozen")
    print(", ".join(f"{key}={value}" for key, value in case.train.items()))
    if case.dtype == "bfloat16" and not re.search(r"\b(avx512_|amx_)?bf16\b", Path("/proc/cpuinfo").read_text()):
        print("this CPU cannot compute in bfloat16 and imitates it: all are several times slower than in float32")
    found = {}
    for name in names:
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            found[name] = TRAINERS[name][1](case, folder)
        except PeerError as error:
            print(f"{TRAINERS[name][0]}: {error}", flush=True)
    if found:
        show(case, found)
    return 0 if len(found) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
