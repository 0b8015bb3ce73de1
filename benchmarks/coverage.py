"""How often intervals hold the truth, and how wide they are: `python benchmarks/coverage.py [--draws 4000]`.

Prints docs/evaluation.md's table. Shares by Wilson's interval, in six settings in which it must hold at least 93 % less
two standard errors of the simulation, then where no method is known to hold; means of readers by Obuchowski and
Rockette, every other number by its expanded percentiles, as skinvl score has them from 1,000 resamples. Exits 1 where
one of the six does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from skinvl.score import calibration, curves, institutions, operating, stats
from skinvl.score.metrics import bleu
from skinvl.score.operating import Malignancy
from skinvl.score.readers import kappa, multireader
from skinvl.score.readers.multireader import ReaderMean
from skinvl.score.stats import Bootstrap, Estimate, Float, Int, Mask, defined_mean, ratio

LEAST = 0.93
GROUPS = (5, 10, 20, 50)
SIZES = (1, 2, 3, 4, 5)  # rows of groups, in turn, of all but shares
UNEQUAL = (16, 2, 2, 3, 2)
LARGE = 200_000  # groups from which a truth without a formula is taken
LENGTH = 22  # words of an answer, as in MM-Skin


@dataclass(frozen=True, slots=True)
class Setting:
    """Rows that are right by a chance of their group's.

    Args:
        sizes: rows of groups, in turn.
        chance: the groups' chance, or the two parameters of the beta distribution that it comes from.
        alike: rows of a group are all right or all wrong.
        must: whether coverage is required.
    """

    name: str
    sizes: tuple[int, ...]
    chance: float | tuple[float, float]
    alike: bool = False
    must: bool = True


SETTINGS = (
    Setting("5 rows a group, Beta(2, 2)", (5,), (2, 2)),
    Setting("5 rows a group, Beta(9, 1)", (5,), (9, 1)),
    Setting("5 rows a group, Beta(.2, .2)", (5,), (0.2, 0.2)),
    Setting("16, 2, 2, 3, 2, … rows, Beta(2, 2)", UNEQUAL, (2, 2)),
    Setting("16, 2, 2, 3, 2, … rows, Beta(4.5, .5)", UNEQUAL, (4.5, 0.5)),
    Setting("1 row a group, .8", (1,), 0.8),
    Setting("1 row a group, .99", (1,), 0.99, must=False),
    Setting("5 rows a group, .99", (5,), 0.99, must=False),
    Setting("16, 2, 2, 3, 2, … rows, Beta(.99, .01)", UNEQUAL, (0.99, 0.01), must=False),
    Setting("50 alike rows a group, .8", (50,), 0.8, alike=True, must=False),
    Setting("50, 1, 1, 1, 1, … alike rows, .8", (50, 1, 1, 1, 1), 0.8, alike=True, must=False),
    Setting("50, 1, 1, 1, 1, … alike rows, .99", (50, 1, 1, 1, 1), 0.99, alike=True, must=False),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of the draws of one setting with so many groups."""

    covered: float  # share of the intervals that hold the truth
    width: float  # their median
    without: float  # share of the draws that have no interval

    def text(self) -> str:
        """Percent covered and median width, and percent without an interval where there are any."""
        absent = f", {100 * self.without:.1f} % none" if self.without else ""
        return f"{100 * self.covered:.1f} ({self.width:.3f}{absent})"


