"""The demo's report as one HTML file: picture, table, settings and versions, nothing fetched."""

from __future__ import annotations

import base64
from dataclasses import asdict
from html import escape

from bench.studies.demo_report import Report, summary, table, versions

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>AdaptiveRL: the demo's report</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }}
img {{ width: 100%; }}
pre {{ padding: .7rem; overflow-x: auto; background: #f4f4f4; }}
</style>
<h1>Three ways to train one small GPT</h1>
<p>The same initial weights, the same batches in the same order, every method starting from the
same learning rate. The held-out loss is taken on text that none of them trained on.</p>
<pre>{table}</pre>
<ul>{summary}</ul>
<p>One seed, one text. Differences between seeds are often larger than differences between
methods; try <code>SEED=1</code> and <code>SEED=2</code> before believing a small one.</p>
<img alt="Held-out loss of the three methods over the steps; under it the learning rate, the
momentum, the noise and the plateau score" src="data:image/png;base64,{picture}">
<p>The dotted line is the best held-out loss that the constant rate ever reached. Learning rate α
and momentum μ go up while the smoothed loss falls and down when it rises. Noise σ is added to the
gradient, as a share of its RMS, once the plateau score P says that the loss is flat and quiet.
Try a bad start: <code>LR=1e-5</code> or <code>LR=3e-2</code>.</p>
<pre>{command}</pre>
<p>{seconds:.0f} seconds in all. Every number is in <code>demo.json</code> beside this file.</p>
<pre>{details}</pre>
</html>
"""


def page(report: Report, picture: bytes) -> str:
    """The HTML; ``picture`` is a PNG's bytes."""
    device = report.settings.device
    parameters = {"parameters": report.parameters}
    shown = {**report.text, **parameters, **asdict(report.settings), **versions(device)}
    return PAGE.format(
        table=escape(table(report)),
        summary="".join(f"<li>{escape(line)}</li>" for line in summary(report)),
        picture=base64.b64encode(picture).decode(),
        command=escape(report.command),
        seconds=report.seconds,
        details=escape("\n".join(f"{name}: {value}" for name, value in shown.items())),
    )
