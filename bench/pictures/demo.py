"""The picture: held-out loss of the three, and under it what the knobs did."""

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from bench.pictures import picture
from bench.studies.demo_report import ADAPTIVE, CONSTANT, COSINE, Report, Run

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = {CONSTANT: "#7a7a7a", COSINE: "#e69f00", ADAPTIVE: "#0072b2"}


def draw(report: Report, path: Path) -> None:
    with picture(path, 9.5, 12, dpi=130, **{"font.size": 11, "lines.linewidth": 1.9}) as figure:
        loss, *knobs = figure.subplots(
            5, 1, sharex=True, gridspec_kw={"height_ratios": (3.6, 1.2, 1, 1, 1)}
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
        axes.plot(run.eval_steps, run.held_out, color=COLOURS[run.method], label=run.method)
    if math.isfinite(report.target):
        axes.axhline(
            report.target,
            color=COLOURS[CONSTANT],
            linestyle=":",
            linewidth=1.4,
            label=f"best of the constant rate, {report.target:.3f}",
        )
    axes.set_ylabel("held-out loss\n(nats per character)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10)
    finite = [loss for run in report.runs for loss in run.held_out if math.isfinite(loss)]
    if max(finite, default=1.0) > 2 * max(run.held_out[0] for run in report.runs):
        # A rate that is far too high sends the loss into the hundreds.
        axes.set_yscale("log")


def _knobs(panels: list[Axes], report: Report) -> None:
    rate, momentum, noise, plateau = panels
    for run in report.runs:
        _line(rate, run, "lr")
        _line(momentum, run, "momentum")
        _line(noise, run, "noise")
    ours = next(run for run in report.runs if run.method == ADAPTIVE)
    _line(plateau, ours, "plateau")
    rate.set_yscale("log")
    rate.yaxis.set_minor_formatter(NullFormatter())
    # The cosine goes to zero; a tenth below what the controller did is low enough to see it go.
    rate.set_ylim(bottom=min([report.request.lr, *ours.trace["lr"]]) / 10)
    rate.set_ylabel("learning\nrate α")
    momentum.set_ylabel("momentum\nμ (β₁)")
    noise.set_ylabel("noise σ\n(share of the\ngradient's RMS)")
    plateau.set_ylabel("plateau\nscore P")
    noise.set_ylim(0, 1.15 * max(ours.trace["noise"], default=0.0) or 0.01)
    noise.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    plateau.set_ylim(-0.03, 1.03)
    plateau.set_yticks([0, 0.5, 1])
    for axes in (momentum, noise):
        axes.yaxis.set_major_locator(MaxNLocator(4))


def _line(axes: Axes, run: Run, column: str) -> None:
    steps, values = run.trace["step"], run.trace[column]
    if column == "lr":
        # A rate of exactly zero, the cosine's end, has no place on a log scale.
        values = [value if value > 0 else math.nan for value in values]
    axes.plot(
        steps,
        values,
        color=COLOURS[run.method],
        drawstyle="steps-post" if run.method == ADAPTIVE else "default",
        linestyle="-" if run.method == ADAPTIVE else "--",
        zorder=3 if run.method == ADAPTIVE else 2,
    )
