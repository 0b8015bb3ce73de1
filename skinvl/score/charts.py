"""Pictures of scores as inline SVG, and a confusion matrix as a shaded table.

Nothing here sets a colour or a style: the page's sheet does, by class, so that one drawing serves light and dark and
the page can forbid inline styles. What a chart shows by colour it also shows by shape, dash or number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

POINTS = 300  # most that are drawn of one line; a screen shows no more
SERIES = 6  # lines that the sheet tells apart by colour and dash; with the shapes below, 30 differ
SHADES = 10  # of a confusion matrix, beside none
SHAPES = ("M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z", "M-3-3h6v6h-6z", "M0-4l4 4-4 4-4-4z", "M0-4l4 7h-8z", "M0 4l4-7h-8z")

Point = tuple[float, float]
Curves = Mapping[str, Sequence[Point]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A frame of `width` × `height` units, about a pixel each, whose inside shows the ranges x and y."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    left: int = 46
    top: int = 8
    right: int = 14
    bottom: int = 40

    def at(self, x: float, y: float) -> Point:
        """Where a point of the ranges lies, from the upper left corner."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        inside = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * inside[0], self.top + (1 - up) * inside[1]

    def line(self, points: Sequence[Point], css: str) -> Markup:
        """The points, joined."""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (self.at(*point) for point in points))
        return Markup('<polyline class="{}" points="{}"/>').format(css, path)

    def mark(self, point: Point, css: str, shape: str, caption: str) -> Markup:
        """A shape on the point; the caption appears under the pointer."""
        x, y = self.at(*point)
        transform = f"translate({x:.1f} {y:.1f})"
        return Markup('<path class="{}" d="{}" transform="{}"><title>{}</title></path>').format(
            css, shape, transform, caption
        )

    def svg(self, title: str, names: tuple[str, str], parts: Sequence[Markup]) -> Markup:
        """The drawing: parts over a grid with ticks; `names` are what the axes measure."""
        # A line and its number at each tick, across and up.
        grid = []
        for value in ticks(*self.x):
            (x, low), (_, high) = self.at(value, self.y[0]), self.at(value, self.y[1])
            grid.append(Markup('<path class="grid" d="M{0} {1}V{2}"/>').format(f"{x:.1f}", f"{low:.1f}", f"{high:.1f}"))
            grid.append(Markup('<text x="{}" y="{}" class="mid">{}</text>').format(f"{x:.1f}", low + 15, _tick(value)))
        for value in ticks(*self.y):
            (left, y), (right, _) = self.at(self.x[0], value), self.at(self.x[1], value)
            grid.append(Markup('<path class="grid" d="M{0} {1}H{2}"/>').format(left, f"{y:.1f}", f"{right:.1f}"))
            grid.append(Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(left - 6, y + 4, _tick(value)))

        # What the axes measure.
        across = Markup('<text x="{}" y="{}" class="mid">{}</text>').format(
            (self.left + self.width - self.right) / 2, self.height - 5, names[0]
        )
        middle = (self.top + self.height - self.bottom) / 2
        up = Markup('<text class="mid" transform="translate(12 {}) rotate(-90)">{}</text>').format(middle, names[1])
        return Markup('<svg role="img" viewBox="0 0 {} {}"><title>{}</title>{}</svg>').format(
            self.width, self.height, title, Markup("").join([*grid, across, up, *parts])
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, some `about` of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 9):g}"


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them: each the mean of as many neighbours, the ends as they are."""
    if len(points) <= POINTS:
        return list(points)
    inner, parts = points[1:-1], POINTS - 2
    cuts = [len(inner) * number // parts for number in range(parts + 1)]
    blocks = [inner[low:high] for low, high in pairwise(cuts)]
    means = [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]
    return [points[0], *means, points[-1]]


def curves(lines: Curves, title: str, names: tuple[str, str]) -> Markup:
    """The lines over one pair of axes, upwards from 0 if nothing is below; lines of few points have them marked."""
    points = [point for line in lines.values() for point in line]
    last, least, most = max(x for x, _ in points), min(0.0, *(y for _, y in points)), max(y for _, y in points)
    plot = Plot(640, 280, (0.0, last or 1.0), (least, most * 1.04 if most > least else least + 1.0))

    parts = []
    for number, (name, line) in enumerate(lines.items()):
        parts.append(plot.line(thinned(line), f"line {_series(number)}"))
        if len(line) <= 40:
            shape = SHAPES[number % len(SHAPES)]
            parts += [
                plot.mark(point, f"dot {_series(number)}", shape, f"{name}: {point[1]:.4g} at {point[0]:g}")
                for point in line
            ]
    return plot.svg(title, names, parts)


def decision(points: Sequence[Mapping[str, Any]]) -> Curves:
    """The lines of a decision curve up to even odds: the model, the ends of its intervals, treating all and none.

    That of treating all ends where it is no longer worth a look.
    """
    shown = [point for point in points if point["threshold"] <= 0.5 and point["model"]["value"] is not None]
    known = [point for point in shown if point["model"]["low"] is not None]
    least = min([0.0, *(point["model"]["low"] for point in known)]) - 0.02
    return {
        "model": [(point["threshold"], point["model"]["value"]) for point in shown],
        **{
            f"model, {name} end": [(point["threshold"], point["model"][end]) for point in known]
            for name, end in (("lower", "low"), ("upper", "high"))
            if known
        },
        "treat all": [(point["threshold"], point["treat_all"]) for point in shown if point["treat_all"] >= least],
        "treat none": [(point["threshold"], 0.0) for point in shown],
    }


def foretold(points: Sequence[Mapping[str, float]]) -> Curves:
    """The lines of a smooth calibration curve, and of a model that is calibrated."""
    line = [(point["foretold"], point["observed"]) for point in points]
    return {"observed": line, "calibrated": [(line[0][0], line[0][0]), (line[-1][0], line[-1][0])]}


def swatch(number: int) -> Markup:
    """The piece of line and the shape by which a legend names the line of this number."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true"><path class="line {0}" d="M1 5H29"/>'
        '<path class="dot {0}" d="{1}" transform="translate(15 5)"/></svg>'
    ).format(_series(number), SHAPES[number % len(SHAPES)])


