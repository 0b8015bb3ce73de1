"""A checkpoint of open_clip → the folder of a DualEncoder, converted once, and proved by an independent forward.

CLIP's own layout is read, with the text tower beside the image tower or under `text.`; CAE with BERT (PanDerm's); and
CLIP's image tower with BERT. Every tensor of the file is used once, none is invented, and shapes are equal; then the
embeddings of probes are compared with those of `open_clip_forward`. Anything else is refused.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from skinvl.model import hub, open_clip_fit, open_clip_forward, open_clip_names
from skinvl.model.base import unsharded
from skinvl.model.dual import DualEncoder
from skinvl.model.dual_inputs import PixelFormat, TextTokenizer
from skinvl.model.hub import Snapshot
from skinvl.model.open_clip_layout import Layout, OpenClipError, layout
from skinvl.recipe.files import digest, read_json, whole_folder, write_json
from skinvl.recipe.recipe import SourceSpec

CONFIG = "open_clip_config.json"
FILE = "conversion.json"  # in the folder of a converted checkpoint: what it was made of, and how near it is to that
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# open_clip's own vocabulary, token by token, and what it writes beside the checkpoints that it uploads.
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
VERSION = 2  # raised with every change of what is written, so that no older folder is taken for it
TOLERANCE = 1e-5  # on embeddings of length one; float32 makes about 1e-7 of it
PROBES = (
    "a photograph of skin",
    "An annular plaque with scale at its border on the left forearm, 2.5 cm wide",
    "; ".join(["a symmetrical brown macule with a sharp border"] * 60),  # longer than any text tower reads
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the folder of a checkpoint holds."""

    weights: Path
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]  # model_cfg of open_clip_config.json; empty where there is none
    preprocessing: dict[str, Any]  # preprocess_cfg of it