def main() -> int:
    """0, once both tables are printed and shares are covered as they must be; else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4_000, help="data sets of a cell (fewer only to try)")
    parser.add_argument("--resamples", type=int, default=stats.RESAMPLES, help="of each data set")
    options = parser.parse_args()
    least = LEAST - 2 * np.sqrt(LEAST * (1 - LEAST) / options.draws)
    print(f"{options.draws:,} draws a cell, {options.resamples:,} resamples; at least {least:.1%} where it must hold\n")

    print(_head("share (Wilson)"))
    failed = []
    for setting in SETTINGS:
        cells = [share(setting, groups, options.draws) for groups in GROUPS]
        failed += [setting.name for cell in cells if setting.must and cell.covered < least]
        print(_line(setting.name if setting.must else f"*{setting.name}*", cells), flush=True)

    # Below so many groups the others have no interval.
    enough = [groups for groups in GROUPS if groups >= stats.FEWEST[stats.EXPANDED]]
    print("\n" + _head("other number (expanded percentile)", enough))
    for name, sample in NUMBERS.items():
        cells = [other(sample, groups, options.draws, options.resamples) for groups in enough]
        print(_line(name, cells), flush=True)
    if failed:
        print(f"\ncovered too rarely: {', '.join(dict.fromkeys(failed))}")
    return int(bool(failed))


def share(setting: Setting, groups: int, draws: int, seed: int = 0) -> Cell:
    """The coverage of a share over many draws, all at once."""
    generator = np.random.default_rng([seed, groups])
    sizes = np.resize(setting.sizes, groups)
    if isinstance(setting.chance, tuple):
        chances = generator.beta(*setting.chance, (draws, groups))
        truth = setting.chance[0] / sum(setting.chance)
    else:
        chances, truth = np.full((draws, groups), setting.chance), setting.chance
    right = sizes * generator.binomial(1, chances) if setting.alike else generator.binomial(sizes, chances)

    sums = right.astype(np.float64)
    low, high = stats.wilson(sums.sum(axis=1) / sizes.sum(), stats.cr2(sums, sizes), groups, stats.satterthwaite(sizes))
    return Cell(float(np.mean((low <= truth) & (truth <= high))), float(np.median(high - low)), 0.0)


@dataclass(frozen=True, slots=True)
class Foretold:
    """A Number that has its interval already."""

    known: dict[str, Any]

    @property
    def value(self) -> float:
        """Its value."""
        return float(self.known["value"])

    def number(self) -> dict[str, Any]:
        """It."""
        return self.known


Sample = Callable[
    [np.random.Generator, int, Callable[[Int], Bootstrap]], tuple[Estimate | ReaderMean | Foretold, float]
]


def other(sample: Sample, groups: int, draws: int, resamples: int) -> Cell:
    """The coverage of any other number, with resamples of its own in each draw."""
    generator = np.random.default_rng([1, groups])
    covered, widths = [], []
    for seed in range(draws):
        estimate, truth = sample(generator, groups, partial(_bootstrap, resamples=resamples, seed=seed))
        number = estimate.number()
        if number["low"] is not None:
            covered.append(number["low"] <= truth <= number["high"])
            widths.append(number["high"] - number["low"])
    return Cell(float(np.mean(covered)), float(np.median(widths)), 1 - len(covered) / draws)


def _bootstrap(of: Int, resamples: int, seed: int) -> Bootstrap:
    return Bootstrap(of.tolist(), resamples, seed)


def _of(groups: int) -> Int:
    """int[N]: the group of each row."""
    return np.repeat(np.arange(groups), np.resize(SIZES, groups))


def _everything(of: Int) -> Mask:
    return np.ones(len(of), np.bool_)


def _confusion(generator: np.random.Generator, groups: int) -> tuple[Int, Float]:
    """The groups, and float[N, 9]: true positives, rows and predictions of three classes; a group is of one class."""
    of = _of(groups)
    true = generator.choice(3, groups, p=(0.5, 0.3, 0.2))[of]
    right = generator.random(len(of)) < generator.beta(3, 1.5, groups)[of]
    predicted = np.where(right, true, (true + generator.integers(1, 3, len(of))) % 3)
    classes = np.arange(3)
    hits = [(true == predicted)[:, None] & (true[:, None] == classes), true[:, None] == classes]
    return of, np.concatenate([*hits, predicted[:, None] == classes], axis=1).astype(np.float64)


def _macro_f1(sums: Float) -> Float:
    tp, true, predicted = (sums[:, start : start + 3] for start in (0, 3, 6))
    return defined_mean(np.where(true > 0, ratio(2 * tp, true + predicted), np.nan))


def _balanced(sums: Float) -> Float:
    return defined_mean(ratio(sums[:, :3], sums[:, 3:6]))


def _calibration(generator: np.random.Generator, groups: int) -> tuple[Int, Float]:
    """The groups, and float[N, BINS + 1]: right − confidence by bin, and the row; the model is too sure of itself."""
    of = _of(groups)
    logits = generator.normal(1, 1, groups)[of] + generator.normal(0, 1, len(of))
    confidence = np.maximum(expit(1.6 * logits), 0.5)
    off = (generator.random(len(of)) < expit(logits)) - confidence
    table = np.zeros((len(of), curves.BINS + 1))
    table[np.arange(len(of)), curves.bins(confidence)] = off
    table[:, -1] = 1.0
    return of, table


def _ece(sums: Float) -> Float:
    return ratio(np.abs(sums[:, :-1]).sum(axis=1), sums[:, -1])


def _words(generator: np.random.Generator, groups: int) -> tuple[Int, Float]:
    """The groups, and float[N, 10]: BLEU's statistics of answers of which a share of the words is the reference's."""
    of = _of(groups)
    same = generator.random((len(of), LENGTH)) < generator.beta(4, 2, groups)[of][:, None]
    table = np.full((len(of), 2 + 2 * bleu.ORDER), float(LENGTH))
    for order in range(bleu.ORDER):
        runs = np.lib.stride_tricks.sliding_window_view(same, order + 1, axis=1).all(axis=2)
        table[:, 2 + order], table[:, 2 + bleu.ORDER + order] = runs.sum(axis=1), runs.shape[1]
    return of, table


def _bleu(sums: Float) -> Float:
    scores: Float = bleu.value(sums)[:, -1]
    return scores


def _of_sums(rows: Callable[[np.random.Generator, int], tuple[Int, Float]], value: Callable[[Float], Float]) -> Sample:
    """A number that is a function of sums over rows; its truth is that of very many groups."""

    @cache
    def truth() -> float:
        _, table = rows(np.random.default_rng(2), LARGE)
        return float(value(table.sum(axis=0, keepdims=True))[0])

    def sample(
        generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap]
    ) -> tuple[Estimate, float]:
        of, table = rows(generator, groups)
        draws = bootstrap(of)
        return draws.estimate(value(draws.sums(table)), _everything(of)), truth()

    return sample


def _auroc(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], share: float
) -> tuple[Estimate, float]:
    """Positives, which whole groups are, score higher by 1, with variances of 1 of groups and of rows."""
    of = _of(groups)
    positive = (generator.random(groups) < share)[of]
    scores = positive + generator.normal(size=groups)[of] + generator.normal(size=len(of))
    draws = bootstrap(of)
    if not positive.any():
        return draws.estimate(np.full(draws.size, np.nan), _everything(of)), 0.0
    areas, _ = curves.areas(scores, positive, draws, _everything(of))
    return draws.estimate(areas, _everything(of)), float(norm.cdf(1 / 2))


def _called(generator: np.random.Generator, groups: int) -> tuple[Int, Float]:
    """The groups, and float[N, 5]: malignant and called so, malignant, benign and not called so, benign, the row.

    A group is malignant or not, three of ten are; half of what tells rows apart is the group's.
    """
    of = _of(groups)
    malignant = (generator.random(groups) < 0.3)[of]
    called = malignant * 1.5 + generator.normal(size=groups)[of] + generator.normal(size=len(of)) > 1
    columns = [malignant & called, malignant, ~malignant & ~called, ~malignant, np.ones(len(of), np.bool_)]
    return of, np.stack(columns, axis=1).astype(np.float64)


def _ppv(sums: Float) -> Float:
    sensitivity, specificity = ratio(sums[:, 0], sums[:, 1]), ratio(sums[:, 2], sums[:, 3])
    return operating.predictive(sensitivity, specificity, 0.05)[0]


def _npv(sums: Float) -> Float:
    sensitivity, specificity = ratio(sums[:, 0], sums[:, 1]), ratio(sums[:, 2], sums[:, 3])
    return operating.predictive(sensitivity, specificity, 0.05)[1]


def _net_benefit(sums: Float) -> Float:
    return ratio(sums[:, 0] - (sums[:, 3] - sums[:, 2]) * 0.1 / 0.9, sums[:, 4])


def _gain(sums: Float) -> Float:
    treat_all = ratio(sums[:, 1] - sums[:, 3] * 0.1 / 0.9, sums[:, 4])
    return _net_benefit(sums) - np.maximum(treat_all, 0.0)


def _slope(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], name: str
) -> tuple[Foretold, float]:
    """A model that is too sure of itself: logits of a slope of .7, and .3 too high; groups share two thirds of them."""
    of = _of(groups)
    odds = generator.normal(size=groups)[of] * 1.4 + generator.normal(size=len(of))
    malignant = generator.random(len(of)) < expit(0.7 * odds - 0.3)
    test = Malignancy(expit(odds), malignant, _everything(of))
    return Foretold(calibration.numbers(test, _everything(of), bootstrap(of))[name]), _TRUE[name]()


@cache
def _intercept() -> float:
    """The intercept beside a slope of 1, which is another than that beside a slope of .7."""
    generator = np.random.default_rng(3)
    odds = generator.normal(size=LARGE * 5) * np.sqrt(1.4**2 + 1)
    found = calibration.fit(np.ones((len(odds), 1)), expit(0.7 * odds - 0.3), odds)
    assert found is not None
    return float(found[0])


@cache
def _observed_less_foretold() -> float:
    generator = np.random.default_rng(3)
    odds = generator.normal(size=LARGE * 5) * np.sqrt(1.4**2 + 1)
    return float(np.mean(expit(0.7 * odds - 0.3) - expit(odds)))


_TRUE: dict[str, Callable[[], float]] = {
    "slope": lambda: 0.7,
    "intercept": _intercept,
    "observed_less_foretold": _observed_less_foretold,
}


def _centres(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], expected: bool
) -> tuple[Foretold, float]:
    """Eight institutions of so many groups each, whose logits differ by .5; or the share of another, ninth one."""
    of = _of(8 * groups)
    centre = np.arange(8 * groups) % 8
    odds = 1 + 0.5 * generator.normal(size=9)
    right = generator.random(len(of)) < expit(odds[centre] + 0.7 * generator.normal(size=8 * groups))[of]
    draws = bootstrap(of)
    own = {str(number): draws.share(right, centre[of] == number) for number in range(8)}
    found = institutions.together(own)["pooled"]
    if not expected:
        return Foretold(found), _typical(1.0)
    low, high = found["expected"]
    return Foretold({**found, "low": low, "high": high}), _typical(float(odds[8]))


def _typical(odds: float) -> float:
    """The share of an institution with this logit, of which groups differ by .7."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    return float((expit(odds + 0.7 * nodes) * weights).sum() / weights.sum())


