"""`skinvl concepts`: what two towers know of an image, taken apart into a dictionary of concepts."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

WORDS = {
    "fit": "fit a sparse dictionary to the embeddings of a run's training images",
    "name": "name its units by text, each beside chance, with their images on a page",
    "score": "tell how well prompts and units find the concepts of a source",
    "suppress": "take concepts out of the embeddings, and measure what that changes",
}


class ConceptsError(ValueError):
    """A word that `skinvl concepts` has not."""


def main(words: Sequence[str]) -> int:
    """0, once what the first word names is done.

    Raises:
        ConceptsError: it names nothing.
    """
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {word:<10}{what}" for word, what in WORDS.items()]
        asked = "skinvl concepts WORD --help says what it takes."
        print("\n".join(["usage: skinvl concepts WORD RUN ...", "", *lines, "", asked]))
        return 0 if words else 2
    word, *rest = words
    if word not in WORDS:
        raise ConceptsError(f"{word}: expected one of {', '.join(WORDS)}, as in skinvl concepts fit RUN")
    module = importlib.import_module(f"skinvl.evaluate.concept.{word}")
    code: int = module.command(rest)
    return code
