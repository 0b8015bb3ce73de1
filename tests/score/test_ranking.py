"""Ranks of sets of right ones, with ties, beside a naive count in float64; recall and medians beside chance."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from skinvl.score import ranking
from skinvl.score.ranking import Embeddings, RankError
from skinvl.score.stats import Bootstrap, Float


def units(generator: np.random.Generator, size: int, width: int = 16) -> Embeddings:
    vectors = generator.standard_normal((size, width))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def naive(queries: Embeddings, pool: Embeddings, right: list[list[int]]) -> Float:
    """Query by query in float64: one for the best right one, one for each nearer wrong one, half for each as near."""
    ranked = []
    for query, own in zip(queries.astype(np.float64), right, strict=True):
        similar = [float(query @ vector) for vector in pool.astype(np.float64)]
        best = max(similar[number] for number in own)
        wrong = [value for number, value in enumerate(similar) if number not in own]
        ranked.append(1 + sum(value > best for value in wrong) + sum(value == best for value in wrong) / 2)
    return np.array(ranked)


def drawn(seed: int, queries: int, size: int) -> tuple[Embeddings, Embeddings, list[list[int]]]:
    generator = np.random.default_rng(seed)
    right = [generator.choice(size, generator.integers(1, 5), replace=False).tolist() for _ in range(queries)]
    return units(generator, queries), units(generator, size), right


@pytest.mark.parametrize("cells", [1 << 23, 700])
def test_ranks_are_those_of_a_naive_count_in_any_blocks(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, pool, right = drawn(1, 97, 230)
    monkeypatch.setattr(ranking, "CELLS", cells)
    assert np.array_equal(ranking.ranks(queries, pool, ranking.relevant(right, 230)), naive(queries, pool, right))


def test_a_tie_counts_half_whatever_the_order_of_the_pool() -> None:
    queries, pool, right = drawn(2, 40, 120)
    pool = pool[np.arange(120) % 30]  # each of 30 embeddings four times
    ranked = ranking.ranks(queries, pool, ranking.relevant(right, 120))
    assert np.array_equal(ranked, naive(queries, pool, right))
    assert (ranked % 1 == 0.5).any()

    order = np.random.default_rng(3).permutation(120)
    position = np.argsort(order)
    turned = [[int(position[number]) for number in own] for own in right]
    assert np.array_equal(ranking.ranks(queries, pool[order], ranking.relevant(turned, 120)), ranked)


def test_towers_that_give_all_the_same_have_the_middle_rank() -> None:
    same = np.full((50, 4), 0.5, np.float32)
    ranked = ranking.ranks(same, same, ranking.relevant([[number] for number in range(50)], 50))
    assert set(ranked.tolist()) == {1 + 49 / 2}


def test_all_that_is_right_for_a_query_stands_in_the_way_of_none_of_it() -> None:
    query = np.array([[1.0, 0.0]], np.float32)
    pool = np.array([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6]], np.float32)
    assert ranking.ranks(query, pool, ranking.relevant([[0]], 3)).tolist() == [3]
    assert ranking.ranks(query, pool, ranking.relevant([[0, 2]], 3)).tolist() == [2]
    assert ranking.ranks(query, pool, ranking.relevant([[0, 2, 1, 1]], 3)).tolist() == [1]


def test_what_cannot_be_ranked_is_refused() -> None:
    queries, pool, right = drawn(4, 3, 9)
    with pytest.raises(RankError, match="1 of 3 queries have nothing right"):
        ranking.ranks(queries, pool, ranking.relevant([[], *right[1:]], 9))
    pool[2, 1] = np.nan
    with pytest.raises(RankError, match="1 of 9 embeddings of the pool are not finite"):
        ranking.ranks(queries, pool, ranking.relevant(right, 9))
    assert ranking.ranks(queries[:0], pool[:0], ranking.relevant([], 0)).shape == (0,)


def test_chance_counts_every_order_of_the_pool() -> None:
    for right in (1, 2, 5, 8):
        orders = [set(places) for places in combinations(range(9), right)]  # where the right ones may stand
        for name, value in ranking.chance(ranking.relevant([range(right)], 9)).items():
            if name != ranking.MEDIAN:
                hits = sum(min(places) < int(name[2:]) for places in orders) / len(orders)
                assert value == pytest.approx(hits, abs=1e-12)
    mixed = ranking.chance(ranking.relevant([[7], range(4)], 9806))["R@10"]
    assert mixed == pytest.approx(1 - (comb(9805, 10) + comb(9802, 10)) / comb(9806, 10) / 2, rel=1e-6)


def test_random_embeddings_have_the_recall_and_the_median_of_chance() -> None:
    queries, pool, right = drawn(5, 1500, 400)
    positives = ranking.relevant(right, 400)
    ranked, every = ranking.ranks(queries, pool, positives), np.ones(1500, np.bool_)
    numbers = ranking.estimates(ranked, 400, Bootstrap(range(1500), 200), every)
    chance = ranking.chance(positives)
    assert list(numbers) == list(chance)
    for name, estimate in numbers.items():
        number = estimate.number()
        assert number["low"] < chance[name] < number["high"], name


def test_one_order_for_all_has_first_what_most_queries_have() -> None:
    _, _, right = drawn(7, 60, 40)
    positives = ranking.relevant(right, 40)
    counts = np.bincount(positives.indices, minlength=40)
    generator, reached = np.random.default_rng(8), []
    for _ in range(2000):
        place = np.argsort(np.lexsort((generator.random(40), -counts)))  # equals at random
        reached.append([place[own].min() + 1 for own in right])
    blind = ranking.blind(positives)
    for depth in (1, 5, 10):
        assert blind[f"R@{depth}"] == pytest.approx((np.array(reached) <= depth).mean(), abs=0.01)
    assert abs(blind[ranking.MEDIAN] - np.median(reached)) <= 1

    # A phrase that half of the images have is found for these; where each has its own, chance is all there is.
    shared = ranking.relevant([[0] if number % 2 else [number] for number in range(40)], 40)
    assert ranking.blind(shared)["R@1"] == 0.525
    own = ranking.relevant([[number] for number in range(40)], 40)
    assert ranking.blind(own) == ranking.chance(own)


def test_a_pool_has_no_recall_at_its_own_size() -> None:
    assert ranking.depths(50) == [1, 5, 10]
    assert ranking.depths(10_000) == [1, 5, 10, 50, 100]


def test_the_median_is_that_of_the_rows_in_each_resample() -> None:
    generator = np.random.default_rng(6)
    groups = generator.integers(0, 12, 60).tolist()
    ranked = generator.integers(1, 40, 60) + generator.choice([0, 0.5], 60)
    draws, rows = Bootstrap(groups, 50), generator.random(60) < 0.8
    medians = ranking.estimates(ranked, 500, draws, rows)[ranking.MEDIAN].values
    repeated = [np.repeat(ranked[rows], draws.counts[draws.of[rows], column]) for column in range(draws.size)]
    assert medians.tolist() == [float(np.median(values)) for values in repeated]


def test_the_interval_of_a_recall_takes_groups_whole() -> None:
    ranked = np.repeat(np.tile([1.0, 9.0], 20), 5)  # 40 patients, whose five queries rank alike
    every = np.ones(200, np.bool_)
    own = ranking.estimates(ranked, 500, Bootstrap(range(200), 100), every)["R@1"].number()
    patients = ranking.estimates(ranked, 500, Bootstrap(np.repeat(range(40), 5).tolist(), 100), every)["R@1"].number()
    assert own["value"] == patients["value"] == 0.5
    assert patients["high"] - patients["low"] > 1.8 * (own["high"] - own["low"])
