"""Corpus BLEU with n-grams up to 1, 2, 3 and 4, from 0 to 1: sacrebleu's numbers divided by 100.

Papineni et al. 2002, doi:10.3115/1073083.1073135, as Post 2018, arXiv:1804.08771, settled it: tokenizer 13a, case kept,
equal weights 1/n, exponential smoothing of orders without a match. Texts are compared without accents, and with blanks
around each letter of scripts that write none, as sacrebleu's own tokenizer for Chinese has them. Several references are
taken at once, as sacrebleu takes them: an n-gram counts as often as the reference that has it most, and the length is
that of the reference that is nearest to the answer's, alike whatever they weigh.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from skinvl.data.normal import spaced, unmarked
from skinvl.score.metrics import right_answers
from skinvl.score.predictions import Answer
from skinvl.score.stats import Float

ORDER = 4
NAMES = tuple(f"bleu-{order}" for order in range(1, ORDER + 1))
NOTHING = 1e-9  # a sum of weights that is rounding


@lru_cache(maxsize=1)
def scorer() -> BLEU:
    """sacrebleu's BLEU, as the module says."""
    # The effective order changes no statistic, and force no text: they silence warnings about single sentences.
    return BLEU(max_ngram_order=ORDER, effective_order=True, force=True)


def plain(text: str) -> str:
    """The text as BLEU compares it, before it is cut into tokens."""
    return spaced(unmarked(text))


def statistics(answer: str, row: Answer) -> tuple[float, ...]:
    """Tokens of the answer and of the nearest reference, then matched and all n-grams of the answer for n = 1 to 4."""
    score = scorer().sentence_score(plain(answer), [plain(text) for text in right_answers(row)])
    return score.sys_len, score.ref_len, *score.counts, *score.totals


def value(sums: Float) -> Float:
    """float[..., 4]: BLEU-1 to 4 of corpora with these sums, float[..., 10]; NaN where there is no reference.

    NaN also from the order on of which the answers have no n-gram, though they have words: a precision of nothing. An
    answer without words is not as good as that; where all are, everything is 0.
    """
    answer_length, reference_length = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
    # An order without a match counts half a match, the next such a quarter, and so on.
    halvings = np.cumsum((matched < NOTHING) & (total > 0), axis=-1)
    hits = np.where(matched < NOTHING, 0.5**halvings, matched)
    usable = (total > 0) & (matched[..., :1] >= NOTHING)

    # The geometric mean of the orders up to each, times the penalty on answers shorter than their references.
    logs = np.log(np.divide(hits, total, out=np.ones_like(hits), where=usable))
    orders = np.arange(1, ORDER + 1)
    means = np.exp(np.cumsum(logs, axis=-1) / orders)
    shortfall = np.divide(reference_length, answer_length, out=np.ones_like(reference_length), where=answer_length > 0)
    brevity = np.exp(np.minimum(0.0, 1 - shortfall))
    scores = np.where(np.logical_and.accumulate(usable, axis=-1), brevity[..., None] * means, 0.0)
    is_defined = (reference_length[..., None] > 0) & ((total > 0) | (answer_length[..., None] == 0))
    return np.where(is_defined, scores, np.nan)
