"""What is served: a folder that an engine reads as it was trained, and the command that starts one on it."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig
from transformers import GenerationConfig, ProcessorMixin
from transformers.image_utils import load_image
from transformers.utils.import_utils import is_serve_available

from skinvl.data.example import text
from skinvl.evaluate.parity import drawn
from skinvl.model import families, ways_out
from skinvl.model.base import base_dtype
from skinvl.model.chat import Chat, ChatError
from skinvl.model.decode import stop_tokens_in
from skinvl.model.loaded import open_with_adapter
from skinvl.recipe.files import read_json, whole_folder, write_json
from skinvl.recipe.recipe import Recipe
from skinvl.recipe.run import Run, adapter_digest, finished

Engine = Literal["vllm", "transformers"]
IMAGES = 8  # the most that a request may show
# What a user of the API may expect and an engine does not do, by running it (transformers 5.23).
LIMITS: dict[Engine, tuple[str, ...]] = {
    "vllm": ("top_p without a temperature changes nothing",),
    "transformers": (
        "top_p without a temperature changes nothing",
        "n is ignored: a request gets one answer",
        "stop is answered with error 500",
        "seed repeats an answer only while no other request comes",
        "logprobs, response_format, presence_penalty and user are ignored",
        "frequency_penalty p sets the repetition penalty to 1 + p",
        "16-bit grey images come out white, clear parts in the colour under them: send 8-bit RGB",
    ),
}
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
CODE = "processing_served.py"
# The template gets a system turn as it got it in training, as a string: some engines make every turn a list of parts,
# which the Llama templates would print as Python does.
FLATTEN = (
    "{%- set turns = namespace(all=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' and message['content'] is not string -%}"
    "{%- set joined = message['content'] | map(attribute='text') | join('') -%}"
    "{%- set turns.all = turns.all + [{'role': 'system', 'content': joined}] -%}"
    "{%- else -%}{%- set turns.all = turns.all + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = turns.all -%}\n"
)


class ServeError(ValueError):
    """A run that cannot be served, an engine that is not there or does not start, or one that serves something else."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served: weights, the chat that they were trained with, and the recipe by which we ask them ourselves."""

    name: str  # of the model, in requests
    recipe: Recipe
    chat: Chat
    weights: Path  # the folder of the base, or RUN/merged
    adapter: Path | None  # served as a LoRA module on `weights`


@dataclass(frozen=True, slots=True)
class Command:
    """The words that start an engine, where, and what is added to its environment."""

    words: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """The line for a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return f"cd {shlex.quote(str(self.folder))} && {' '.join([*settings, shlex.join(self.words)])}"


def program(engine: Engine) -> str | None:
    """Where the engine's program lies, beside this Python or on the PATH; None where it is not installed."""
    beside = Path(sys.executable).with_name(engine)
    return str(beside) if beside.is_file() else shutil.which(engine)


def require(engine: Engine) -> None:
    """Checks that the engine, and the client that asks it, are installed.

    Raises:
        ServeError: they are not.
    """
    if program(engine) is None:
        raise ServeError(f"--engine {engine}: it is not installed; install it with pip install {engine}")
    if importlib.util.find_spec("openai") is None or (engine == "transformers" and not is_serve_available()):
        raise ServeError("serving needs more than skinvl alone; install it with: pip install 'skinvl[serve]'")


def served_model(path: Path, engine: Engine) -> ServedModel:
    """What a run serves by an engine: RUN/merged where it is there, else its adapter on its base.

    Raises:
        RunError: no finished run.
        ServeError: nothing that this engine can serve, or merged weights of another adapter.
    """
    run = finished(path)
    recipe, merged = run.adapted(), path / "merged"

    # Merged weights hold the adapter, its processor and template; whatever the base was, they are not quantised.
    if merged.is_dir():
        _fresh(run, merged)
        base = recipe.base.model_copy(update={"model": str(merged), "random": None, "revision": None})
        recipe = recipe.model_copy(update={"base": base, "init_adapter": None, "quantization": None})
    elif reason := _unfit(run, engine):
        raise ServeError(f"{path}: {reason}; make RUN/merged first with: skinvl merge {shlex.quote(str(path))}")

    opened = open_with_adapter(recipe)
    if engine == "vllm" and opened.family.model_type in ways_out.NOT_IN_VLLM:
        raise ServeError(f"{path}: vLLM serves no {opened.family.model_type} since 0.11; use --engine transformers")
    name = re.sub(r"[^\w.-]", "-", path.resolve().name)
    return ServedModel(name, recipe, opened.chat, opened.path, opened.adapter)


