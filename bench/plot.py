"""Plots of results, one for each bench that has a figure worth seeing."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