def _gap(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], times: int
) -> tuple[Estimate, float]:
    """Two slices, of which the worse has the groups and the better so many times more."""
    of = _of((1 + times) * groups)
    better = of >= groups
    chances = np.where(
        better, generator.beta(4, 1, (1 + times) * groups)[of], generator.beta(3, 2, (1 + times) * groups)[of]
    )
    right = generator.random(len(of)) < chances
    draws = bootstrap(of)
    return draws.share(right, better).gap(draws.share(right, ~better)), 4 / 5 - 3 / 5


def _paired(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap]
) -> tuple[Estimate, float]:
    """Two runs of which the better is right more often by .1, on rows that are as hard for both."""
    of = _of(groups)
    hard, luck = generator.beta(3, 2, groups)[of] * 0.9, generator.random((2, len(of)))
    ours, theirs = luck[0] < hard + 0.1, np.where(generator.random(len(of)) < 0.5, luck[0], luck[1]) < hard
    draws = bootstrap(of)
    return draws.share(ours, _everything(of)).minus(draws.share(theirs, _everything(of))), 0.1


def _readings(generator: np.random.Generator, groups: int, readers: int) -> tuple[Int, Int]:
    """The groups, and int[N, J]: what each reader says of rows in three classes; a group is of one, and as hard."""
    of = _of(groups)
    true = generator.choice(3, groups, p=(0.6, 0.3, 0.1))[of]
    seen = generator.random((len(of), readers)) < generator.beta(4, 2, groups)[of][:, None]
    return of, np.where(seen, true[:, None], generator.integers(0, 3, seen.shape))


