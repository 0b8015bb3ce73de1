#!/usr/bin/env bash
# Between two revisions of gemma-4-E2B-it every prompt with an image became another: blank lines around it are gone.
#
# Versions: the templates that trl 1.16.0 ships, as published at google/gemma-4-E2B-it 4742fe8 (the release,
# gemma4_v2.jinja) and 8995379 (gemma4_v5.jinja); jinja2 3.1.6.
#
# The template that the model was released with writes an image between two blank lines, as Gemma 3's processor does; the
# later ones write it where it stands, and what follows begins in the same line. The weights are the same. What was
# trained, evaluated or served by the one is asked otherwise by the other, by four line ends an image, and neither
# the name of the model nor its weights tell: pin the revision, and keep the template beside the adapter.
#
# The script needs nothing of skinvl: it installs both packages into a temporary folder (trl without what it needs),
# and exits 1 if that is not as described here.
#
# Output seen:
#   release:  '<bos><|turn>user\n\n\n<|image|>\n\nWhat is it?<turn|>\n<|turn>model\n'
#   later:    '<bos><|turn>user\n<|image|>What is it?<turn|>\n<|turn>model\n'
#   as described: the blank lines around an image are gone
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq jinja2==3.1.6
"$work/venv/bin/pip" install -qq --no-deps trl==1.16.0

cat > "$work/show.py" <<'PYTHON'
import sys
import sysconfig
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(sysconfig.get_path("purelib")) / "trl" / "chat_templates"
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


def rendered(file: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers reads templates
    template = environment.from_string((FOLDER / file).read_text(encoding="utf-8"))
    return template.render(messages=ASKED, bos_token="<bos>", add_generation_prompt=True)


release, later = rendered("gemma4_v2.jinja"), rendered("gemma4_v5.jinja")
print(f"release:  {release!r}")
print(f"later:    {later!r}")
if not ("\n\n<|image|>\n\nWhat" in release and "\n<|image|>What" in later):
    print("the behaviour has changed")
    sys.exit(1)
print("as described: the blank lines around an image are gone")
PYTHON
"$work/venv/bin/python" "$work/show.py"
