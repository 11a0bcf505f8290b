"""Write the boards, the recording rules and the runbook's page. Run by ``make dashboards``; tests
prove that nothing else edits them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grafana import gpus, health, models, overview
from grafana.rules import rules
from grafana.runbook import page

HERE = Path(__file__).parent
BOARDS: dict[str, Callable[[], str]] = {
    overview.UID: overview.overview,
    models.UID: models.models,
    gpus.UID: gpus.gpus,
    health.UID: health.health,
}
RULES = HERE.parent / "deploy" / "prometheus" / "joulemeter.rules.yml"
RUNBOOK_PAGE = RULES.parent / "consoles" / "joulemeter-runbook.html"


def write_boards(directory: Path = HERE / "dashboards") -> None:
    """Write every board into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for uid, board in BOARDS.items():
        (directory / f"{uid}.json").write_text(board(), encoding="utf-8")


if __name__ == "__main__":
    write_boards()
    RULES.write_text(rules(), encoding="utf-8")
    RUNBOOK_PAGE.parent.mkdir(exist_ok=True)
    RUNBOOK_PAGE.write_text(page(), encoding="utf-8")
