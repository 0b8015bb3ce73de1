"""The exact search among hashes against brute force, by bands and by comparing each with each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from skinvl.data import hamming
from skinvl.data.fingerprints import THRESHOLD, clusters
from skinvl.data.hamming import WIDEST, Pairs, near, within


def brute_force(hashes: NDArray[np.uint64], threshold: int) -> Pairs:
    lower, higher = np.nonzero(np.triu(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= threshold, 1))
    return np.stack([lower, higher], axis=1)


@pytest.mark.parametrize("threshold", [0, 3, 4, 5, 8, 9])
def test_near_is_exact_at_the_threshold_and_over_batches(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "BATCH", 64)
    monkeypatch.setattr(hamming, "CANDIDATES", 100)
    generator = np.random.default_rng(threshold)
    codes = generator.integers(0, 2**64, 500, dtype=np.uint64)
    planted = [codes[:40] ^ np.uint64((1 << bits) - 1) for bits in range(1, 12)]  # 1 to 11 bits away
    codes = generator.permutation(np.concatenate([codes, *planted]))
    pairs = near(codes, threshold)
    assert {tuple(pair) for pair in pairs.tolist()} == {tuple(pair) for pair in brute_force(codes, threshold).tolist()}
    assert len(pairs) == len(brute_force(codes, threshold))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, WIDEST), st.integers(0, 60), st.integers(0, 60), st.integers(0, 63))
def test_within_is_brute_force(seed: int, threshold: int, queries: int, others: int, alike: int) -> None:
    """Among hashes of which some bits are the same in all, so that bands are crowded, and copies near the threshold."""
    generator = np.random.default_rng(seed)
    free = np.uint64(2**64 - 1) >> np.uint64(alike)
    query = generator.integers(0, 2**64, queries, dtype=np.uint64) & free
    base = generator.integers(0, 2**64, others, dtype=np.uint64) & free
    if queries:
        flips = [
            sum(1 << bit for bit in generator.permutation(64)[: generator.integers(threshold + 2)].tolist())
            for _ in range(20)
        ]
        base = np.concatenate([base, generator.choice(query, 20) ^ np.array(flips, np.uint64)])
    expected = np.argwhere(np.bitwise_count(query[:, None] ^ base[None]) <= threshold)
    assert within(query, base, threshold).tolist() == expected.tolist()


def test_bands_have_a_widest_threshold() -> None:
    with pytest.raises(ValueError, match="threshold 5: expected at most 4 bits"):
        within(np.zeros(1, np.uint64), np.zeros(1, np.uint64), WIDEST + 1)


def test_equal_hashes_are_a_chain_with_the_same_clusters() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 2**64, 50, dtype=np.uint64)
    codes = generator.permutation(np.concatenate([codes, codes[:20], codes[:9], codes[:30] ^ np.uint64(0b1011)]))
    linked = near(codes, THRESHOLD)
    assert np.array_equal(clusters(len(codes), linked), clusters(len(codes), brute_force(codes, THRESHOLD)))
    many = np.full(100_000, codes[0])
    pairs = near(many, THRESHOLD)
    assert len(pairs) == len(many) - 1
    assert not clusters(len(many), pairs).any()


def test_nothing_is_near_nothing() -> None:
    for threshold in (THRESHOLD, WIDEST + 1):
        assert near(np.array([], np.uint64), threshold).shape == (0, 2)
        assert near(np.array([7], np.uint64), threshold).shape == (0, 2)
