"""Pictures of a trace: the knobs over the steps, and §8's diagnostics; or the trace in TensorBoard.

A trace is what ``optimizer.trace()`` returns, or any mapping of its column names to equally many
numbers: nothing here needs a controller, or torch. matplotlib comes with the first picture.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, Any]
"""A column name to its numbers: a tensor, an array or a list."""
PathLike = str | os.PathLike[str]

# Okabe and Ito's colours, told apart by every kind of colour vision.
GREY, BLUE, GREEN, ORANGE, RED = "#8c8c8c", "#0072b2", "#009e73", "#e69f00", "#d55e00"
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
DPI = 130
OUTLIER_SPREADS = 4.0


class Diagnostics(NamedTuple):
    """Do the knobs answer the sensors as §8 expects? Pearson correlations over the updates.

    Attributes:
        reward: of Δ̃r with Δ log α; expected positive. NaN where one of the two never changes.
        loss: of max(Δ̃ℓ, 0) with −Δ log α; expected positive. NaN likewise.
        figure: both scatters, a matplotlib Figure.
    """

    reward: float
    loss: float
    figure: Figure


def knobs(trace: Columns, path: PathLike | None = None, *, title: str | None = None) -> Figure:
    """Draw loss, α, μ, σ and the plateau score over the steps, and which arm made each update.

    Args:
        trace: Columns step, loss, loss_mean, lr, momentum, noise, plateau; arm, where there is one
            and it changes.
        path: Where to save the picture; its ending says in which format.
        title: A line above it, taken literally.

    Returns:
        The figure; it belongs to no window, so nothing needs closing.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The trace is empty, or lacks a column.
    """
    names = ("step", "loss", "loss_mean", "lr", "momentum", "noise", "plateau")
    columns = _columns(trace, names)
    arms = _numbers(trace["arm"]) if "arm" in trace else []
    heights = [3, 1.5, 1.2, 1.2, 1] + [0.7] * (len(set(arms)) > 1)
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = _new_figure((9.5, 10.5))
        loss, *panels = figure.subplots(
            len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        if title is not None:
            # A path may hold dollar signs, which are no formula.
            figure.suptitle(title, fontsize=12, parse_math=False)
        _draw_loss(loss, columns)
        _draw_knobs(panels[:4], columns)
        for strip in panels[4:]:
            _draw_arms(strip, columns["step"], arms)
        panels[-1].set_xlabel("step")
        figure.align_ylabels()
        _save(figure, path)
    return figure


def diagnostics(trace: Columns, path: PathLike | None = None) -> Diagnostics:
    """Draw §8's scatters: Δ̃r against Δ log α, and max(Δ̃ℓ, 0) against −Δ log α, per update.

    Δ log α is what α did, after the change cap and the bounds. The first update of the trace has
    no α before it and is left out. A dot far from the others is the reflex to a loss that was not
    finite (method.md#non-finite): it moves α while the sensors rest.

    Args:
        trace: One row per update; columns reward_direction, loss_direction, lr.
        path: Where to save the picture; its ending says in which format.

    Returns:
        Both correlations, which the picture also shows, and the figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: The trace has fewer than two updates, or lacks a column.
    """
    columns = _columns(trace, ("reward_direction", "loss_direction", "lr"))
    if len(columns["lr"]) < 2:
        raise ValueError(
            "the trace has one update, and a change of α needs two: train for longer first"
        )
    # A rate of exactly 0, as a schedule may end with, has no logarithm; its updates are left out.
    logs = [math.log(lr) if lr > 0 else math.nan for lr in columns["lr"]]
    change = [after - before for before, after in itertools.pairwise(logs)]
    reward = columns["reward_direction"][1:]
    worsening = [max(direction, 0.0) for direction in columns["loss_direction"][1:]]
    cooling = [-step for step in change]
    result = (correlation(reward, change), correlation(worsening, cooling))
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = _new_figure((11, 5))
        left, right = figure.subplots(1, 2)
        _scatter(left, reward, change, result[0], BLUE)
        left.set_xlabel(r"reward's trend $\tilde{\Delta} r$   (better $\rightarrow$)")
        left.set_ylabel(r"$\Delta \log\,\alpha$   (bolder $\rightarrow$)")
        left.set_xticks([-1, -0.5, 0, 0.5, 1])
        left.set_title("Does α rise when the reward does?", fontsize=12)
        _scatter(right, worsening, cooling, result[1], RED)
        right.set_xlabel(r"worsening $\max(\tilde{\Delta}\ell, 0)$   (worse $\rightarrow$)")
        right.set_ylabel(r"$-\Delta \log\,\alpha$   (more careful $\rightarrow$)")
        right.set_title("Does α fall when the loss rises?", fontsize=12)
        _save(figure, path)
    return Diagnostics(*result, figure)


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r over the pairs that are finite; NaN where it is undefined."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    try:
        return statistics.correlation(*zip(*pairs, strict=True))
    except (statistics.StatisticsError, TypeError):
        # Fewer than two pairs, or a side that never changes.
        return math.nan


def range_test(
    columns: Columns,
    path: PathLike | None = None,
    *,
    found: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a range test: the loss and the alignment over the learning rate.

    Args:
        columns: lr, loss, alignment, a number each for every step.
        path: Where to save the picture; its ending says in which format.
        found: The rate that was found, marked.
        title: A line above it, taken literally.

    Returns:
        The figure; it belongs to no window, so nothing needs closing.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are no steps, or a column is missing.
    """
    read = _columns(columns, ("lr", "loss", "alignment"))
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = _new_figure((9.5, 6.5))
        panels = figure.subplots(2, 1, sharex=True)
        if title is not None:
            figure.suptitle(title, fontsize=12, parse_math=False)
        for panel, name, colour in zip(panels, ("loss", "alignment"), (BLUE, GREEN), strict=True):
            steps = [(x, y) for x, y in zip(read["lr"], read[name], strict=True) if x > 0]
            panel.plot(*zip(*steps, strict=True), color=colour, marker=".")
            panel.set_ylabel(name)
            panel.set_xscale("log")
            if found is not None:
                panel.axvline(found, color=RED, linestyle="--", label=f"found: {found:.2e}")
        panels[1].axhline(0.0, color=GREY, linewidth=1)
        panels[1].set_xlabel("learning rate")
        if found is not None:
            panels[0].legend()
        _save(figure, path)
    return figure


def write_tensorboard(
    trace: Columns, writer: Any, *, prefix: str = "adaptiverl", since: int = 0
) -> int:
    """Write every column of a trace as scalars, at the step of each update.

    The trace holds the last updates, so a call now and then during training misses none and
    ``since`` keeps it from writing any twice::

        last = plots.write_tensorboard(optimizer.trace(), writer, since=last)

    Args:
        trace: The columns; one in which no number is finite, as the reward's where there is none,
            is left out.
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
        prefix: The tags are ``prefix/column``.
        since: Updates up to this step are left out.

    Returns:
        The last step written so far, for the next call's ``since``.
    """
    columns = {name: _numbers(trace[name]) for name in trace}
    steps = [int(step) for step in columns.pop("step")]
    for name, values in columns.items():
        if any(map(math.isfinite, values)):
            for step, value in zip(steps, values, strict=True):
                if step > since:
                    writer.add_scalar(f"{prefix}/{name}", value, step)
    return max([since, *steps])


def _matplotlib() -> Any:
    """Matplotlib, or an error that says how to get it."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            f"pictures need matplotlib, which cannot be imported ({error}): pip install matplotlib"
        ) from error
    return matplotlib


def _new_figure(size: tuple[float, float]) -> Figure:
    """A figure outside pyplot: no window, no global state, no backend chosen for the user."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _save(figure: Figure, path: PathLike | None) -> None:
    if path is not None:
        figure.savefig(path, dpi=DPI)


def _columns(trace: Columns, names: Sequence[str]) -> dict[str, list[float]]:
    """The columns as lists of floats; refuses an empty trace and names a missing column."""
    missing = [name for name in names if name not in trace]
    if missing:
        raise ValueError(
            f"the trace lacks the columns {', '.join(missing)}; it has {', '.join(trace)}"
        )
    columns = {name: _numbers(trace[name]) for name in names}
    if not columns[names[0]]:
        raise ValueError(
            "the trace is empty: the knobs have not been updated yet. Observe losses and take "
            "Control.every optimizer steps first; after a load it starts empty again"
        )
    return columns


def _numbers(column: Any) -> list[float]:
    values = column.tolist() if hasattr(column, "tolist") else column
    return [float(value) for value in values]


def _draw_loss(axes: Axes, columns: dict[str, list[float]]) -> None:
    steps, losses, means = columns["step"], columns["loss"], columns["loss_mean"]
    bad = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
    finite = [loss if math.isfinite(loss) else math.nan for loss in losses]
    axes.plot(steps, finite, color=GREY, linewidth=0.8, alpha=0.7, label=r"loss $\ell$")
    axes.plot(steps, means, color="black", label=r"its slow average $\bar\ell$")
    if bad:
        axes.plot(
            bad,
            [0.02] * len(bad),
            "x",
            transform=axes.get_xaxis_transform(),
            color=RED,
            label=f"not finite ({len(bad):,})",
        )
    axes.set_ylabel("loss")
    low, high = _view(losses, means)
    axes.set_ylim(low, high)
    axes.legend(loc="upper right", fontsize=10, ncols=3)


def _view(losses: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    """Limits that hold the curve's body: one spike must not flatten everything else."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if not finite:
        return 0.0, 1.0
    last = len(finite) - 1
    body_low, body_high = finite[round(0.01 * last)], finite[round(0.99 * last)]
    reach = OUTLIER_SPREADS * (body_high - body_low)
    low = max(finite[0], min(body_low - reach, *means))
    high = min(finite[-1], max(body_high + reach, *means))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _draw_knobs(panels: Sequence[Axes], columns: dict[str, list[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    rate, momentum, noise, plateau = panels
    steps = columns["step"]
    for axes, name, color in (
        (rate, "lr", BLUE),
        (momentum, "momentum", GREEN),
        (noise, "noise", ORANGE),
        (plateau, "plateau", GREY),
    ):
        # A knob keeps its value until the next update.
        axes.plot(steps, columns[name], color=color, drawstyle="steps-post")
    _scale_rate(rate, columns["lr"])
    rate.set_ylabel("learning\nrate α")
    momentum.set_ylabel("momentum\nμ")
    momentum.yaxis.set_major_locator(MaxNLocator(4))
    noise.set_ylabel("noise σ\n(share of RMS\nof gradient)")
    noise.set_ylim(0, 1.15 * max(columns["noise"]) or 0.01)
    noise.yaxis.set_major_locator(MaxNLocator(3))
    noise.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    plateau.set_ylabel("plateau\nscore P")
    plateau.set_ylim(-0.05, 1.05)
    plateau.set_yticks([0, 0.5, 1])
    plateau.set_xlim(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)


def _draw_arms(axes: Axes, steps: Sequence[float], arms: Sequence[float]) -> None:
    axes.plot(steps, arms, "|", color=RED, markersize=7)
    axes.set_ylabel("arm")
    axes.set_ylim(-0.6, max(arms) + 0.6)
    axes.set_yticks(range(int(max(arms)) + 1))


def _scale_rate(axes: Axes, rates: Sequence[float]) -> None:
    """Logarithmic, as α moves; with enough labels where it moved by less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [rate for rate in rates if rate > 0]
    if not positive:
        return
    low, high = min(positive), max(positive)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.25)
    if high / low < 30:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scatter(
    axes: Axes, x: Sequence[float], y: Sequence[float], coefficient: float, color: str
) -> None:
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.plot(x, y, "o", color=color, markersize=5, alpha=0.35, markeredgewidth=0)
    if math.isnan(coefficient):
        text = "correlation undefined:\none side never changes"
    else:
        text = f"correlation {coefficient:+.2f}\n{len(x):,} updates"
    axes.annotate(
        text,
        (0.03, 0.97),
        xycoords="axes fraction",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
