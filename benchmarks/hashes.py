"""How long perceptual hashes are looked for among themselves: `python benchmarks/hashes.py [--count 400000]`.

Random hashes, and beside them planted ones at known distances around the threshold: every pair at or below it must be
found and no other. Beside it numpy's brute force, on a sample, extrapolated to as many pairs.
"""

from __future__ import annotations

import argparse
import resource
import time

import faiss
import numpy as np

from skinvl.data.fingerprints import BATCH, THRESHOLD, near

THREADS = 2
SAMPLE = 200  # hashes that numpy looks for among all


def main() -> None:
    """Nothing; prints seconds, pairs found and planted, and the ratio to numpy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400_000, help="hashes, the planted ones included")
    count = parser.parse_args().count
    faiss.omp_set_num_threads(THREADS)
    generator = np.random.default_rng(0)
    planted = count // 100
    hashes = generator.integers(0, 2**64, count, dtype=np.uint64)
    places = generator.permutation(count)[: 2 * planted].reshape(2, planted)
    apart = generator.integers(1, 2 * THRESHOLD + 1, planted)
    flips = np.array(
        [np.bitwise_or.reduce(np.uint64(1) << generator.permutation(64)[:bits].astype(np.uint64)) for bits in apart]
    )
    hashes[places[1]] = hashes[places[0]] ^ flips
    expected = {tuple(sorted(pair)) for pair in places[:, apart <= THRESHOLD].T.tolist()}

    started = time.perf_counter()
    pairs = near(hashes)
    seconds = time.perf_counter() - started
    found = {tuple(pair) for pair in pairs.tolist()}
    # Strangers this near are one in 10^13 pairs of random hashes: any pair that was not planted must prove itself.
    extra = np.array(sorted(found - expected), np.int64).reshape(-1, 2)
    wrong = int((np.bitwise_count(hashes[extra[:, 0]] ^ hashes[extra[:, 1]]) > THRESHOLD).sum())

    started = time.perf_counter()
    for one in hashes[:SAMPLE]:
        np.flatnonzero(np.bitwise_count(hashes ^ one) <= THRESHOLD)
    brute = (time.perf_counter() - started) / SAMPLE * count / 2  # each pair once

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} hashes at {THRESHOLD} bits, {THREADS} threads, batches of {BATCH:,}: {seconds:.1f} s")
    print(
        f"pairs planted {len(expected):,}, of them found {len(found & expected):,}; others {len(extra)}, wrong {wrong}"
    )
    print(f"numpy, one thread, each pair once: {brute:.0f} s, {brute / seconds:.1f} times as long")
    print(f"peak memory {peak:.0f} MiB")
    if not expected <= found or wrong:
        raise SystemExit("not exact")


if __name__ == "__main__":
    main()
