"""`skinvl VERB …`: reads the words, loads the recipe, and calls the verb's module, which is imported only then."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skinvl.recipe import Recipe

VERBS = {
    "prep": "turn a raw download into a prepared source",
    "synth": "have a model write conversations about a source's images: another source",
    "leaks": "show which images two sets share, and how sure that is",
    "sft": "train a recipe: prepared sources and a base become an adapter",
    "cache": "compute the vision features of a recipe's images ahead of sft",
    "eval": "answer, classify, score and report: a run, or a base alone",
    "generate": "answer every question of the eval sets, with a run's adapter or a base alone",
    "classify": "weigh the classes of each image, by likelihood and by asking",
    "probe": "fit a linear probe on the features of the frozen vision tower",
    "score": "give every number of an evaluation with its interval, and compare runs",
    "report": "write what was found into one HTML file",
    "merge": "fold a run's adapter into its base, and check that nothing changed",
    "publish": "write the model card, check what would be uploaded, and upload it",
    "ask": "ask a run about images, in the terminal",
    "demo": "open a page on which a run is asked about images",
    "serve": "serve a run by the OpenAI-compatible API, and check what is served",
    "plan": "say what a recipe needs in memory and hours before anything is rented",
    "show": "paint what a recipe trains, conversation by conversation",
    "bases": "list the bases, compare two, or build tiny ones with random weights",
}
# The verbs that read their words themselves; the others take a recipe and overrides.
WORDS = ("prep", "synth", "leaks", "bases", "score", "report", "merge", "publish", "ask", "demo", "serve", "plan")
OURS = {"skinvl", "data_prep"}
HELP = f"""usage: skinvl VERB ...

{chr(10).join(f"  {verb:<9}{text}" for verb, text in VERBS.items())}

  skinvl VERB --help says what a verb takes; skinvl --version names the version.
  SKINVL_TRACEBACK=1 shows where in the code an error came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: the verb's own, 2 for what the user can mend (one message on stderr), 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"skinvl {importlib.metadata.version('skinvl')}")
        return 0
    verb = words.pop(0)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
        print(f"skinvl {verb}: no such verb; {hint}", file=sys.stderr)
        return 2
    try:
        return _run(verb, words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe (such as head) has left; what Python would still flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("SKINVL_TRACEBACK"):
            traceback.print_exc()
        else:
            print(f"skinvl {verb}: {_message(error)}", file=sys.stderr)
        return 2


def _run(verb: str, words: list[str]) -> int:
    if verb in WORDS:
        code: int = importlib.import_module(f"skinvl.{verb}").main(words)
        return code
    parser = argparse.ArgumentParser(prog=f"skinvl {verb}", description=VERBS[verb])
    asked = verb in ("eval", "generate", "classify", "probe")
    parser.add_argument(
        "recipe", help=f"{'the folder of a run, ' if asked else ''}a name in recipes/, or a path to a YAML file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as base=qwen3-vl-8b train.max_steps=10")
    if verb == "sft":
        parser.add_argument("--dry-run", action="store_true", help="show what would train, without any weights")
        parser.add_argument(
            "--configs", type=Path, metavar="DIR", help="with --dry-run: model configs from this folder"
        )
    elif verb == "eval":
        parser.add_argument("--against", metavar="RUN", help="another run to test the numbers against")
    elif verb == "show":
        parser.add_argument("-n", type=int, default=4, metavar="COUNT", help="conversations of each source (default 4)")
    given = parser.parse_intermixed_args(words)
    if verb == "sft" and given.configs is not None and not given.dry_run:
        parser.error("--configs names configs without weights; add --dry-run, or give base=FOLDER")

    from skinvl import recipe, run

    if verb == "eval":
        return _evaluate(*run.evaluated(given.recipe, given.overrides), given.against)
    module = importlib.import_module(f"skinvl.{verb}")
    if asked:
        return int(module.main(*run.evaluated(given.recipe, given.overrides)))
    loaded = recipe.load(given.recipe, given.overrides)
    if verb == "sft":
        code = module.main(loaded, dry_run=given.dry_run, configs=given.configs)
    elif verb == "show":
        code = module.main(loaded, count=given.n)
    else:
        code = module.main(loaded)
    return code


def _evaluate(recipe: Recipe, out: Path, against: str | None) -> int:
    steps = [("generate", recipe.data.eval), ("classify", recipe.evaluate.classify)]
    if not any(given for _, given in steps):
        raise ValueError(
            "data.eval and evaluate.classify: both are empty, so that there is nothing to evaluate; name a source, "
            'such as "data.eval=[{source: NAME, split: test}]"'
        )
    for verb, given in steps:
        if given:
            importlib.import_module(f"skinvl.{verb}").main(recipe, out)
    if os.environ.get("RANK", "0") == "0":
        words = [str(out), "--metrics", ",".join(recipe.evaluate.metrics)]
        importlib.import_module("skinvl.score").main([*words, *(["--against", against] if against else [])])
        importlib.import_module("skinvl.report").main([str(out)])
    return 0


def _message(error: ValueError | OSError) -> str:
    """What the error says; where it came from too, if it was another library that said it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, OSError):
        return text
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__", ""))
    if module.partition(".")[0] in OURS:
        return text
    return f"{' '.join(text.split())} (from {module}; SKINVL_TRACEBACK=1 shows the way there)"
