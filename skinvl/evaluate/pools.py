"""What two towers retrieve in: images and texts of a set, cleaned of what was trained on, and which belong together.

Of each photograph all texts are right, its copies' included, and of each text all images that have it, case and spaces
apart, with their copies. Every image and every text that reads differently stands in its pool once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash
from scipy.sparse import csr_array

from skinvl.data.seen import Seen
from skinvl.data.texts import ASPECTS, Aspect, ImageText, TextedImage
from skinvl.score import ranking


class PoolError(ValueError):
    """A set in which nothing can be retrieved."""


@dataclass(frozen=True, slots=True)
class Pools:
    """N images and M texts, and which belong together."""

    images: list[TextedImage]
    texts: list[ImageText]
    first: list[int]  # of each text, the first image that has it
    right: csr_array  # bool[N, M]
    grouped: csr_array  # bool[N, M], the same if all of a group were right
    aspect: Aspect
    left_out: dict[str, int]  # rule → images

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that tell these pools from others."""
        parts = sorted({f"{image.source}/{image.path}" for image in self.images}) + sorted(t.text for t in self.texts)
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def pools(name: str, images: Sequence[TextedImage], train: Sequence[TextedImage]) -> Pools:
    """The pools of an eval set: its captions, or where it has none the first of the other aspects that it has.

    An image is left out where training saw its photograph, its group, or its caption, as `Seen` has it.

    Raises:
        PoolError: fewer than two images, or two texts, are left.
    """
    first_aspect = min((ASPECTS.index(text.aspect) for image in images for text in image.texts), default=0)
    aspect = ASPECTS[first_aspect]
    seen = Seen(train)

    # Which images stay, and why the others do not.
    left_out: Counter[str] = Counter()
    kept = []
    for image in images:
        own = [text for text in image.texts if text.aspect == aspect]
        if not own:
            left_out[f"no {aspect}"] += 1
        elif what := seen.what(image):
            left_out[f"trained-on: {what}"] += 1
        else:
            kept.append((image, own))

    # Each text once, and whose it is.
    numbers: dict[int, int] = {}
    texts: list[ImageText] = []
    first, own_numbers = [], []
    for number, (_, own) in enumerate(kept):
        for text in own:
            if numbers.setdefault(text.key, len(texts)) == len(texts):
                texts.append(text)
                first.append(number)
        own_numbers.append([numbers[text.key] for text in own])
    if len(kept) < 2 or len(texts) < 2:
        why = ", ".join(f"{count:,} {rule}" for rule, count in left_out.items()) or "none left out"
        raise PoolError(
            f"data.eval: {name} has {len(kept):,} images and {len(texts):,} texts to retrieve, and at least 2 of each "
            f"are needed (of {len(images):,} images: {why}); name another source or split, or texts of it in data.texts"
        )
    kept_images = [image for image, _ in kept]
    right = _right([image.image for image in kept_images], own_numbers, len(texts))
    grouped = _right([image.group for image in kept_images], own_numbers, len(texts))
    return Pools(kept_images, texts, first, right, grouped, aspect, dict(left_out))


def _right(keys: Sequence[int], numbers: Sequence[Sequence[int]], size: int) -> csr_array:
    """bool[N, M]: of each image its own texts, of M, and those of all images with the same key."""
    by_key: dict[int, dict[int, None]] = defaultdict(dict)
    for key, own in zip(keys, numbers, strict=True):
        by_key[key] |= dict.fromkeys(own)
    return ranking.relevant([list(by_key[key]) for key in keys], size)
