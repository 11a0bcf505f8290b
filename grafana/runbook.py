"""The runbook as a page for Prometheus to serve: its alerts lead there.

RUNBOOK.md is the source. It is written in a small part of Markdown, which is all that is read here:
headings, paragraphs, numbered lists, ``code``, *emphasis* and links.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

RUNBOOK = Path(__file__).parent.parent / "deploy" / "prometheus" / "RUNBOOK.md"

_HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Joulemeter: runbook</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
code { background: #8882; padding: 0 .2em; overflow-wrap: anywhere }
h2:target { background: #fd08 }
</style>
<!-- Written by `make dashboards` from RUNBOOK.md: edit that. -->
"""


def page() -> str:
    """RUNBOOK.md as HTML; each alert's section has the alert's name, in small letters, for id."""
    blocks = RUNBOOK.read_text(encoding="utf-8").strip().split("\n\n")
    return _HEAD + "\n".join(map(_block, blocks)) + "\n</html>\n"


def _block(text: str) -> str:
    heading = re.fullmatch(r"(#+) (.+)", text)
    if heading:
        level, title = len(heading[1]), heading[2]
        return f'<h{level} id="{escape(title.lower())}">{_inline(title)}</h{level}>'
    if text.startswith("1. "):
        items = re.split(r"(?m)^\d+\. ", text)[1:]
        return "<ol>" + "".join(f"<li>{_inline(item.strip())}</li>" for item in items) + "</ol>"
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    """Prometheus takes the page for a template: no brace may stand in it twice."""
    made = escape(" ".join(text.split()), quote=False).replace("{{", "&#123;{")
    made = re.sub(r"`([^`]+)`", r"<code>\1</code>", made)
    made = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", made)
    made = re.sub(r"(?<!\*)\*([^*]+)\*", r"<i>\1</i>", made)
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", made)
