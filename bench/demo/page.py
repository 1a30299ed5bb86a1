"""The report as one HTML file: picture, table, settings and versions, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from pathlib import Path

from bench.demo.report import Report, cells, headings, summary

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AdaptiveRL: the demo's report</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
img {{ width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #ddd; text-align: left; }}
.results td:not(:first-child), .results th:not(:first-child) {{ text-align: right; }}
code, pre {{ font: .9em ui-monospace, monospace; background: #f4f4f4; }}
pre {{ padding: .7rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>Three ways to train one small GPT</h1>
<p>A GPT of {parameters:,} parameters learned {source}, character by character, three times: the
same initial weights, the same batches in the same order, {steps} steps each, every method
starting from the learning rate {lr:g}. The held-out loss is taken on text that none of them
trained on.</p>
<h2>What came out</h2>
<div class="scroll"><table class="results">{results}</table></div>
<ul>{summary}</ul>
<p>One seed, one text. Differences between seeds are often larger than differences between
methods; try <code>SEED=1</code> and <code>SEED=2</code> before believing a small one.</p>
<h2>The picture</h2>
<img alt="Held-out loss of the three methods over the steps; under it the learning rate, the
momentum, the noise and the plateau score" src="data:image/png;base64,{picture}">
<h2>What to look at</h2>
<ul>
<li><b>Held-out loss.</b> Lower is better. The dotted line is the best the constant rate ever
reached; where a curve crosses it is the table's third number.</li>
<li><b>Learning rate α.</b> AdaptiveAdamW raises it while the smoothed loss falls and lowers it
when the loss rises; by default it may go from a hundredth of the start to ten times it.</li>
<li><b>Momentum μ</b> follows the same signals within narrow bounds.</li>
<li><b>Noise σ</b> is added to the gradient, as a share of its RMS. It leaves zero only when the
plateau score P says that the loss is flat and quiet.</li>
<li><b>A bad start.</b> Run it again with <code>LR=1e-5</code> or <code>LR=3e-2</code>: the same
bad rate is given to all three, and the picture shows who recovers.</li>
</ul>
<h2>How it was made</h2>
<pre>{command}</pre>
<p>{seconds:.0f} seconds in all. Every number is in <code>demo.json</code> beside this file.</p>
<div class="scroll"><table>{details}</table></div>
</body>
</html>
"""


def write_page(report: Report, picture: Path, path: Path) -> None:
    """Write the report as one file that holds its picture."""
    path.write_text(page(report, picture.read_bytes()), encoding="utf-8")


def page(report: Report, picture: bytes) -> str:
    """Return the HTML; ``picture`` is a PNG's bytes."""
    return PAGE.format(
        parameters=report.parameters,
        source=escape(report.text.source),
        steps=report.settings.steps,
        lr=report.settings.lr,
        results=_row(headings(report), "th") + "".join(_row(row) for row in cells(report)),
        summary="".join(f"<li>{escape(line)}</li>" for line in summary(report)),
        picture=base64.b64encode(picture).decode(),
        command=escape(report.command),
        seconds=report.seconds,
        details="".join(_row(pair) for pair in _details(report)),
    )


def _row(texts: Iterable[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"


def _details(report: Report) -> list[tuple[str, str]]:
    text = report.text
    split = f"{len(text.train):,} characters to train on, {len(text.held_out):,} held out"
    return [
        ("text", text.source),
        ("split", split),
        ("vocabulary", f"{len(text.vocabulary)} characters; {text.replaced:,} rarer replaced"),
        ("SHA-256 of the text", text.sha256),
        *((name.replace("_", " "), str(value)) for name, value in asdict(report.settings).items()),
        *report.versions.items(),
    ]
