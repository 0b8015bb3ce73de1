"""`skinvl VERB …`: finds the verb in its wing, imports it only then, and makes one message of what a user can mend."""

from __future__ import annotations

import atexit
import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from skinvl.recipe import silence

# Every verb is the file of its name in a wing, and has `main(words)`.
WINGS = {
    "sources": {
        "prep": "turn a raw download into a prepared source",
        "synth": "have a model write conversations about a source's images: another source",
    },
    "data": {
        "leaks": "show which images two sets share, and how sure that is",
        "look": "write a page about prepared sources: images, groups, ledger, Table 1",
    },
    "plan": {
        "plan": "say what a recipe needs in memory and hours before anything is rented",
        "show": "paint what a recipe trains, conversation by conversation",
        "bases": "list the bases, compare two, or build tiny ones with random weights",
    },
    "train": {
        "sft": "train a recipe: prepared sources and a base become an adapter",
        "pretrain": "train two towers: prepared sources and a base of two become embeddings",
        "cache": "compute the vision features of a recipe's images ahead of sft",
    },
    "evaluate": {
        "eval": "evaluate, score and report a run, or a base alone, as its kind asks",
        "generate": "answer every question of the eval sets, with a run's adapter or a base alone",
        "classify": "weigh the classes of each image, by likelihood and by asking",
        "zeroshot": "classify images by prompts of the classes' names, with two towers",
        "retrieve": "rank texts of images and images of texts, or find images by words",
        "concepts": "take embeddings apart: fit a dictionary, name, score and suppress its units",
        "judge": "have a model behind a server judge the claims of a run's answers",
        "probe": "fit a linear probe on the features of the frozen vision tower",
    },
    "score": {
        "score": "give every number of an evaluation with its interval, and compare runs",
        "report": "write what an evaluation gave into one HTML file",
    },
    "release": {
        "merge": "merge a run's adapter into its base, and check that nothing changed",
        "publish": "write the model card, check what would be uploaded, and upload it",
    },
    "serve": {
        "ask": "ask a run about images, in the terminal",
        "demo": "open a page on which a run is asked about images",
        "serve": "serve a run by the OpenAI-compatible API, and check what is served",
    },
}
WING_OF = {verb: wing for wing, verbs in WINGS.items() for verb in verbs}
OURS = {"skinvl", "data_prep"}


def usage() -> str:
    """The text of `skinvl --help`: the verbs by wing."""
    lines = [
        f"{wing if number == 0 else '':<10}{verb:<10}{what}"
        for wing, verbs in WINGS.items()
        for number, (verb, what) in enumerate(verbs.items())
    ]
    return "\n".join(
        [
            "usage: skinvl VERB ...",
            "",
            *(f"  {line}" for line in lines),
            "",
            "  skinvl VERB --help says what a verb takes; skinvl --version names the version.",
            "  SKINVL_TRACEBACK=1 shows where in the code an error came from.",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: the verb's own, 2 for what the user can mend (one message on stderr), 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"skinvl {importlib.metadata.version('skinvl')}")
        return 0
    verb = words.pop(0)
    if verb not in WING_OF:
        near = difflib.get_close_matches(verb, WING_OF, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(WING_OF)}"
        print(f"skinvl {verb}: no such verb; {hint}", file=sys.stderr)
        return 2
    try:
        silence.messages()
        module = importlib.import_module(f"skinvl.{WING_OF[verb]}.{verb}")
        silence.bars()
        code: int = module.main(words)
        return code
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


if __name__ == "__main__":
    exit_code = main()
    if "LOCAL_RANK" in os.environ:
        # The threads of a process group, left to the interpreter's own end, now and then abort a rank that has done all
        # it had to do, and the whole job fails by it.
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    raise SystemExit(exit_code)