def _kappa(readers: int, number: Callable[[Int, Bootstrap], Estimate]) -> Sample:
    """κ of so many readers; its truth is that of very many groups."""

    @cache
    def truth() -> float:
        of, readings = _readings(np.random.default_rng(2), LARGE, readers)
        return number(readings, Bootstrap(of.tolist(), 0)).value

    def sample(
        generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap]
    ) -> tuple[Estimate, float]:
        of, readings = _readings(generator, groups, readers)
        return number(readings, bootstrap(of)), truth()

    return sample


def _readers(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], readers: int, beside: bool
) -> tuple[ReaderMean, float]:
    """Readers whose skill varies by .5, on groups as hard for all by 1; alone, or with a model that is better."""
    of = _of(groups)
    hard, skill = generator.normal(size=groups)[of], generator.normal(0, 0.5, readers)
    right = generator.normal(size=(len(of), readers)) + hard[:, None] + skill > -0.7
    mean = float(norm.cdf(0.7 / 1.5))
    if not beside:
        return multireader.readers_alone(right, _everything(of), of), mean
    model = generator.normal(size=len(of)) + hard > -1
    difference = float(norm.cdf(1 / np.sqrt(2))) - mean
    return multireader.against_model(right, model, _everything(of), of), difference


def _findings(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap], chance: tuple[float, float]
) -> tuple[Estimate, float]:
    """Answers that state up to four findings, of which a chance of the group's is denied."""
    of = _of(groups)
    stated = generator.binomial(4, 0.5, len(of))
    denied = generator.binomial(stated, generator.beta(*chance, groups)[of])
    draws = bootstrap(of)
    sums = draws.sums(np.stack([denied, stated], axis=1).astype(np.float64))
    return draws.estimate(ratio(sums[:, 0], sums[:, 1]), stated > 0), chance[0] / sum(chance)


