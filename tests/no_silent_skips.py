"""A pytest plugin: with ``CI=true`` a test that is skipped has failed.

Elsewhere a skip is named by ``-ra`` and counted in pytest's last line.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def _failed_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped" and os.environ.get("CI") == "true":
        place = report.longrepr
        reason = place[2] if isinstance(place, tuple) else place
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, which is a failure where CI=true: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test, its set-up and its end."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _failed_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a whole module."""
    report = yield
    _failed_in_ci(report)
    return report
