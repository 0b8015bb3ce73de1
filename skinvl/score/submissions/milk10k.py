"""MILK10k's CSV: lesion_id, and the probability of each of its 11 classes; a line for each lesion.

The probabilities of a row are the softmax of its scores; those of a lesion are the mean over its rows, which are one
where all of its images were shown at once. A lesion is what stands first in a row's id: IL_0000652-class.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from skinvl.data.labels import MILK10K_CODES
from skinvl.score.predictions import Classified, key, rule
from skinvl.score.stats import Float
from skinvl.score.submissions import SubmissionError

FOLDER, KIND = "classes", Classified
MAKE = (
    "classify the blind lesions: skinvl prep milk10k RAW data/milk10k_blind --part blind, then skinvl classify RUN "
    "'evaluate.classify=[{source: milk10k_blind, benchmark: milk10k, blind: true}]'"
)
HEAD = ("lesion_id", *MILK10K_CODES)
DIGITS = 9
_LESION = re.compile(r"(IL_\d+)(?:-.*)?")


def fits(settings: Mapping[str, Any], rows: Sequence[Classified]) -> bool:
    """Whether the classes are those of MILK10k, in its order."""
    return settings.get("classes") == [*MILK10K_CODES.values()]


def content(rows: Sequence[Classified]) -> tuple[str, str]:
    """The CSV, sorted by lesion, and how many lesions and rows are in it.

    Raises:
        SubmissionError: a row is of no lesion, or a lesion has no scores at all.
    """
    lesions = _probabilities(rows)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEAD)
    for lesion in sorted(lesions):
        writer.writerow((lesion, *(f"{share:.{DIGITS}f}" for share in lesions[lesion])))
    return file.getvalue(), f"{len(lesions):,} lesions of {len(rows):,} rows, {len(MILK10K_CODES)} probabilities each"


def check(text: str, rows: Sequence[Classified]) -> None:
    """Reads the CSV back.

    Raises:
        SubmissionError: it has not each lesion once, with probabilities that are those of the rows.
    """
    lesions = _probabilities(rows)
    head, *lines = csv.reader(io.StringIO(text))
    if tuple(head) != HEAD or sorted(line[0] for line in lines) != sorted(lesions):
        raise SubmissionError(f"the file does not have each of {len(lesions)} lesions once below {','.join(HEAD)}")
    for lesion, *cells in lines:
        shares = np.array(cells, np.float64)
        if not np.allclose(shares, lesions[lesion], rtol=0, atol=10**-DIGITS) or abs(shares.sum() - 1) > 1e-6:
            raise SubmissionError(f"the file says {cells} of {lesion}, whose probabilities are {lesions[lesion]}")


def _probabilities(rows: Sequence[Classified]) -> dict[str, Float]:
    """Lesion → float[11], the mean of the probabilities of its rows."""
    shares: dict[str, list[Float]] = {}
    why: dict[str, str] = {}
    for row in rows:
        match = _LESION.fullmatch(row.id)
        if match is None:
            raise SubmissionError(f"{key(row)}: no lesion of MILK10k; expected an id that begins with IL_ and digits")
        of_lesion = shares.setdefault(match[1], [])
        if row.scores is None:
            why[match[1]] = rule(row.detail)
        else:
            of_lesion.append(softmax(np.array(row.scores, np.float64)))
    if lacking := [lesion for lesion, of_lesion in shares.items() if not of_lesion]:
        raise SubmissionError(
            f"{len(lacking):,} of {len(shares):,} lesions have no probabilities, such as {lacking[0]} "
            f"({why[lacking[0]]}); every lesion must have some: mend its images, and classify again"
        )
    return {lesion: np.mean(of_lesion, axis=0) for lesion, of_lesion in shares.items()}