def converted(files: Snapshot, name: str, *, quick_gelu: bool | None, sources: Sequence[SourceSpec] = ()) -> Path:
    """The folder of a checkpoint as a DualEncoder, bases/<name>--<digest>, made if it is not there.

    The tokenizer is that in the checkpoint's folder; else the one that its config names; else CLIP's.

    Args:
        quick_gelu: whether CLIP's layers were trained with QuickGELU. A file may say so or be wrong, so it is asked
            for; None is for towers that are not CLIP's.
        sources: where a few images with captions are taken from, if one is prepared. InfoNCE on them by both
            activations is kept, and told where `quick_gelu` is None or clearly the other.

    Raises:
        OpenClipError: not a checkpoint that can be converted exactly; the message says what is in the way.
        BaseError: its tokenizer cannot be had.
    """
    folder = files.path
    weights = weights_file(folder)
    checksum = digest(weights)
    state = xxhash.xxh3_128(f"{VERSION} {quick_gelu} {checksum}".encode())
    for file in sorted(folder.glob("*.json")):
        state.update(file.read_bytes())
    out = Path("bases") / f"{name}--{state.hexdigest()[:12]}"
    if (out / FILE).is_file():
        return out

    checkpoint = read(folder)
    own, source, beside = _tokenizer(checkpoint, folder)
    architecture = layout(checkpoint.tensors, checkpoint.config, own, beside, str(weights))
    tokenizer = TextTokenizer(own, architecture.length, cleans=True)
    pixels = _pixel_format(checkpoint.preprocessing, architecture.side, folder)
    fit = None
    if architecture.has_clip:
        few = open_clip_fit.pairs(sources)
        fit = open_clip_fit.fit(checkpoint.tensors, architecture, tokenizer, pixels, few) if few else None
        if quick_gelu is None:
            raise OpenClipError(
                f"{weights}: its towers are CLIP's, and base.quick_gelu is not set{f'; {fit}' if fit else ''}. Set it "
                "to true for weights that come from OpenAI's, by whatever training, and to false for those that "
                "open_clip trained from the start"
            )
        if fit is not None and fit.fits == ("gelu" if quick_gelu else "quick_gelu"):
            warnings.warn(f"{weights}: base.quick_gelu is {str(quick_gelu).lower()}, and {fit}", stacklevel=2)
    elif quick_gelu:
        raise OpenClipError(f"{weights}: none of its towers is CLIP's; leave quick_gelu out of the base")

    # It is written, and read again as any user of it will, before it counts as there.
    with whole_folder(out, shared=True) as partial, unsharded():
        dual_encoder(checkpoint.tensors, architecture, bool(quick_gelu), str(weights)).save_pretrained(partial)
        tokenizer.save(partial)
        pixels.save(partial)
        model: DualEncoder = DualEncoder.from_pretrained(partial, dtype=torch.float32)
        differences = compare(model, checkpoint.tensors, architecture, bool(quick_gelu), tokenizer)
        if not all(value <= TOLERANCE for value in differences.values()):  # nor where one is no number
            of_each = ", ".join(f"{value:.1e} ({what})" for what, value in differences.items())
            raise OpenClipError(
                f"{weights}: converted, its embeddings of probes differ from those that its own tensors give by "
                f"{of_each}; expected at most {TOLERANCE:.0e}; it is not used. Please report it"
            )
        facts = {
            "weights": weights.name,
            "commit": files.commit,
            "xxh3_128": checksum,
            "tensors": len(checkpoint.tensors),
            "layout": f"{architecture.image}+{architecture.text}",
            "quick_gelu": quick_gelu,
            "tokenizer": source,
            "differences": differences,
            "pairs": None if fit is None else {**asdict(fit), "fits": fit.fits},
        }
        write_json(partial / FILE, facts)
    return out


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of open_clip, and not the same model as transformers has it."""
    config = folder / "config.json"
    if config.is_file() and "model_type" in read_json(config, "download it again", OpenClipError):
        return False
    named = any((folder / name).is_file() for name in (CONFIG, *WEIGHTS))
    return named or (not config.is_file() and len(_pickles(folder)) == 1)


def weights_file(folder: Path) -> Path:
    """The file of weights in a checkpoint's folder.

    Raises:
        OpenClipError: none, or several that may be it.
    """
    named = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    files = named or _pickles(folder)
    if not named and len(files) != 1:
        there = ", ".join(file.name for file in files) or "none"
        raise OpenClipError(
            f"{folder}: files of weights: {there}; expected {WEIGHTS[0]}, or one file .pt, .pth or .bin"
        )
    return files[0]


def read(folder: Path) -> Checkpoint:
    """The tensors of a checkpoint, fp32, without the wrapping of a training (`state_dict`, `module.`), and its config.

    Raises:
        OpenClipError: the file is damaged, or holds more than tensors.
    """
    file = weights_file(folder)
    try:
        raw: Any = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise OpenClipError(
            f"{file}: not read ({first}); expected safetensors, or a file of torch.save with nothing but tensors"
        ) from error
    state = raw.get("state_dict", raw) if isinstance(raw, dict) else {}
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise OpenClipError(f"{file}: {_few(others) or 'nothing'} where tensors by name were expected")
    wrapped = "module." if all(name.startswith("module.") for name in state) else ""  # of DistributedDataParallel
    tensors = {
        name.removeprefix(wrapped): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    hint = "give the file that open_clip wrote beside its checkpoint, or remove it"
    config = read_json(folder / CONFIG, hint, OpenClipError) if (folder / CONFIG).is_file() else {}
    return Checkpoint(file, tensors, config.get("model_cfg") or {}, config.get("preprocess_cfg") or {})


def dual_encoder(
    tensors: Mapping[str, torch.Tensor], architecture: Layout, quick_gelu: bool, where: str
) -> DualEncoder:
    """The model of a checkpoint: every tensor in it once, and none that is not in the checkpoint.

    Raises:
        OpenClipError: one is left over, missing or of another shape; the message has their names.
    """
    with torch.device("meta"):
        model = DualEncoder(architecture.config(quick_gelu=quick_gelu))
    expected = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    placed, left_over = open_clip_names.converted(tensors)
    missing = sorted(expected.keys() - placed.keys())
    left_over += sorted(placed.keys() - expected.keys())
    other_shape = [
        f"{name} {list(placed[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in placed and list(placed[name].shape) != shape
    ]
    faults = [("left over", left_over), ("missing", missing), ("of another shape", other_shape)]
    if any(names for _, names in faults):
        counts = "; ".join(f"{len(names)} {what} ({_few(names)})" for what, names in faults if names)
        raise OpenClipError(
            f"{where}: {counts}; expected every tensor to be used once and none to be invented; "
            f"it is not a {architecture.image} image tower with a {architecture.text} text tower and nothing else"
        )
    # A copy each, since thirds of a joint matrix would be saved as one.
    model.load_state_dict({name: tensor.clone().contiguous() for name, tensor in placed.items()}, assign=True)
    return model


@torch.no_grad()
def compare(
    model: DualEncoder,
    tensors: Mapping[str, torch.Tensor],
    architecture: Layout,
    quick_gelu: bool,
    tokenizer: TextTokenizer,
) -> dict[str, float]:
    """The largest differences of image and text embeddings from those of the independent forward, on probes.

    The probes are two images of noise, seeded, and three texts, of which one is cut.
    """
    side, act = architecture.side, {"quick_gelu": quick_gelu}
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    ids, mask = tokenizer.pad(tokenizer(PROBES))
    images = open_clip_forward.images(tensors, pixels, heads=architecture.image_heads, **act)
    texts = open_clip_forward.texts(tensors, ids, heads=architecture.text_heads, pad=architecture.pad, **act)
    return {
        "images": float((model.encode_images(pixels).embeddings - images).abs().max()),
        "texts": float((model.encode_texts(ids, mask) - texts).abs().max()),
    }


def _tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[PreTrainedTokenizerBase, str, dict[str, Any]]:
    """The tokenizer of a checkpoint, where it comes from, and the config.json beside it."""
    text = checkpoint.config.get("text_cfg") or {}
    source = text.get("hf_tokenizer_name") or CLIP_TOKENIZER
    if (folder / "tokenizer_config.json").is_file():
        source, path = "beside the checkpoint", folder
    elif Path(source).is_dir():
        path = Path(source)
    else:
        path = hub.fetch(source, None, weights=False).path
    config = path / "config.json"
    beside = read_json(config, "remove it, or download it again", OpenClipError) if config.is_file() else {}
    tokenizer = AutoTokenizer.from_pretrained(path)
    return tokenizer, source, beside if beside.get("model_type") == "bert" else {}


def _pixel_format(preprocessing: Mapping[str, Any], side: int, folder: Path) -> PixelFormat:
    """How open_clip makes pixels of an image: its config's mean, deviation and resizing, or OpenAI's."""
    resizing = preprocessing.get("resize_mode") or "shortest"
    if resizing not in ("shortest", "squash"):
        raise OpenClipError(f"{folder / CONFIG}: resize_mode {resizing}; expected shortest or squash")
    bilinear = preprocessing.get("interpolation") == "bilinear"
    return PixelFormat(
        side,
        tuple(preprocessing.get("mean") or OPENAI_CLIP_MEAN),
        tuple(preprocessing.get("std") or OPENAI_CLIP_STD),
        Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC,
        crops=resizing == "shortest",
    )


def _unpickled(file: Path) -> Any:
    """What torch.save wrote, if that is nothing but tensors, numbers and text."""
    if not zipfile.is_zipfile(file):  # what older versions wrote is read until something breaks
        raise pickle.UnpicklingError("no zip archive")
    return torch.load(file, "cpu", weights_only=True)


def _pickles(folder: Path) -> list[Path]:
    """Files of torch.save."""
    return sorted(file for kind in ("pt", "pth", "bin") for file in folder.glob(f"*.{kind}"))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
