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


def bars(path: Path, title: str, unit: str, values: dict[str, float], note: str) -> None:
    """Horizontal bars with their numbers, the machine beneath."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * len(values)), layout="constrained")
    names = list(values)[::-1]
    numbers = [values[name] for name in names]
    drawn = axes.barh(names, numbers, color="#2f6f9f", height=0.6)
    axes.bar_label(drawn, labels=[f"{number:,.4g}" for number in numbers], padding=4, fontsize=9)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(f"{unit}\n{note}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(right=max([*numbers, 1e-9]) * 1.15)
    figure.savefig(path)
    pyplot.close(figure)
