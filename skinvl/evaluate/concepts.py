"""`skinvl concepts`: what two towers know of an image, taken apart into a dictionary of concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skinvl.evaluate.concept import fit, name, score, suppress

Command = Callable[[Sequence[str]], int]
WORDS: dict[str, tuple[Command, str]] = {
    "fit": (fit.command, "fit a sparse dictionary to the embeddings of a run's training images"),
    "name": (name.command, "name its units by text, each beside chance, with their images on a page"),
    "score": (score.command, "tell how well prompts and units find the concepts of a source"),
    "suppress": (suppress.command, "take concepts out of the embeddings, and measure what that changes"),
}


class ConceptsError(ValueError):
    """A word that `skinvl concepts` has not."""


def main(words: Sequence[str]) -> int:
    """0, once what the first word names is done.

    Raises:
        ConceptsError: it names nothing.
    """
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {word:<10}{what}" for word, (_, what) in WORDS.items()]
        asked = "skinvl concepts WORD --help says what it takes."
        print("\n".join(["usage: skinvl concepts WORD RUN ...", "", *lines, "", asked]))
        return 0 if words else 2
    word, *rest = words
    if word not in WORDS:
        raise ConceptsError(f"{word}: expected one of {', '.join(WORDS)}, as in skinvl concepts fit RUN")
    command, _ = WORDS[word]
    return command(rest)