def _series(number: int) -> str:
    return f"s{number % SERIES}"


def reliability(bins: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """How often the model is right at each confidence, the diagonal of a calibrated one, and the rows of each bin."""
    plot = Plot(300, 270, (0.0, 1.0), (0.0, 1.0))
    filled = [bar for bar in bins if bar["n"]]
    most = max((bar["n"] for bar in filled), default=1)

    # Bars of the rows in the lowest third, the diagonal, and the model's own line over them.
    parts = []
    for bar in filled:
        (left, top), (right, floor) = plot.at(bar["low"], 0.3 * bar["n"] / most), plot.at(bar["high"], 0.0)
        parts.append(
            Markup('<path class="bar" d="M{0} {1}V{2}H{3}V{1}z"><title>{4} cases</title></path>').format(
                f"{left + 0.5:.1f}", f"{floor:.1f}", f"{top:.1f}", f"{right - 0.5:.1f}", f"{bar['n']:,}"
            )
        )
    parts.append(plot.line([(0.0, 0.0), (1.0, 1.0)], "ideal"))
    parts.append(plot.line([(bar["confidence"], bar["accuracy"]) for bar in filled], "line s0"))
    for bar in filled:
        caption = f"confidence {bar['confidence']:.3f}, accuracy {bar['accuracy']:.3f}, {bar['n']:,} cases"
        parts.append(plot.mark((bar["confidence"], bar["accuracy"]), "dot s0", SHAPES[0], caption))
    return plot.svg(title, ("confidence", "accuracy"), parts)


def risk_coverage(
    points: Sequence[Mapping[str, float]], threshold: Mapping[str, Any] | None, majority: float | None, title: str
) -> Markup:
    """The share of wrong answers among the most certain ones, by how many are answered; dashed, the majority class.

    A threshold is drawn where it puts coverage and risk.
    """
    line = sorted((point["coverage"], point["risk"]) for point in points)
    chance = [] if majority is None else [1 - majority]
    chosen = threshold if threshold and threshold["risk"] is not None else None  # None where nothing is answered
    marks = [chosen["risk"]] if chosen else []
    plot = Plot(300, 270, (0.0, 1.0), (0.0, min(1.0, max([0.1, *chance, *marks, *(risk for _, risk in line)]) * 1.08)))
    parts = [plot.line([(0.0, risk), (1.0, risk)], "ideal") for risk in chance]
    parts.append(plot.line(thinned(line), "line s0"))
    if chosen:
        caption = f"threshold {chosen['value']:.3f}: coverage {chosen['coverage']:.3f}, risk {chosen['risk']:.3f}"
        parts.append(plot.mark((chosen["coverage"], chosen["risk"]), "dot s1", SHAPES[2], caption))
    return plot.svg(title, ("coverage: share that is answered", "risk: share of these that is wrong"), parts)


def whisker(own: Mapping[str, Any] | None, control: Mapping[str, Any] | None, line: float | None) -> Markup:
    """A value and its interval between 0 and 1, a control's under it as a hollow diamond, and a line; empty if none.

    The table beside it has the numbers, so readers of the page's text are not told of it.
    """
    numbers = [estimate.get(end) for estimate in (own, control) if estimate for end in ("value", "low", "high")]
    values = [number for number in numbers if number is not None]
    if own is None or own["value"] is None or not all(0 <= value <= 1 for value in values):
        return Markup("")
    parts = [Markup('<path class="grid" d="M4 8H124M4 4V12M64 5V11M124 4V12"/>')]
    if line is not None:
        parts.append(Markup('<path class="line s1" d="M{:.1f} 1V15"/>').format(_across(line)))
    for estimate, css, shape in ((control, "control", SHAPES[2]), (own, "own", SHAPES[0])):
        if estimate is None or estimate["value"] is None:
            continue
        if estimate["low"] is not None and estimate["high"] is not None:
            parts.append(Markup('<path class="{}" d="M{:.1f} 8H{:.1f}"/>').format(css, *map(_across, _ends(estimate))))
        transform = f"translate({_across(estimate['value']):.1f} 8)"
        parts.append(Markup('<path class="{} dot" d="{}" transform="{}"/>').format(css, shape, transform))
    return Markup('<svg class="whisker" viewBox="0 0 128 16" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _across(value: float) -> float:
    return 4 + 120 * value


def _ends(estimate: Mapping[str, Any]) -> tuple[float, float]:
    return estimate["low"], estimate["high"]


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], caption: str) -> Markup:
    """A table: a row for each true class, shaded by the share of the row; a last column where more than classes."""
    # Names of few classes fit above the columns; of more, their numbers stand there.
    few = len(classes) <= 4
    names = [*classes, *["none"] * (len(matrix[0]) - len(classes))]
    heads = [
        Markup('<th scope="col" aria-label="predicted {0}">{1}</th>').format(
            name, name if few or number >= len(classes) else number + 1
        )
        for number, name in enumerate(names)
    ]

    rows = []
    for number, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts)
        cells = [
            Markup('<td class="q{}{}">{:,}</td>').format(
                round(SHADES * count / total) if total else 0, " hit" if number == column else "", count
            )
            for column, count in enumerate(counts)
        ]
        label = name if few else f"{number + 1} {name}"
        right = f"{counts[number] / total:.3f}" if total else "–"
        rows.append(
            Markup('<tr><th scope="row">{}</th>{}<td>{:,}</td><td>{}</td></tr>').format(
                label, Markup("").join(cells), total, right
            )
        )
    return Markup(
        '<table class="confusion"><caption>{}</caption><thead><tr><th scope="col">true ↓ predicted →</th>{}'
        '<th scope="col">cases</th><th scope="col">recall</th></tr></thead><tbody>{}</tbody></table>'
    ).format(caption, Markup("").join(heads), Markup("").join(rows))
