"""How long images that look alike are looked for, and how many strangers are taken for them.

`python benchmarks/hashes.py PHOTOS [--count 400000] [--power 1.5]`

Hashes with the statistics of real photos: blocks of frequencies from a Gaussian with the mean and the correlations of
those of PHOTOS in all eight positions. Real photos are no Gaussian, and their hashes are near one another more often;
with the eigenvalues of the correlations to the power 1.5 as many pairs are 10 to 14 bits apart as among the 240 photos
of PAD-UFES-20 in shared/, and to the power 2 four times as many. All that the draws have in common is chance: every
pair that is found is of strangers. Planted copies around the threshold must all be found, and what is found is held
against faiss, which compares each hash with each.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from skinvl.data import fingerprints, hamming
from skinvl.data.fingerprints import THRESHOLD
from skinvl.data.source import IMAGES_SCHEMA

THREADS = 2
ROWS = 20_000  # blocks drawn at once


def main() -> None:
    """Prints seconds, the pairs of strangers by each kind, and the ratio to comparing each with each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of photos, such as pad_ufes_20/img")
    parser.add_argument("--count", type=int, default=400_000, help="images")
    parser.add_argument("--power", type=float, default=1.5, help="of the eigenvalues of the photos' correlations")
    options = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    images = drawn(options.photos, options.count, options.power)
    upright = images["phash"].combine_chunks().to_numpy()
    positions = images["turned"].combine_chunks().flatten().to_numpy()
    print(f"{options.count:,} images at {THRESHOLD} bits, eigenvalues to the power {options.power}, {THREADS} threads")

    # The two searches, and the one that was.
    started = time.perf_counter()
    near = hamming.near(upright, THRESHOLD)
    upright_seconds = time.perf_counter() - started
    print(f"as they stand: {len(near):,} pairs, {upright_seconds:.1f} s", flush=True)
    started = time.perf_counter()
    turned = fingerprints.turned(images)
    turned_seconds = time.perf_counter() - started
    print(f"turned, after the second look: {len(turned.pairs):,} pairs, {turned_seconds:.1f} s", flush=True)
    started = time.perf_counter()
    brute = np.concatenate(list(hamming.each_with_each(np.unique(upright), THRESHOLD)))
    brute_seconds = time.perf_counter() - started
    ratio = (upright_seconds + turned_seconds) / brute_seconds
    print(f"each with each as they stand, by faiss: {len(brute):,} pairs, {brute_seconds:.1f} s; ratio {ratio:.2f}")

    # What the second look sees of the pairs that it decides.
    query, position = hamming.within(upright, positions, THRESHOLD).T
    image, position = np.divmod(position, 7)
    other = query != image
    signs = np.frombuffer(b"".join(images["signs"].to_pylist()), np.uint8).reshape(-1, 32)
    apart = fingerprints.second_look(signs[query[other]], signs[image[other]], position[other])
    strangers = len(np.unique(np.sort(np.stack([query[other], image[other]], axis=1), axis=1), axis=0))
    print(f"turned, without the second look: {strangers:,} pairs")
    if len(apart):
        print(f"their signs differ in {apart.mean():.1f} ± {apart.std():.1f} of 256 bits, at least {apart.min()}")

    exact = planted(upright)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if not exact or len(brute) + options.count - len(np.unique(upright)) != len(near):
        raise SystemExit("not exact")


def drawn(photos: Path, count: int, power: float) -> pa.Table:
    """A table of images whose frequencies are drawn from a Gaussian with the statistics of the photos."""
    # The photos in all positions, of equal contrast, without the mean grey.
    blocks = []
    for path in sorted(photos.iterdir()):
        with Image.open(path) as photo:
            block = fingerprints.frequencies(photo)
        if block is not None:
            block[0, 0] = 0
            blocks.append(block / np.linalg.norm(block))
    every = fingerprints.positions(np.stack(blocks)).reshape(-1, 256)
    mean, spread = every.mean(axis=0), every.std(axis=0)
    spread[0] = 1
    values, vectors = np.linalg.eigh(np.cov((every / spread).T))
    factor = vectors * np.sqrt(np.maximum(values, 0) ** power)
    scale = np.sqrt((factor**2).sum(axis=1))
    scale[0] = 1

    generator = np.random.default_rng(0)
    hashes, signs = [], []
    for start in range(0, count, ROWS):
        normal = generator.standard_normal((min(ROWS, count - start), 256)) @ factor.T
        frequencies = (normal / scale * spread + mean).reshape(-1, 16, 16)
        frequencies[:, 0, 0] = 1e9  # of a picture, the mean grey is above the median
        hashes.append(fingerprints.hashes(frequencies))
        signs.append(np.packbits(frequencies.reshape(-1, 256) > 0, axis=1))
    eight = np.concatenate(hashes)
    columns = {
        "phash": pa.array(eight[:, 0]),
        "turned": pa.FixedSizeListArray.from_arrays(pa.array(eight[:, 1:].reshape(-1)), 7),
        "signs": pa.array(map(bytes, np.concatenate(signs)), pa.binary(32)),
    }
    return pa.table(columns).cast(pa.schema([IMAGES_SCHEMA.field(name) for name in columns]))


def planted(hashes: NDArray[np.uint64]) -> bool:
    """Whether of copies around the threshold those at or below it are found, and no others; it prints how many."""
    generator = np.random.default_rng(0)
    number = len(hashes) // 100
    first, second = generator.permutation(len(hashes))[: 2 * number].reshape(2, number)
    apart = generator.integers(1, 2 * THRESHOLD + 1, number)
    flips = [np.bitwise_or.reduce(np.uint64(1) << generator.permutation(64)[:bits].astype(np.uint64)) for bits in apart]
    changed = hashes.copy()
    changed[second] = changed[first] ^ np.array(flips)
    pairs = hamming.near(changed, THRESHOLD)
    expected = {tuple(sorted(pair)) for pair in np.stack([first, second], axis=1)[apart <= THRESHOLD].tolist()}
    reached = expected & {tuple(pair) for pair in pairs.tolist()}
    wrong = int((np.bitwise_count(np.bitwise_xor(*changed[pairs.T])) > THRESHOLD).sum())
    print(f"planted {len(expected):,} copies, found {len(reached):,}; pairs that are not near {wrong}")
    return len(reached) == len(expected) and not wrong


if __name__ == "__main__":
    main()