def _fresh(run: Run, merged: Path) -> None:
    again = f"make it again with: skinvl merge {shlex.quote(str(run.path))}"
    record = merged / "merge.json"
    if not record.is_file():
        raise ServeError(
            f"{merged}: no merge.json, so that nobody knows what was merged; remove the folder and {again}"
        )
    then = read_json(record, again, ServeError, ["adapter"])["adapter"]
    if then != (now := adapter_digest(run.adapter)):
        raise ServeError(f"{merged}: made of another adapter ({then}) than {run.adapter} is now ({now}); {again}")


def _unfit(run: Run, engine: Engine) -> str:
    """Why an engine cannot serve the adapter as it is; empty if it can."""
    if engine == "transformers":
        return "transformers serve takes one folder of whole weights, and there is no merged/"
    model_type = run.provenance.base.model_type
    return "" if model_type in ways_out.NOT_IN_VLLM else ways_out.not_in_vllm(model_type, run.recipe)


def _rank(adapter: Path) -> int:
    """The largest rank of an adapter."""
    config = LoraConfig.from_pretrained(str(adapter))
    ranks: list[int] = [config.r, *config.rank_pattern.values()]
    return max(ranks)


def view(served: ServedModel, out: Path) -> Path:
    """The folder `out/NAME` that an engine is given: links to the weights; template, image budget and end as trained.

    A plain load of the weights' own folder would see images at the size that the base's authors chose.

    Raises:
        ServeError: there are no weights.
    """
    with whole_folder(out / served.name) as partial:
        for file in sorted(chain.from_iterable(served.weights.glob(pattern) for pattern in WEIGHTS)):
            (partial / file.name).symlink_to(file.resolve())
        if not any(partial.glob("*.safetensors")):
            raise ServeError(f"{served.weights}: no *.safetensors; give a run whose base or merged/ has its weights")
        processor = _processor(served.chat)
        if _as_trained(processor, served.chat):
            processor.save_pretrained(partial)
        else:
            _budgeted(partial, processor, served.chat)
        _generation(served).save_pretrained(partial)
    return out / served.name


def _processor(chat: Chat) -> ProcessorMixin:
    """The processor that was trained with, its image budget written where a plain call reads it."""
    processor: Any = copy.copy(chat.processor)
    settings = {**processor.image_processor.to_dict(), **chat.image_arguments}
    processor.image_processor = type(processor.image_processor)(**settings)
    processor.tokenizer = copy.copy(chat.tokenizer)
    processor.chat_template = processor.tokenizer.chat_template = template(chat)
    budgeted: ProcessorMixin = processor
    return budgeted


def template(chat: Chat) -> str:
    """The trained template, which writes the same for a system turn that comes as a list of parts."""
    turns = [text("system", "Be brief."), text("user", "Which colour?")]
    try:
        as_trained = chat.render(turns)
    except ChatError:
        return chat.template  # it takes no system turn, and refuses an engine's too
    messages: Any = turns
    as_parts = chat.processor.apply_chat_template(messages, tokenize=False)
    return chat.template if as_parts == as_trained else FLATTEN + chat.template


def _as_trained(processor: Any, chat: Chat) -> bool:
    """Whether a plain call makes of images what training made of them; asked with a wide, a high and a small one."""
    for width, height in ((640, 360), (300, 480), (90, 60)):
        picture = drawn(width, height)
        theirs = processor(images=[[picture]], text=chat.family.image_token, return_tensors="pt")
        ids = theirs["input_ids"]
        if sum(id_ in chat.image_ids for id_ in ids[0].tolist()) != chat.picture((height, width)).text_tokens:
            return False
        ours = chat.family.batch(chat.processor, ids, [[picture]], chat.image_arguments)
        if any(name not in theirs or not same_but_padding(theirs[name], tensor) for name, tensor in ours.items()):
            return False
    return True


