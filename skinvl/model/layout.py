"""Where conversations lie in the rows of a batch: which of them share a prefix, and from where to where each runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from skinvl.model.attention import Span, Spans
from skinvl.model.chat import UNTRAINED, Encoded
from skinvl.model.row import EncodedRow, Shown


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations, by their number in the batch, that share so many first tokens."""

    members: tuple[int, ...]
    prefix: int


def grouped(conversations: Sequence[EncodedRow], image_id: int) -> list[Group]:
    """The groups of a batch: conversations that show the same images, or none, share what they begin with.

    A prefix ends before the token that predicts the first trained one of any conversation, so that no position has two
    targets; where nothing is trained, before the last token, which predicts the answer. Conversations whose later turns
    show images of their own stay alone.
    """
    members_of: dict[Shown, list[int]] = defaultdict(list)
    for number, conversation in enumerate(conversations):
        members_of[conversation.images].append(number)

    groups = []
    for members in members_of.values():
        alike = [conversations[number].encoded for number in members]
        limit = min(_first_trained(encoded) for encoded in alike) - 1
        prefix = _common([encoded.ids for encoded in alike], limit) if len(alike) > 1 else 0
        if all(image_id not in encoded.ids[prefix:] for encoded in alike):
            groups.append(Group(tuple(members), prefix))
        else:
            groups += [Group((number,), 0) for number in members]
    return groups


def _first_trained(encoded: Encoded) -> int:
    return next((i for i, label in enumerate(encoded.labels) if label != UNTRAINED), len(encoded.ids))


def _common(sequences: Sequence[list[int]], limit: int) -> int:
    """How many first ids all sequences share, at most the limit."""
    least, most = min(sequences), max(sequences)  # what these two share, all share
    return next((i for i in range(min(limit, len(least))) if least[i] != most[i]), min(limit, len(least)))


def stretches(ids: Sequence[int], token: int) -> list[tuple[int, int]]:
    """Start and end of each run of a token."""
    runs, cursor = [], 0
    for is_token, run in groupby(ids, lambda id_: id_ == token):
        start, cursor = cursor, cursor + len(list(run))
        runs += [(start, cursor)] * is_token
    return runs


def spans(
    rows: Sequence[Sequence[Group]],
    lengths: Sequence[int],
    whole: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> Spans:
    """Where each group's prefix and branches lie in their row.

    Args:
        lengths: the tokens of each conversation.
        whole: of each conversation, the stretches whose positions see one another; in its prefix, where it has one.
    """

    def moved(number: int, by: int) -> tuple[tuple[int, int], ...]:
        return tuple((start + by, end + by) for start, end in whole[number]) if whole else ()

    widths = [sum(_tokens(group, lengths) for group in row) for row in rows]
    laid: list[Span] = []
    for index, row in enumerate(rows):
        cursor = 0
        for group in row:
            begin = cursor
            if group.prefix:
                cursor += group.prefix
                laid.append(Span(index, begin, cursor, whole=moved(group.members[0], begin)))
            for number in group.members:
                end = cursor + lengths[number] - group.prefix
                if group.prefix:
                    laid.append(Span(index, cursor, end, (begin, begin + group.prefix)))
                else:
                    laid.append(Span(index, cursor, end, whole=moved(number, cursor)))
                cursor = end
    return Spans(tuple(laid), (len(rows), max(widths)))


def _tokens(group: Group, lengths: Sequence[int]) -> int:
    return group.prefix + sum(lengths[number] - group.prefix for number in group.members)


def branches(rows: Sequence[Sequence[Group]], laid: Spans) -> tuple[Span, ...]:
    """The span of each conversation's own tokens, in the order of their numbers."""
    of_number: dict[int, Span] = {}
    rest = iter(laid.spans)
    for group in (group for row in rows for group in row):
        if group.prefix:
            next(rest)
        of_number |= {number: next(rest) for number in group.members}
    return tuple(of_number[number] for number in sorted(of_number))
