"""What in a folder must not be uploaded: secrets, paths of this machine, pictures of patients, code and pickles.

Only what is known to belong to a published model passes, and its content must be what its name says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import yaml

from skinvl.data import metadata

PLOTS = ("loss.png",)
_TEXT = ("README.md", "LICENSE", "LICENSE-BASE", "NOTICE", "scores.md", "merges.txt", "chat_template.jinja")
_JSON = (
    *("adapter_config.json", "config.json", "generation_config.json", "merge.json", "scores.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"),
    "model.safetensors.index.json",
)
_YAML = ("recipe.yaml",)
_TENSORS = ("adapter_model.safetensors", "model.safetensors", "model-?????-of-?????.safetensors")
ALLOWED = (*_TEXT, *_JSON, *_YAML, *_TENSORS, *PLOTS)

_IMAGES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "Photoshop",
}
_DICOM = 128  # bytes before its magic
_SECRETS = {
    "a token of the Hugging Face hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{16,}|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|(?i:aws_secret_access_key)\W{1,5}[\w/+]{30,}",
    "a token of GitHub or GitLab": r"\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "an address with a password": r"[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
    "a token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+|(?i:\bbearer\s+)[\w.~+/-]{20,}",
    "what looks like a password or a token": (
        r"(?i:api[_-]?key|secret|token|passw(?:or)?d|credential)s?[\"']?\s*[:=]\s*[\"']?"
        r"(?=[\w/+-]*\d)[\w/+-]{16,}"
    ),
}
_NAME = r"[^\s/\\\"'`,;:()\[\]{}<>|*]+"
# Of at least two names, so that "/think" is none; backslashes come twice in JSON.
_PATH = re.compile(
    rf"(?<![\w:/.<-])/{_NAME}(?:/{_NAME})+/?|(?<!\w)[A-Za-z]:(?:(?:\\{{1,2}}|/(?!/)){_NAME})+|(?<![\w/])~/{_NAME}(?:/{_NAME})*"
)
_URI = re.compile(r"data:(?:image|application)/[\w.+-]+;base64,", re.IGNORECASE)
# The first characters of JPEG, PNG, GIF and WebP files in base64.
_ENCODED = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGODdh|R0lGODlh|UklGR)[A-Za-z0-9+/\\n]{200,}")
_PICKLED = re.compile(rb"\x80[\x02-\x05]|c[\w.]+\n\w+\n|\(lp0|\(dp0")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be uploaded: where, what, and what to do."""

    file: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.do}"


def check(folder: Path, private: Sequence[str] = ()) -> list[Finding]:
    """What must not leave the machine, by file; nothing where all may.

    Args:
        private: words that no file may hold, such as the token in use and the home folder.
    """
    findings: list[Finding] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and folder.resolve() not in path.resolve().parents:
            findings.append(Finding(name, "a link that leaves the folder", "put the file itself there, or remove it"))
        elif path.is_file():
            findings += _file(path, name, private)
        elif not path.is_dir():
            findings.append(Finding(name, "neither a file nor a folder", "remove it"))
    return findings


def neutral(text: str) -> str:
    """The text with the last name alone of every path of this machine.

    >>> neutral("data.train=[{source: /home/ada/data/demo, split: train}]")
    'data.train=[{source: demo, split: train}]'
    """
    return _PATH.sub(lambda match: PurePosixPath(match[0].replace("\\", "/")).name, text)


def _file(path: Path, name: str, private: Sequence[str]) -> Iterator[Finding]:
    with path.open("rb") as file:
        head = file.read(4096)
    if kind := _image(head):
        yield from _picture(path, name, kind)
    elif kind := _program(head, name):
        yield Finding(name, kind, "it can run code where it is loaded; remove it, weights belong in safetensors")
    elif not any(fnmatch(name, pattern) for pattern in ALLOWED):
        yield Finding(name, "not a file of a published model", "remove it")
    elif any(fnmatch(name, pattern) for pattern in _TENSORS):
        yield from _tensors(path, name, private)
    elif name in PLOTS:
        yield Finding(name, "not a PNG image", "remove it")
    else:
        yield from _words(path, name, private)


def _image(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[_DICOM : _DICOM + 4] == b"DICM":
        return "DICOM"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"avif"):
        return "HEIF"
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), None)


def _program(head: bytes, name: str) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        return "a ZIP archive, such as torch.save makes of a pickle"
    if _PICKLED.match(head) or name.endswith((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")):
        return "a pickle"
    if name.endswith((".py", ".sh", ".so", ".ipynb")) or head.startswith((b"#!", b"\x7fELF", b"MZ")):
        return "a program"
    return None


def _picture(path: Path, name: str, kind: str) -> Iterator[Finding]:
    if name not in PLOTS or kind != "PNG":
        yield Finding(name, f"an image ({kind}), which may show a patient and say who took it", "remove it")
    elif metadata.stripped(data := path.read_bytes(), "PNG", 1) != data:
        yield Finding(name, "holds more than pixels (EXIF, text chunks)", "save it without metadata")


def _tensors(path: Path, name: str, private: Sequence[str]) -> Iterator[Finding]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= path.stat().st_size else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__"]
        whole = 8 + size + max(ends, default=0) == path.stat().st_size
    except (ValueError, AttributeError, KeyError, TypeError, LookupError):
        whole = False
    if not whole:
        yield Finding(name, "not a whole safetensors file", "make it again")
        return
    yield from _forbidden(header.decode("utf-8", "replace"), f"{name} (its header)", private)


def _words(path: Path, name: str, private: Sequence[str]) -> Iterator[Finding]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield Finding(name, "not text, as its name says", "remove it")
        return
    reader: Callable[[str], object] | None = json.loads if name in _JSON else yaml.safe_load if name in _YAML else None
    try:
        if reader is not None:
            reader(text)
    except (ValueError, yaml.YAMLError):
        yield Finding(name, f"not {path.suffix[1:].upper()}, as its name says", "make it again")
    yield from _forbidden(text, name, private)


def _forbidden(text: str, name: str, private: Sequence[str]) -> Iterator[Finding]:
    for what, pattern in _SECRETS.items():
        for match in re.finditer(pattern, text):
            # Never the secret itself: the message goes to logs.
            yield Finding(f"{name}:{_line(text, match.start())}", what, "remove it, and revoke it where it was issued")
    known = [word for word in private if word and word in text]
    for word in known:
        where = f"{name}:{_line(text, text.index(word))}"
        yield Finding(where, "the token in use, or a folder of this machine", "remove it")
    for path in dict.fromkeys(match[0] for match in _PATH.finditer(text)):
        if not any(word in path for word in known):
            yield Finding(f"{name}:{_line(text, text.index(path))}", f"a path of this machine, {path:.80}", "remove it")
    for match in (*_URI.finditer(text), *_ENCODED.finditer(text)):
        yield Finding(f"{name}:{_line(text, match.start())}", "an image within the text", "remove it")


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
