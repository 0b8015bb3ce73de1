"""What must stay at home is found in whatever file it hides, and a clean folder passes."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from helpers import pictures
from skinvl.data import metadata
from skinvl.release import vetting

TOKEN = "hf_" + "AbCdEfGh" * 4
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "publish"
    path.mkdir()
    (path / "README.md").write_text(
        "---\nlicense: mit\n---\nSee https://huggingface.co/data/set/of/ada, and ~5 of 1/2.\n"
    )
    (path / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "Qwen/Qwen2-VL-2B-Instruct"}')
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}')
    (path / "recipe.yaml").write_text("data: {train: [{source: demo, split: train}]}\n")
    save_file({"a": np.zeros(3, np.float32)}, path / WEIGHTS, {"format": "pt"})
    plain = metadata.stripped(pictures.saved(pictures.NOISE, "PNG"), "PNG", 1)
    assert plain is not None
    (path / "loss.png").write_bytes(plain)
    return path


def found(folder: Path, *private: str) -> str:
    return "\n".join(map(str, vetting.check(folder, private)))


def test_a_clean_folder_passes(folder: Path) -> None:
    assert found(folder, "somewhere-else") == ""


@pytest.mark.slow
def test_real_tokenizers_pass(folder: Path, shared: Path) -> None:
    real = shared / "tokenizers" / "derived" / "tokenizer.llama3.2-vision.json"
    (folder / "tokenizer.json").write_bytes(real.read_bytes())
    assert found(folder, "/root/") == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (TOKEN, "a token of the Hugging Face hub"),
        ("sk-" + "ant-api03-Ab1" * 3, "an API key"),
        ("AKIA" + "ABCDEFGH12345678", "an AWS key"),
        ("aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" * 2, "an AWS key"),
        ("ghp_" + "a1B2" * 9, "a token of GitHub"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("https://ada:hunter2@example.org/x", "an address with a password"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "a token"),
        ("wandb_api_key: 0123456789abcdef0123456789abcdef01234567", "what looks like a password"),
        ("/home/ada/data/demo", "a path of this machine, /home/ada/data/demo"),
        ("see /Users/ada/x.png.", "/Users/ada"),
        ("C:\\Users\\ada\\x", "a path of this machine, C:"),
        ("cache=~/hub/models", "a path of this machine, ~/hub"),
        ("/models/project_42/runs", "/models/project_42"),
        ("data:image/png;base64,AAAA", "an image within the text"),
        (base64.b64encode(pictures.saved(pictures.NOISE, "JPEG")).decode(), "an image within the text"),
        ("my own words", "the token in use, or a folder of this machine"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "recipe.yaml", WEIGHTS])
def test_words_that_stay_at_home(folder: Path, name: str, text: str, what: str) -> None:
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps({"a": {"b": [text]}}))
    elif name == WEIGHTS:
        save_file({"a": np.zeros(3, np.float32)}, folder / name, {"note": text})
    else:
        (folder / name).write_text(f"a: 1\nnote: '{text}'\n")
    said = found(folder, "my own words")
    assert what in said
    assert said.startswith(name)
    assert TOKEN not in said
    assert "hunter2" not in said
    assert "0123456789abcdef" not in said
    (folder / name).write_bytes(b"")
    assert what not in found(folder)


def test_the_line_is_named(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(f"a: 1\nb: 2\nc: {TOKEN}\n")
    assert found(folder).startswith("recipe.yaml:3: a token of the Hugging Face hub; remove it, and revoke it")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["lesion.{}", "README.md", "images/one"])
def test_images_of_patients(folder: Path, kind: str, name: str) -> None:
    path = folder / name.format(kind.lower())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pictures.photograph(kind))
    assert "an image" in found(folder)


def test_other_pictures_and_tables(folder: Path) -> None:
    (folder / "scan").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (folder / "train.parquet").write_bytes(b"PAR1")
    (folder / "images.npz").write_bytes(b"")
    with zipfile.ZipFile(folder / "images.npz", "w") as file:
        file.writestr("a.npy", b"x")
    said = found(folder)
    assert "scan: an image (DICOM)" in said
    assert "train.parquet: not a file of a published model" in said
    assert "images.npz: a ZIP archive" in said


def test_the_plot_is_pixels_alone(folder: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Ada")
    for data in (
        pictures.saved(pictures.NOISE, "PNG", pnginfo=texts),
        pictures.saved(pictures.NOISE, "PNG", exif=pictures.exif(1, private=True)),
        (folder / "loss.png").read_bytes() + b"trailing",
    ):
        (folder / "loss.png").write_bytes(data)
        assert found(folder) == "loss.png: holds more than pixels (EXIF, text chunks); save it without metadata"
    (folder / "loss.png").write_bytes(pictures.saved(Image.new("RGB", (8, 8)), "JPEG"))
    assert "loss.png: an image (JPEG)" in found(folder)
    (folder / "loss.png").write_bytes(b"none")
    assert "loss.png: not a PNG image" in found(folder)


@pytest.mark.parametrize("name", ["weights.bin", WEIGHTS, "README.md", "adapter_config.json"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_under_any_name(folder: Path, name: str, protocol: int) -> None:
    (folder / name).write_bytes(pickle.dumps([{"a": Path("x")}], protocol))
    said = found(folder)
    assert f"{name}: " in said
    assert protocol == 0 or f"{name}: a pickle" in said
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps([1]))
    (folder / name).write_bytes(zipped.getvalue())
    assert f"{name}: a ZIP archive, such as torch.save makes" in found(folder)


def test_programs_and_strangers(folder: Path) -> None:
    (folder / "modeling.py").write_text("print(1)\n")
    (folder / "NOTICE").write_bytes(b"\x7fELF")
    (folder / "ledger.jsonl").write_text("{}\n")
    (folder / ".netrc").write_text("")
    (folder / "old").mkdir()
    (folder / "old" / "README.md").write_text("x")
    said = found(folder)
    for words in ("modeling.py: a program", "NOTICE: a program"):
        assert words in said
    for name in ("ledger.jsonl", ".netrc", "old/README.md"):
        assert f"{name}: not a file of a published model" in said


def test_files_that_are_not_what_their_name_says(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")
    (folder / "recipe.yaml").write_text("a: [")
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    whole = (folder / WEIGHTS).read_bytes()
    for data in (whole[:-1], whole + b"\0", whole[:4], b"", b"\xff" * 40):
        (folder / WEIGHTS).write_bytes(data)
        said = found(folder)
        assert f"{WEIGHTS}: not a whole safetensors file" in said
    assert "adapter_config.json: not JSON" in said
    assert "recipe.yaml: not YAML" in said
    assert "README.md: not text" in said


def test_links_that_leave(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("x")
    (folder / "NOTICE").symlink_to(tmp_path / "secret.md")
    (folder / "LICENSE").symlink_to(folder / "README.md")
    assert found(folder) == "NOTICE: a link that leaves the folder; put the file itself there, or remove it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ada/data/demo", "demo"),
        ("base=/models/Qwen and [/scratch/p/x.yaml]", "base=Qwen and [x.yaml]"),
        ("/no_think, </a/b> or /", "/no_think, </a/b> or /"),
        ("C:\\data\\demo", "demo"),
        ("~/runs/tiny", "tiny"),
        ("https://huggingface.co/data/x/y", "https://huggingface.co/data/x/y"),
        ("data/demo/train.parquet", "data/demo/train.parquet"),
        ("1/2 and a/b", "1/2 and a/b"),
    ],
)
def test_neutral(text: str, expected: str) -> None:
    assert vetting.neutral(text) == expected
