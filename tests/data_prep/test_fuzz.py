"""Hostile raw files, some ten thousand: one clear message or a whole account, and never a file outside of OUT."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_shards import RAWS

import data_prep
from data_prep import PrepError
from skinvl.data.example import Example, read, validate
from skinvl.data.pixels import upright
from skinvl.sources.prepare.steps import prepare
from skinvl.sources.prepare.writer import Account

EACH = 400  # attempts for each of the converters
SECRET = b"what lies outside of RAW"
WORDS = (
    *(
        "../../secret.png",
        "/etc/passwd",
        "..",
        "a\0b.png",
        "C:\\x.png",
        "a/../../secret.png",
        "x" * 5_000,
        "",
        " ",
        "nan",
    ),
    *(
        "__import__('os').system('touch pwned')",
        "['" + "x" * 2_000,
        "[" * 3_000,
        "{}",
        "[]",
        "[[]]",
        "['a', 'b']",
        "{1: 2}",
    ),
    *(
        "</s>",
        "<|im_end|>",
        "<image>",
        "\ufeff",
        "\u202e",
        "=1+1",
        "-1",
        "1e999",
        "inf",
        "NaN",
        "None",
        "😀",
        "\x1b[31m",
        "\r",
    ),
    *(
        '"',
        '""',
        ",",
        ";",
        "\n",
        "'",
        "ISIC_0000001",
        "ISIC_9999999.jpg",
        "a.parquet#0",
        "a.parquet#-1",
        "#",
        "%00",
        "~",
    ),
)
VALUES = (None, True, 0, -1, 1e308, [], {}, [[]], {"value": {}}, "\ud800", ["a", 1], {"bytes": None, "path": "../x"})


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file of whatever size its header claims."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _photo(format: str, mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert(mode).save(file, format, **options)
    return file.getvalue()


def _located() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    exif.get_ifd(0x8825)[1] = "N"
    return _photo("JPEG", "RGB", exif=exif)


FILES = (
    *(
        b"",
        b"\0" * 64,
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe" + "image".encode("utf-16-le"),
        b"\n" * 9,
        b"PAR1PAR1",
    ),
    *(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a",
        b"BM",
    ),
    *(_png(1, 1), _png(60_000, 60_000), _png(9, 9, b"\0" * 40), _photo("PNG", "I;16"), _photo("JPEG", "CMYK")),
    *(
        _photo("PNG", "LA"),
        _photo("GIF", "P"),
        _photo("TIFF", "F"),
        _photo("WEBP", "RGBA"),
        _photo("PNG", "1"),
        _located(),
    ),
)


def _cell(draw: Random, data: bytes) -> bytes:
    """A table with another text in one of its fields, quoted or not."""
    lines = data.split(b"\n")
    line = draw.randrange(len(lines))
    fields = lines[line].split(b",")
    word = draw.choice(WORDS).encode()
    fields[draw.randrange(len(fields))] = b'"' + word.replace(b'"', b'""') + b'"' if draw.random() < 0.7 else word
    return b"\n".join([*lines[:line], b",".join(fields), *lines[line + 1 :]])


def _leaf(draw: Random, data: bytes) -> bytes:
    """JSON with another value somewhere."""
    try:
        tree = json.loads(data)
    except RecursionError:  # nested by an earlier change
        return data
    except ValueError:
        lines = data.split(b"\n")
        place = draw.randrange(len(lines))
        return b"\n".join([*lines[:place], _leaf(draw, lines[place]) if len(lines) > 1 else b"{", *lines[place + 1 :]])
    node, parent, key = tree, None, None
    while isinstance(node, dict | list) and node and (parent is None or draw.random() < 0.8):
        parent, key = node, draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        node = node[key]
    value = draw.choice((*WORDS, *VALUES))
    if parent is None:
        return json.dumps(value).encode()
    if draw.random() < 0.2:
        del parent[key]
    else:
        parent[key] = value
    return json.dumps(tree).encode()


def _bytes(draw: Random, data: bytes) -> bytes:
    """The file cut short, doubled in parts, or with some bytes changed."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        start, end = sorted(draw.randrange(len(changed) + 1) for _ in range(2))
        end = min(end, start + draw.choice((1, 4, 200)))
        changed[start:end] = draw.choice((b"", draw.randbytes(end - start), changed[start:end] * 2, b"\0", b"\xff"))
    return bytes(changed)


def _form(draw: Random, data: bytes) -> bytes:
    """The same text in another form: with a BOM, other delimiters, line ends or encoding."""
    separated = [data.replace(b",", other) for other in (b";", b"\t")]
    ended = [data.replace(b"\n", other) for other in (b"\r\n", b"\r")]
    encoded = data.decode("utf-8", "replace").encode("utf-16")
    return draw.choice((b"\xef\xbb\xbf" + data, *separated, *ended, encoded, data + data, data[::-1]))


