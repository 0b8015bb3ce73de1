"""Conversations → one batch of token rows, labels and pixels: the collator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from skinvl.chat import UNTRAINED, Chat
from skinvl.lengths import sizes
from skinvl.mixture import Row
from skinvl.pixels import upright


@dataclass(frozen=True, slots=True)
class Collator:
    """Right-padded rows with labels at the assistant's tokens alone, and the pixels of their images."""

    chat: Chat

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs with `labels`, `shift_labels` and `row_ids`.

        Returns:
            input_ids, attention_mask, labels and shift_labels, each int64[B, T], and the family's own inputs.
            `shift_labels[:, t]` is the token that position t predicts; `labels` is the unshifted copy that the
            Trainer looks for; `row_ids` names the B conversations.
        """
        rows: list[Row] = [item["row"] for item in items]
        encoded = [self.chat.encode(row.example, sizes(row.root, row.example)) for row in rows]
        length = max(len(one.ids) for one in encoded)
        ids = torch.full((len(rows), length), self.chat.pad_id)
        labels = torch.full((len(rows), length), UNTRAINED)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for index, one in enumerate(encoded):
            count = len(one.ids)
            ids[index, :count] = torch.tensor(one.ids)
            labels[index, :count] = torch.tensor(one.labels)
            mask[index, :count] = 1
        # A conversation cut by data.too_long=drop_turns shows fewer images than its Example names.
        paths = [
            [row.root / name for name in row.example.images[: len(one.pictures)]]
            for row, one in zip(rows, encoded, strict=True)
        ]
        pixels = {path: upright(path) for path in {path for some in paths for path in some}}
        images = [[pixels[path] for path in some] for some in paths]
        return {
            "input_ids": ids,
            "row_ids": [row.example.id for row in rows],
            "attention_mask": mask,
            "labels": labels,
            "shift_labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=UNTRAINED),
            **self.chat.family.batch(self.chat.processor, ids, images, self.chat.image_arguments),
        }
