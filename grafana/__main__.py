"""Write the boards' JSON. Run by ``make dashboards``; a test proves that nothing else edits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grafana import overview

HERE = Path(__file__).parent
BOARDS: dict[str, Callable[[], str]] = {overview.UID: overview.overview}


def main(directory: Path = HERE / "dashboards") -> None:
    """Write every board into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for uid, board in BOARDS.items():
        (directory / f"{uid}.json").write_text(board(), encoding="utf-8")


if __name__ == "__main__":
    main()
