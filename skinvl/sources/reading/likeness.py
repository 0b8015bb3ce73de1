"""Which texts say nearly the same as an earlier one: by embeddings, or without them by the n-grams of their letters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

# Cosines from which on two texts count as the same.
EMBEDDED = 0.93  # a choice: models differ, and it was measured with none
SPELT = 0.75  # measured on pairs of tasks judged by hand: see tests/sources/test_likeness.py
_DENIAL = re.compile(r"\b(?:no|not|never|without|except|neither|nor|against|cannot)\b|n['’]t\b")
BLOCK = 1_000  # texts that are compared at once; each needs 8 bytes for every kept one


def repeats(
    texts: Sequence[str], vectors: NDArray[np.float64] | None = None, least: float | None = None
) -> list[int | None]:
    """For each text the index of the earlier, kept one that it nearly repeats; None where it is kept itself.

    A text is compared with those that were kept alone, so that a chain of small changes does not take all of it; and
    with those alone that deny as it does, since "with fever" and "without fever" differ little and mean the opposite.

    Args:
        vectors: float[N, D], embeddings of the texts of any length; None compares how they are spelt.
        least: the cosine from which on a text repeats another; None is EMBEDDED or SPELT.

    Raises:
        ValueError: as many vectors as texts are needed.

    >>> repeats(["Describe a papule.", "Explain how biopsies are taken.", "Describe a papule!"])
    [None, None, 0]
    """
    if vectors is not None and len(vectors) != len(texts):
        raise ValueError(f"{len(vectors)} vectors of {len(texts)} texts; expected one for each")
    if not texts:
        return []
    threshold = least if least is not None else SPELT if vectors is None else EMBEDDED
    rows: Any = _spelt(texts) if vectors is None else _directions(vectors)

    # Texts that deny alike are compared among themselves.
    denials: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(texts):
        denials.setdefault(tuple(sorted(_DENIAL.findall(text.casefold()))), []).append(index)
    originals: list[int | None] = [None] * len(texts)
    for indices in denials.values():
        for index, other in zip(indices, _repeats(rows[np.array(indices)], threshold), strict=True):
            originals[index] = None if other is None else indices[other]
    return originals


def _repeats(rows: Any, threshold: float) -> list[int | None]:
    kept: list[int] = []
    originals: list[int | None] = []
    for start in range(0, rows.shape[0], BLOCK):
        # The likeness to what was kept of earlier blocks, and within this one.
        block = rows[start : start + BLOCK]
        nearest = _nearest(block, rows, kept)
        among = _dense(block @ block.T)

        # In order, since what repeats is not kept, and then nothing is compared with it.
        new: list[int] = []
        for index, (likeness, other) in enumerate(nearest):
            within = max(((among[index, candidate], candidate) for candidate in new), default=(-1.0, 0))
            if likeness >= threshold:
                originals.append(other)
            elif within[0] >= threshold:
                originals.append(start + within[1])
            else:
                originals.append(None)
                new.append(index)
        kept += [start + index for index in new]
    return originals


def _nearest(block: Any, rows: Any, kept: Sequence[int]) -> Iterator[tuple[float, int]]:
    """For each of the block its greatest cosine with a kept row, and that row."""
    best = np.full(block.shape[0], -1.0)
    whose = np.zeros(block.shape[0], np.int64)
    for start in range(0, len(kept), BLOCK):
        indices = np.array(kept[start : start + BLOCK])
        likeness = _dense(block @ rows[indices].T)
        top = likeness.argmax(axis=1)
        value = likeness[np.arange(len(top)), top]
        better = value > best
        best[better], whose[better] = value[better], indices[top[better]]
    return zip(best.tolist(), whose.tolist(), strict=True)


def _dense(product: Any) -> NDArray[np.float64]:
    return np.asarray(product.toarray() if hasattr(product, "toarray") else product, np.float64)


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """float[N, D] of length one; zero stays zero, which is like nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return directions


def _spelt(texts: Sequence[str]) -> csr_array:
    """float[N, V] of length one: n-grams of letters within words, weighted by how rare they are among the texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # it takes as long to load as all else here

    plain = ["".join(char if char.isalnum() else " " for char in text.casefold()) for text in texts]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
    return csr_array(grams.fit_transform([text if text.strip() else "-" * 3 for text in plain]))
