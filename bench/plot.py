"""Plots of results, one for each bench that has a figure worth seeing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

LEAST_US = 0.1  # what is less is drawn here


def draw(name: str, result: dict[str, Any], path: Path) -> None:
    """Draw a bench's plot; benches with a `plot` function of their own are asked to."""
    import importlib

    own = getattr(importlib.import_module(f"bench.{name}"), "plot", None)
    if own is not None:
        own(result, path)


def bars(path: Path, panels: list[tuple[str, str, dict[str, float]]], note: str) -> None:
    """Panels of horizontal bars with their numbers: (title, unit, values); the machine beneath."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minoots"
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    heights = [len(values) for _, _, values in panels]
    figure, drawn = pyplot.subplots(
        len(panels),
        1,
        figsize=(8, 0.9 * len(panels) + 0.38 * sum(heights)),
        layout="constrained",
        squeeze=False,
        height_ratios=heights,
    )
    for axes, (title, unit, values) in zip(drawn[:, 0], panels, strict=True):
        names = list(values)[::-1]
        numbers = [values[name] for name in names]
        shown = [f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in numbers]
        axes.bar_label(axes.barh(names, numbers, height=0.6), labels=shown, padding=4, fontsize=9)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(unit, fontsize=8)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(right=max([*numbers, 1e-9]) * 1.15)
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


class Curve(NamedTuple):
    """A line of a percentile plot."""

    label: str
    points: list[tuple[float, float]]  # (1 / (1 - quantile), us)
    colour: str | float  # a number from 0 to 1 is a place on a scale
    style: str = "-"
    width: float = 1.6


def curves(path: Path, panels: list[tuple[str, list[Curve]]], note: str) -> None:
    """Panels of lateness by percentile, both axes as HdrHistogram draws them; a PNG too."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minoots"
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = (len(panels) + 1) // 2
    figure, drawn = pyplot.subplots(
        rows, 2, figsize=(16, 5.2 * rows), layout="constrained", squeeze=False, sharey=True
    )
    scale = matplotlib.colormaps["viridis"]
    for axes, (title, lines) in zip(drawn.flat, panels, strict=False):
        for line in sorted(lines, key=lambda line: -line.points[-1][1]):  # as they end, so named
            shade = line.colour if isinstance(line.colour, str) else scale(line.colour * 0.9)
            tails, late = zip(*line.points, strict=True)
            shown = [max(value, LEAST_US) for value in late]
            look = {"linestyle": line.style, "linewidth": line.width, "color": shade}
            axes.plot(tails, shown, label=line.label, **look)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator([2, 10, 100, 1_000, 10_000, 100_000]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 - 100 / x:.6g} %"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda us, _: with_unit(us)))
        axes.yaxis.set_tick_params(labelleft=True)
        axes.set_xlabel("percentile", fontsize=8)
        axes.set_ylabel("late by", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path)
    figure.set_layout_engine("none")  # it is laid out by now, which is the slow part
    figure.savefig(path.with_suffix(".png"), dpi=110)
    pyplot.close(figure)


def with_unit(us: float) -> str:
    """A lateness as a label: 1 us, 10 ms, 1 s."""
    for size, unit in ((1e6, "s"), (1e3, "ms"), (1, "us")):
        if us >= size:
            return f"{us / size:g} {unit}"
    return f"{us * 1e3:g} ns"
