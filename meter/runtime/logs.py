"""The meter's own messages: to stderr, JSON off a terminal, and few of them."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from meter.runtime.stdio import Unfailing


def configure_logs(level: str) -> None:
    """One structured line a message, nothing below ``level``: the server's logs stay readable."""
    stream: Any = Unfailing(sys.stderr)
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    chain: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not sys.stderr.isatty():
        chain.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*chain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
