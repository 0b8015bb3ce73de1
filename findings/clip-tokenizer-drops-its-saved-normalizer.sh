#!/usr/bin/env bash
# A normalizer that a CLIP or BERT tokenizer was saved with is not there when it is loaded again.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, Python 3.11.
#
# Who wants a CLIP tokenizer to clean texts as OpenAI's does, or a BERT text tower's to unify a spelling, puts a step in
# front of its normalizer: `tokenizer.backend_tokenizer.normalizer`. It works, and save_pretrained writes it into
# tokenizer.json. from_pretrained of CLIPTokenizer and BertTokenizer, and AutoTokenizer, which takes them, build the
# normalizer of the class anew instead of reading the file's: the same text gives other tokens in the model that was
# published than in the one that was trained, without a warning. PreTrainedTokenizerFast, which is
# called TokenizersBackend there, reads the file as it is.
#
# The script needs no GPU and nothing of skinvl: it installs transformers into a temporary folder, gives two tokenizers
# of a few tokens a step that turns ﬁ into fi, saves and loads them. It exits 1 if that is not as described here.
#
# Output seen:
#   transformers 5.23.0
#   CLIPTokenizer: [0, 5, 1] as it was saved, with the steps Replace, NFC, Replace, Lowercase
#     [0, 1, 1, 1, 1] loaded by CLIPTokenizer
#     [0, 1, 1, 1, 1] loaded by AutoTokenizer
#     [0, 5, 1] loaded by TokenizersBackend
#   BertTokenizer: [2, 5, 3] as it was saved, with the steps Replace, BertNormalizer
#     [2, 1, 3] loaded by BertTokenizer
#     [2, 1, 3] loaded by AutoTokenizer
#     [2, 5, 3] loaded by TokenizersBackend
#   as described: the step is in the file, and the classes of CLIP and BERT leave it out
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq transformers==5.23.0 tokenizers==0.23.3

cat > "$work/show.py" <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

from tokenizers import normalizers
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

TEXT = "ﬁ"
CLIP = ["<|startoftext|>", "<|endoftext|>", "f", "i", "i</w>", "fi</w>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fi"]
work = Path(sys.argv[1])
made = {
    CLIPTokenizer: CLIPTokenizer(vocab={token: number for number, token in enumerate(CLIP)}, merges=[("f", "i</w>")]),
    BertTokenizer: BertTokenizer(vocab={token: number for number, token in enumerate(BERT)}),
}
print(f"transformers {version('transformers')}")
right = True
for kind, tokenizer in made.items():
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace(TEXT, "fi"), backend.normalizer])
    folder = work / kind.__name__
    tokenizer.save_pretrained(folder)
    steps = [step["type"] for step in json.loads((folder / "tokenizer.json").read_text())["normalizer"]["normalizers"]]
    before = tokenizer(TEXT)["input_ids"]
    print(f"{kind.__name__}: {before} as it was saved, with the steps {', '.join(steps)}")
    for loader in (kind, AutoTokenizer, PreTrainedTokenizerFast):
        after = loader.from_pretrained(folder)(TEXT)["input_ids"]
        print(f"  {after} loaded by {loader.__name__}")
        right &= (after == before) == (loader is PreTrainedTokenizerFast)
if not right:
    print("the behaviour has changed")
    sys.exit(1)
print("as described: the step is in the file, and the classes of CLIP and BERT leave it out")
PYTHON
TRANSFORMERS_VERBOSITY=critical "$work/venv/bin/python" -W ignore "$work/show.py" "$work"
