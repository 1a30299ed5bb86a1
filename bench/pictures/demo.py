"""The picture: held-out loss of the four, and under it what the knobs did."""

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from bench.pictures import picture
from bench.studies.demo_report import (
    CONSTANT,
    COSINE,
    FIND_LR,
    LOSS_LAW,
    Report,
    Run,
    loss_text,
)

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = {CONSTANT: "#7a7a7a", COSINE: "#e69f00", FIND_LR: "#0072b2", LOSS_LAW: "#009e73"}
# Where lines of one panel lie on each other, these tell them apart.
DASHES = {CONSTANT: "--", COSINE: "--", FIND_LR: "-", LOSS_LAW: "-"}
LEGEND = {FIND_LR: f"{FIND_LR}, given no rate"}


def draw(report: Report, path: Path) -> None:
    with picture(path, 9.5, 12, dpi=130, **{"font.size": 11, "lines.linewidth": 1.9}) as figure:
        loss, *knobs = figure.subplots(
            5, 1, sharex=True, gridspec_kw={"height_ratios": (3.6, 2, 1, 1, 1)}
        )
        _title(figure, report)
        _losses(loss, report)
        _knobs(knobs, report)
        knobs[-1].set_xlabel("optimizer step")
        knobs[-1].set_xlim(0, report.request.task.steps)
        figure.align_ylabels()


def _title(figure: Figure, report: Report) -> None:
    request = report.request
    what = f"A GPT of {report.parameters:,} parameters learns {report.text['source']}"
    how = f"starting rate {request.lr:g}, seed {request.seed}, {request.task.device}"
    lines = [*textwrap.wrap(what, 90), how]
    # A path may hold dollar signs, which are no formula.
    figure.suptitle("\n".join(lines), fontsize=12, parse_math=False)


def _losses(axes: Axes, report: Report) -> None:
    for run in report.runs:
        label = f"{LEGEND.get(run.method, run.method)}: {loss_text(run.held_out[-1])}"
        axes.plot(run.eval_steps, run.held_out, color=COLOURS[run.method], label=label)
    if math.isfinite(report.target):
        axes.axhline(
            report.target,
            color=COLOURS[CONSTANT],
            linestyle=":",
            linewidth=1.4,
            label=f"best of the constant rate: {loss_text(report.target)}",
        )
    axes.set_ylabel("held-out loss\n(nats per character)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10)
    _scale(axes, report)


def _scale(axes: Axes, report: Report) -> None:
    finite = [loss for run in report.runs for loss in run.held_out if math.isfinite(loss)]
    if max(finite, default=1.0) > 2 * max(run.held_out[0] for run in report.runs):
        # A rate that is far too high sends the loss into the hundreds.
        axes.set_yscale("log")
        return
    # All begin with the same steep fall; what tells them apart comes after it.
    later = report.request.task.steps / 10
    shown = [
        loss
        for run in report.runs
        for step, loss in zip(run.eval_steps, run.held_out, strict=True)
        if step >= later and math.isfinite(loss)
    ]
    if shown:
        axes.set_ylim(top=max(shown) + 0.05 * (max(shown) - min(shown)))


def _knobs(panels: list[Axes], report: Report) -> None:
    rate, momentum, noise, plateau = panels
    runs = {run.method: run for run in report.runs}
    found, steered = runs[FIND_LR], runs[LOSS_LAW]
    for run in report.runs:
        _line(rate, run, "lr")
        _line(momentum, run, "momentum")
        _line(noise, run, "noise")
    _line(plateau, steered, "plateau")
    _search(rate, found, report.request.task.steps)
    rate.set_yscale("log")
    rate.yaxis.set_minor_formatter(NullFormatter())
    # Schedules go to zero; a tenth below what the laws chose is low enough to see them go.
    rates = [report.request.lr, *steered.trace["lr"], *_chosen(found)]
    rate.set_ylim(bottom=min(rates) / 10)
    rate.set_ylabel("learning\nrate α")
    momentum.set_ylabel("momentum\nμ (β₁)")
    noise.set_ylabel("noise σ\n(share of the\ngradient's RMS)")
    plateau.set_ylabel("plateau\nscore P")
    noise.set_ylim(0, 1.15 * max(steered.trace["noise"], default=0.0) or 0.01)
    noise.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    plateau.set_ylim(-0.03, 1.03)
    plateau.set_yticks([0, 0.5, 1])
    for axes in (momentum, noise):
        axes.yaxis.set_major_locator(MaxNLocator(4))


def _search(axes: Axes, run: Run, steps: int) -> None:
    """Shade the steps before the rate was held; the trace has a row every few of them."""
    end, words = run.held_from, "find_lr searches"
    if end is not None:
        words += f" until step {end:g}, then its weights go back; it holds, and cools down"
    axes.axvspan(0, steps if end is None else end, color=COLOURS[FIND_LR], alpha=0.12, linewidth=0)
    axes.annotate(
        words,
        (0.01, 0.04),
        xycoords="axes fraction",
        fontsize=10,
        color=COLOURS[FIND_LR],
        bbox={"color": "white", "alpha": 0.7, "pad": 1},
    )


def _chosen(run: Run) -> list[float]:
    """The rates up to the highest, without the cooldown."""
    rates, peak = run.trace["lr"], max(run.trace["lr"], default=0.0)
    return rates[: rates.index(peak) + 1] if rates else []


def _line(axes: Axes, run: Run, column: str) -> None:
    steps, values = run.trace["step"], run.trace[column]
    if column == "lr":
        # A rate of exactly zero, a schedule's end, has no place on a log scale.
        values = [value if value > 0 else math.nan for value in values]
    is_ours = run.method in (FIND_LR, LOSS_LAW)
    axes.plot(
        steps,
        values,
        color=COLOURS[run.method],
        # The loss law moves its knobs at these steps, find_lr its rate at every step between.
        drawstyle="steps-post" if run.method == LOSS_LAW else "default",
        linestyle=DASHES[run.method],
        zorder=3 if is_ours else 2,
    )