def _whole(draw: Random, data: bytes) -> bytes:
    return draw.choice(FILES)


CHANGES: tuple[Callable[[Random, bytes], bytes], ...] = (_cell, _cell, _leaf, _leaf, _bytes, _form, _whole)


def _harm(draw: Random, raw: Path, files: list[Path]) -> None:
    """Makes one to three files of RAW hostile."""
    tables = [path for path in files if path.suffix in (".csv", ".json", ".jsonl", ".parquet")]
    for _ in range(draw.choice((1, 1, 2, 3))):
        path = draw.choice(tables if draw.random() < 0.6 and tables else files)
        kind = draw.random()
        if path.is_dir():
            continue
        if kind < 0.04:
            path.unlink(missing_ok=True)
            path.symlink_to(raw.parent / "secret.png")
        elif kind < 0.06:
            path.unlink(missing_ok=True)
            path.mkdir(exist_ok=True)
        elif path.is_file() and not path.is_symlink():
            path.write_bytes(draw.choice(CHANGES)(draw, path.read_bytes()))


Whole = tuple[str, list[Path], dict[str, Path]]  # a converter, its raw files, and the sources below by part


@pytest.fixture(scope="module", params=data_prep.names())
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A converter, and raw files of its own in which every image is there."""
    name: str = request.param
    converter = data_prep.load(name)
    below = {}
    for part in converter.CARD.over:
        folder = tmp_path_factory.mktemp(part)
        below[part] = folder / "out"
        prepare(part, _whole_raws(part, folder / "raw")[0], below[part])
    return name, _whole_raws(name, tmp_path_factory.mktemp(name) / "raw"), below


def _whole_raws(name: str, folder: Path) -> list[Path]:
    roots = RAWS[name](folder)
    converter = data_prep.load(name)
    for number, raw in enumerate(roots):
        root = raw if raw.is_dir() else raw.parent
        for part in converter.CARD.parts if raw.is_dir() else converter.CARD.parts[:1]:
            for row in converter.convert(raw, part):
                for image in row.images if isinstance(row, Example) else ():
                    if "#" not in image and not (root / image).exists():
                        (root / image).parent.mkdir(parents=True, exist_ok=True)
                        (root / image).write_bytes(FILES[-1] if number % 2 else _photo("PNG", "RGB"))
    return roots


@pytest.mark.slow
def test_whatever_raw_holds(whole: Whole) -> None:
    name, roots, below = whole
    ended = Counter[str]()

    attempts = EACH if name != "demo" else 80  # whose raw files are always its 480 drawings

    @settings(max_examples=attempts, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64))
    def check(seed: int) -> None:
        ended[_attempt(name, roots, below, Random(seed))] += 1

    check()
    # Enough of the attempts get somewhere, and enough are stopped: else this would test little.
    assert ended["refused"] or name in ("dermnet", "dicom"), ended  # which have no table
    assert ended["prepared"] + ended["kept some"] > attempts // 20, ended


def _attempt(name: str, roots: list[Path], below: dict[str, Path], draw: Random) -> str:
    """What became of it: refused, prepared, or prepared and kept some."""
    converter = data_prep.load(name)
    with TemporaryDirectory() as folder:
        given = draw.choice(roots)
        root = given if given.is_dir() else given.parent
        raw = shutil.copytree(root, Path(folder, "raw"))
        Path(folder, "secret.png").write_bytes(SECRET)
        files = [path for path in raw.rglob("*") if path.is_file()]
        _harm(draw, raw, sorted(files))
        before = sorted(Path(folder).rglob("*"))
        out = Path(folder, "out")
        part = draw.choice(converter.CARD.parts if given.is_dir() else converter.CARD.parts[:1])
        refusal = ""
        try:
            account = prepare(name, raw if given.is_dir() else raw / given.name, out, [part], over=below.get(part))
        except PrepError as error:
            refusal, account = str(error), None
        assert "a fault of the converter" not in refusal  # rows in = Examples + ledger, whatever RAW holds
        Path(folder, "raw.key").unlink(missing_ok=True)  # which only dicom makes, beside RAW
        after = [path for path in sorted(Path(folder).rglob("*")) if out not in (path, *path.parents)]
        assert [path for path in after if ".out.partial" not in path.parts] == before
        if account is None:
            assert not out.exists()
            return "refused"
        _check(out, account)
        return "kept some" if account.examples else "prepared"


def _check(out: Path, account: Account) -> None:
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(row["rule"] for row in ledger) == account.ledger
    rows = [row for split in account.examples for row in read(out, split)]
    assert len(rows) == account.examples.total()
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        validate(row)
        for image in row.images:
            path = out / image
            assert path.resolve().is_relative_to(out.resolve())
            upright(path)
    for path in out.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET not in data
            assert b"Jane Doe" not in data
