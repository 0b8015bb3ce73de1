"""Which images are one, against brute force, and the clusters that links make."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from skinvl.data import fingerprints as module
from skinvl.data.fingerprints import THRESHOLD, Pairs, clusters, links, near, shared
from skinvl.data.source import IMAGES_SCHEMA


def brute(found: NDArray[np.uint64], threshold: int) -> Pairs:
    one, other = np.nonzero(np.triu(np.bitwise_count(found[:, None] ^ found[None]) <= threshold, 1))
    return np.stack([one, other], axis=1)


@pytest.mark.parametrize("threshold", [0, 3, 4, 9])
def test_near_is_exact_at_the_threshold_and_over_batches(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 64)
    generator = np.random.default_rng(threshold)
    found = generator.integers(0, 2**64, 500, dtype=np.uint64)
    planted = [found[:40] ^ np.uint64((1 << bits) - 1) for bits in range(1, 12)]  # 1 to 11 bits away
    found = generator.permutation(np.concatenate([found, *planted]))
    pairs = near(found, threshold)
    assert {tuple(pair) for pair in pairs.tolist()} == {tuple(pair) for pair in brute(found, threshold).tolist()}
    assert len(pairs) == len(brute(found, threshold))


def test_equal_hashes_are_a_chain_with_the_same_clusters() -> None:
    generator = np.random.default_rng(0)
    found = generator.integers(0, 2**64, 50, dtype=np.uint64)
    found = generator.permutation(np.concatenate([found, found[:20], found[:9], found[:30] ^ np.uint64(0b1011)]))
    assert np.array_equal(clusters(len(found), near(found)), clusters(len(found), brute(found, THRESHOLD)))
    many = np.full(100_000, found[0])
    pairs = near(many)
    assert len(pairs) == len(many) - 1
    assert not clusters(len(many), pairs).any()


def test_nothing_is_near_nothing() -> None:
    assert near(np.array([], np.uint64)).shape == (0, 2)
    assert near(np.array([7], np.uint64)).shape == (0, 2)
    assert clusters(0, np.empty((0, 2), np.int64)).shape == (0,)


def test_a_cluster_is_named_by_its_lowest_member() -> None:
    assert clusters(6, np.array([[1, 0], [5, 4], [4, 2]])).tolist() == [0, 0, 2, 3, 2, 2]


def images(*rows: tuple[str, int | None, str | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"path": f"images/{n}.png", "sha256": sha, "phash": hash_, "archive": name, "width": 9, "height": 9}
            for n, (sha, hash_, name) in enumerate(rows)
        ],
        schema=IMAGES_SCHEMA,
    )


def test_each_kind_of_evidence_links_its_own_rows_and_nulls_none() -> None:
    one, other, far = 0xF0F0F0F0F0F0F0F0, 0xF0F0F0F0F0F0F0FF, 0x123456789ABCDEF0
    table = images(
        ("a", None, None), ("b", one, "ISIC_1"), ("c", far, None), ("a", None, None), ("d", other, None),
        ("e", far ^ 0xFFFFFF, "ISIC_1"),
    )  # fmt: skip
    assert shared(table, "sha256").tolist() == [[0, 3]]
    assert shared(table, "archive").tolist() == [[1, 5]]
    assert shared(table, "phash").tolist() == [[1, 4]]
    assert shared(table, "phash", 3).tolist() == []
    assert sorted(links(table).tolist()) == [[0, 3], [1, 4], [1, 5]]
    assert sorted(links(table, alike=False).tolist()) == [[0, 3], [1, 5]]
    assert shared(pa.concat_tables([table, table]), "archive").tolist() == [[1, 5], [5, 7], [7, 11]]
    assert links(images()).shape == (0, 2)
