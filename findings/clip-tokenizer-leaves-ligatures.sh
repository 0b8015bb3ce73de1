#!/usr/bin/env bash
# The CLIP tokenizer of transformers makes other tokens than CLIP was trained on of quotes, ligatures and HTML entities.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, ftfy 6.3.1, open_clip_torch 3.3.0 (its vocabulary), Python 3.11.
#
# OpenAI's tokenizer, and open_clip's, clean a text before they cut it: ftfy.fix_text, html.unescape, lower case. Of
# “target” they make "target", of dermatoﬁbroma, as a PDF has it, dermatofibroma, of &lt; a <. CLIPTokenizer of
# transformers has the same vocabulary and merges, and no more of the cleaning than lower case, white space and NFC:
# it keeps such characters, as tokens that CLIP seldom or never saw in training, and a word with a ligature falls into
# pieces. Nothing warns of it; that ftfy is installed makes no difference. Texts without such characters are the same
# tokens in both. Of 12,260 texts of published dermatology sets 5 were not, all of MM-Skin, which is made of textbooks.
# A checkpoint of open_clip whose text tower is a BERT has its texts cleaned in the same way.
#
# The script needs no GPU and nothing of skinvl: it installs transformers and ftfy into a temporary folder, takes CLIP's
# vocabulary from the wheel of open_clip_torch, and prints the tokens of a few texts, as they are and cleaned first. It
# exits 1 if that is not as described here.
#
# Output seen:
#   transformers 5.23.0, ftfy 6.3.1 installed, 49408 tokens
#   dermatoﬁbroma
#     as it is      der mato ï ¬ ģ bro ma</w>
#     cleaned first der mat ofi bro ma</w>
#   a “target” lesion
#     as it is      a</w> âĢ ľ</w> target</w> âĢ Ŀ</w> le sion</w>
#     cleaned first a</w> "</w> target</w> "</w> le sion</w>
#   size &lt; 6 mm
#     as it is      size</w> &</w> lt</w> ;</w> 6</w> mm</w>
#     cleaned first size</w> <</w> 6</w> mm</w>
#   a 2.5 cm plaque
#     as it is      a</w> 2</w> .</w> 5</w> cm</w> plaque</w>
#     cleaned first a</w> 2</w> .</w> 5</w> cm</w> plaque</w>
#   as described: transformers' tokens of such texts are not those that CLIP was trained on
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq transformers==5.23.0 tokenizers==0.23.3 ftfy==6.3.1
"$work/venv/bin/pip" install -qq --no-deps open_clip_torch==3.3.0

cat > "$work/show.py" <<'PYTHON'
import gzip
import html
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import ftfy
from transformers import CLIPTokenizer

# The vocabulary by its published order: bytes, bytes that end a word, merges, the two ends.
file = distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
lines = gzip.decompress(Path(file).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
merges = [tuple(line.split()) for line in lines]
printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
others = [byte for byte in range(256) if byte not in printable]
letters = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)

print(f"transformers {version('transformers')}, ftfy {version('ftfy')} installed, {len(tokenizer)} tokens")


def cleaned(text: str) -> str:
    """As OpenAI's tokenizer cleans it."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def pieces(text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"][1:-1])


differs = {"dermatoﬁbroma": True, "a “target” lesion": True, "size &lt; 6 mm": True, "a 2.5 cm plaque": False}
right = True
for text, expected in differs.items():
    as_it_is, trained = pieces(text), pieces(cleaned(text))
    print(f"{text}\n  as it is      {' '.join(as_it_is)}\n  cleaned first {' '.join(trained)}")
    right &= (as_it_is != trained) == expected
if not right:
    print("the behaviour has changed")
    sys.exit(1)
print("as described: transformers' tokens of such texts are not those that CLIP was trained on")
PYTHON
TRANSFORMERS_VERBOSITY=critical "$work/venv/bin/python" -W ignore "$work/show.py"