def same_but_padding(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    """Whether a processor's tensor is ours, or ours with one value behind it: some pad an image to its budget."""
    more = [max(0, long - short) for long, short in zip(theirs.shape, ours.shape, strict=True)]
    sides = [side for width in reversed(more) for side in (0, width)]
    return torch.equal(theirs, torch.nn.functional.pad(ours, sides, value=theirs.flatten()[-1].item()))


def _budgeted(folder: Path, processor: Any, chat: Chat) -> None:
    """Has the folder's processor leave its images to our family, since no setting of its own keeps the budget."""
    processor.image_processor = chat.processor.image_processor  # as the model was built
    processor.save_pretrained(folder)
    file = folder / "processor_config.json"
    tree = read_json(file, "serve the run again", ServeError)
    tree["auto_map"] = {"AutoProcessor": f"{Path(CODE).stem}.Served"}
    write_json(file, tree)
    kind = type(processor).__name__
    (folder / CODE).write_text(
        f"from transformers import {kind}\n\nfrom skinvl.serve.serving import Budgeted\n\n\n"
        f"class Served(Budgeted, {kind}):\n"
        f"    model_type = {chat.family.model_type!r}\n    image_arguments = {chat.image_arguments!r}\n",
        encoding="utf-8",
    )


class Budgeted:
    """What a processor does with images, done as in training; a subclass names a processor too, and fills these in."""

    model_type: str
    image_arguments: ClassVar[dict[str, Any]]

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """As the processor; the tensors of the images are those of the family."""
        ours: Any = self
        shown = None if images is None else [[load_image(image) for image in row] for row in images]
        other: Any = super()
        inputs = other.__call__(images=shown, text=text, **settings)
        if shown is not None:
            family = families.load(self.model_type)
            inputs.update(family.batch(ours, inputs["input_ids"], shown, self.image_arguments))
        return inputs


def ends(served: ServedModel) -> list[int]:
    """The tokens that end an answer: the template's end of turn, and what the weights' own folder names."""
    return sorted(stop_tokens_in(served.weights, served.chat, ServeError))


def _generation(served: ServedModel) -> GenerationConfig:
    """What a request that says nothing gets: answers as in the evaluation, ended where they ended in training."""
    ours = served.recipe.evaluate.generation
    drawing = ours.model_dump(include={"temperature", "top_p"}, exclude_none=True) if ours.do_sample else {}
    drawing |= {"top_k": 0} if ours.do_sample else {}  # of all tokens; transformers' default is the likeliest 50
    return GenerationConfig(
        do_sample=ours.do_sample, eos_token_id=ends(served), pad_token_id=served.chat.pad_id, **drawing
    )


def command(served: ServedModel, engine: Engine, folder: Path, host: str, port: int, more: Sequence[str]) -> Command:
    """What starts an engine on a folder of `view`.

    Args:
        more: the engine's own arguments, which come last and win.

    Raises:
        ServeError: the engine cannot keep the image budget.
    """
    coded = (folder / CODE).is_file()
    if coded and engine == "vllm":
        raise ServeError(
            f"data.image_tokens={served.recipe.data.image_tokens}: no setting of the base's image processor keeps this "
            "budget, so that vLLM cannot; use --engine transformers"
        )
    # A name without a slash in the folder above it: what the engine is given is then what requests call it.
    start = [program(engine) or engine] if engine == "vllm" else [sys.executable, "-P", "-m", "skinvl.serve.drawing"]
    words = [*start, "serve", folder.name, "--host", host, "--port", str(port)]
    words += ["--dtype", str(base_dtype(served.recipe)).removeprefix("torch.")]
    words += _vllm(served, folder.name) if engine == "vllm" else []
    words += ["--trust-remote-code"] if coded else []  # the few lines of CODE
    hub = folder.parent / ".hub"  # empty: everything is here
    (hub / "hub").mkdir(parents=True, exist_ok=True)
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(hub.resolve()),
        "HF_HUB_CACHE": str((hub / "hub").resolve()),
        "HF_MODULES_CACHE": str((hub / "modules").resolve()),
        "DO_NOT_TRACK": "1",
    }
    return Command((*words, *more), folder.parent.resolve(), environment)


def _vllm(served: ServedModel, folder: str) -> list[str]:
    data, generation = served.recipe.data, served.recipe.evaluate.generation
    images = max(1, min(IMAGES, data.max_tokens // data.image_tokens))
    sampled = {"temperature": generation.temperature or 1.0, "top_p": generation.top_p or 1.0}
    words = ["--chat-template", f"{folder}/chat_template.jinja", "--chat-template-content-format", "openai"]
    words += ["--max-model-len", str(data.max_tokens + generation.max_new_tokens)]
    words += ["--limit-mm-per-prompt", json.dumps({"image": images})]
    words += ["--mm-processor-kwargs", json.dumps(served.chat.image_arguments)]
    words += ["--override-generation-config", json.dumps(sampled if generation.do_sample else {"temperature": 0.0})]
    words += ["--allowed-media-domains", "none.invalid"]  # images come with a request, and are not fetched for it
    words += ["--reasoning-parser", served.chat.thinking.parser] if served.chat.thinking else []
    if served.adapter is None:
        return [*words, "--served-model-name", served.name]
    rank = next(rank for rank in ways_out.RANKS if rank >= _rank(served.adapter))
    words += ["--served-model-name", f"{served.name}--base", "--enable-lora", "--max-lora-rank", str(rank)]
    return [*words, "--lora-modules", f"{served.name}={served.adapter.resolve()}"]