def _without_image(
    generator: np.random.Generator, groups: int, bootstrap: Callable[[Int], Bootstrap]
) -> tuple[Estimate, float]:
    """Rows of which .7 are right with their image and .42 without, on groups that are as hard for both."""
    of = _of(groups)
    easy, luck = generator.beta(4.2, 1.8, groups)[of], generator.random(len(of))
    plain, blank = luck < easy, luck < easy * 0.6
    draws = bootstrap(of)
    shares = [draws.share(right, _everything(of)).values for right in (blank, plain)]
    return draws.estimate(ratio(shares[0], shares[1]), _everything(of)), 0.6


def _cohen(readings: Int, draws: Bootstrap) -> Estimate:
    return kappa.cohen(readings[:, 0], readings[:, 1], draws)


NUMBERS: dict[str, Sample] = {
    "macro F1, 3 classes": _of_sums(_confusion, _macro_f1),
    "balanced accuracy, 3 classes": _of_sums(_confusion, _balanced),
    "AUROC, 40 % positive": partial(_auroc, share=0.4),
    "AUROC, 10 % positive": partial(_auroc, share=0.1),
    "ECE, 15 bins": _of_sums(_calibration, _ece),
    "BLEU-4": _of_sums(_words, _bleu),
    "gap of two slices, so many groups in each": partial(_gap, times=1),
    "gap of two slices, 4 times as many in the better": partial(_gap, times=4),
    "paired difference of two runs": _paired,
    "PPV at a prevalence of .05": _of_sums(_called, _ppv),
    "NPV at a prevalence of .05": _of_sums(_called, _npv),
    "biopsies for one, at a prevalence of .05": _of_sums(_called, lambda sums: ratio(np.ones(len(sums)), _ppv(sums))),
    "net benefit, acting from .1 on": _of_sums(_called, _net_benefit),
    "gain over treating all or none, from .1 on": _of_sums(_called, _gain),
    "share of a score left without an image": _without_image,
    "observed less foretold share": partial(_slope, name="observed_less_foretold"),
    "calibration intercept (S)": partial(_slope, name="intercept"),
    "calibration slope (S)": partial(_slope, name="slope"),
    "share of 8 institutions, so many groups in each (H)": partial(_centres, expected=False),
    "share of a ninth institution, as expected": partial(_centres, expected=True),
    "Cohen's κ, 3 classes": _kappa(2, _cohen),
    "Fleiss' κ of 3 readers, 3 classes": _kappa(3, kappa.fleiss),
    "mean of 5 readers (R)": partial(_readers, readers=5, beside=False),
    "model − 5 readers (R)": partial(_readers, readers=5, beside=True),
    "model − 3 readers (R)": partial(_readers, readers=3, beside=True),
    "findings that labels deny, .2": partial(_findings, chance=(1, 4)),
    "findings that labels deny, .05": partial(_findings, chance=(0.5, 9.5)),
}


def _head(what: str, sizes: Sequence[int] = GROUPS) -> str:
    cells = [what, *(f"{groups} groups" for groups in sizes)]
    return f"| {' | '.join(cells)} |\n|{' --- |' * len(cells)}"


def _line(name: str, cells: list[Cell]) -> str:
    return f"| {' | '.join([name, *(cell.text() for cell in cells)])} |"


if __name__ == "__main__":
    sys.exit(main())
