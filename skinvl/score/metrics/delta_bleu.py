"""Discriminative BLEU (deltaBLEU), orders 1 to 4, by the weights of the references: from -1, wrong, to 1, right.

Galley et al. 2015, arXiv:1506.06863. An n-gram of an answer counts what the reference that holds it and is best for it
makes of it: max over references of weight × min(times in the answer, times in the reference). What it is divided by are
the answer's n-grams, each by the greatest weight of the row's references. A match with a wrong reference alone so takes
away. The length that the brevity penalty asks for is that of the nearest of all references, as in the authors' script;
tokens and smoothing are those of bleu, and an order whose sum is not above 0 is one without a match. Where all weights
are 1, and where there is one reference, it is bleu. A dataset's weights are `Reference.weight`; DermaVQA's are the
completeness of the response.
"""

from __future__ import annotations

from sacrebleu.metrics.helpers import extract_all_word_ngrams

from skinvl.score.metrics.bleu import ORDER, plain, scorer, value
from skinvl.score.predictions import Answer

__all__ = ["NAMES", "statistics", "value"]

NAMES = tuple(f"delta_bleu-{order}" for order in range(1, ORDER + 1))


def statistics(answer: str, row: Answer) -> tuple[float, ...]:
    """Tokens of the answer and of the nearest reference, then weighted matches and weighted n-grams for n = 1 to 4."""
    weighted = [(reference.text, reference.weight) for reference in row.references] or [(row.reference, 1.0)]
    score = scorer().sentence_score(plain(answer), [plain(text) for text, _ in weighted])
    ngrams = [(_ngrams(text), weight) for text, weight in weighted]

    matched = [0.0] * ORDER
    for ngram, times in _ngrams(answer).items():
        held = [weight * min(times, counts[ngram]) for counts, weight in ngrams if ngram in counts]
        matched[len(ngram) - 1] += max(held, default=0.0)
    most = max(weight for _, weight in weighted)
    return score.sys_len, score.ref_len, *matched, *(most * total for total in score.totals)


def _ngrams(text: str) -> dict[tuple[str, ...], int]:
    """How often each n-gram up to ORDER is in a text."""
    counts: dict[tuple[str, ...], int] = extract_all_word_ngrams(scorer().tokenizer(plain(text).rstrip()), 1, ORDER)[0]
    return counts
