"""Conversations → one batch of token rows, labels and pixels: the collator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from skinvl.chat import UNTRAINED, Chat
from skinvl.example import Example, text
from skinvl.lengths import sizes
from skinvl.mixture import Row
from skinvl.pixels import upright

SIDE = 64  # pixels of a blank image


def blank_of(images: int) -> Example:
    """A conversation about so many blank images."""
    turns = (text("user", "?", images), text("assistant", "."))
    return Example("filler", "skinvl", ("blank",) * images, turns, "filler", "none", "none")


@dataclass(frozen=True, slots=True)
class Collator:
    """Right-padded rows with labels at the assistant's tokens alone, and the pixels of their images."""

    chat: Chat
    # Whether a batch without an image gets one more row, with a blank image and nothing to train. Ranks that train
    # together must all run the vision tower, or ZeRO-3 waits for ever and DDP misses gradients. A batch without any row
    # gets one in any case.
    filler: bool = False

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs with `labels`, `shift_labels` and `row_ids`.

        Returns:
            input_ids, attention_mask, labels and shift_labels, each int64[B, T], and the family's own inputs.
            `shift_labels[:, t]` is the token that position t predicts; `labels` is the unshifted copy that the
            Trainer looks for; `row_ids` names the conversations: B, or one less where
            the last row is a filler.
        """
        rows: list[Row] = [item["row"] for item in items if item["row"] is not None]
        encoded = [self.chat.encode(row.example, sizes(row.root, row.example)) for row in rows]
        blanks = int(self.filler and not any(one.pictures for one in encoded))  # images of the filler
        if filled := blanks > 0 or not rows:
            blank = self.chat.encode(blank_of(blanks), [(SIDE, SIDE)] * blanks)
            encoded.append(replace(blank, labels=[UNTRAINED] * len(blank.labels)))
        length = max(len(one.ids) for one in encoded)
        ids = torch.full((len(encoded), length), self.chat.pad_id)
        labels = torch.full((len(encoded), length), UNTRAINED)
        mask = torch.zeros((len(encoded), length), dtype=torch.long)
        for index, one in enumerate(encoded):
            count = len(one.ids)
            ids[index, :count] = torch.tensor(one.ids)
            labels[index, :count] = torch.tensor(one.labels)
            mask[index, :count] = 1
        # A conversation cut by data.too_long=drop_turns shows fewer images than its Example names.
        paths = [
            [row.root / name for name in row.example.images[: len(one.pictures)]]
            for row, one in zip(rows, encoded, strict=False)  # a filler is no row of the data
        ]
        pixels = {path: upright(path) for path in {path for some in paths for path in some}}
        images = [[pixels[path] for path in some] for some in paths]
        if filled:
            images.append([Image.new("RGB", (SIDE, SIDE))] * blanks)
        return {
            "input_ids": ids,
            "row_ids": [row.example.id for row in rows],
            "attention_mask": mask,
            "labels": labels,
            "shift_labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=UNTRAINED),
            **self.chat.family.batch(self.chat.processor, ids, images, self.chat.image_arguments),
        }
