"""The diagnosis for a person: a line for each part, and the next step, in 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from meter.doctor.diagnosis import Diagnosis
from meter.doctor.finding import Finding, Level
from meter.model import Fidelity

_STYLES = {Level.GOOD: "bold green", Level.LESS: "bold yellow", Level.NO: "bold red"}
_WIDTH = 80


def show(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print it, no wider than 80 columns."""
    console = console or Console(highlight=False)
    console.width = min(_WIDTH, console.width)
    console.print(Text(_verdict(diagnosis), style="bold"))
    console.print()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for finding in diagnosis.findings:
        table.add_row(
            finding.area, Text(finding.level, style=_STYLES[finding.level]), _said(finding)
        )
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if diagnosis.next_step is not None:
        console.print()
        console.print(Text("next step: ", style="bold") + Text(diagnosis.next_step))


def _said(finding: Finding) -> Text:
    text = Text(finding.text)
    if finding.quality is not None:
        text.append(f" ({finding.quality})")
    if finding.step is not None:
        text.append(f"\n-> {finding.step}", style="dim")
    return text


def _verdict(diagnosis: Diagnosis) -> str:
    """One sentence: what a server started here would be metered by."""
    if diagnosis.quality is None:
        return "No energy of this machine's GPUs can be had as it is."
    place = "the GPUs" if diagnosis.boundary == "gpu" else "the CPU"
    energy = f"Energy of {place}: {diagnosis.quality}."
    if diagnosis.fidelity is Fidelity.STEP:
        return f"{energy} Requests: each has a receipt."
    return f"{energy} Requests: not seen."
