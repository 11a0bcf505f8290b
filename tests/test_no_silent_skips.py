"""A test that did not run is never taken for one that passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SKIPS = {
    "in a test": "import pytest\ndef test_it():\n    pytest.skip('no compiler')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='no compiler')\ndef test_it(): pass\n",
    "in a fixture": (
        "import pytest\n@pytest.fixture\ndef cc(): pytest.skip('no compiler')\n"
        "def test_it(cc): pass\n"
    ),
    "of a module": "import pytest\npytest.skip('no compiler', allow_module_level=True)\n",
}


def _run(tmp_path: Path, text: str, ci: str, *options: str) -> tuple[int, str]:
    """The exit code and the output of pytest on a file of its own, with the project's plugin."""
    (tmp_path / "test_skipping.py").write_text(text + "def test_fine(): pass\n", encoding="utf-8")
    plugins = ("-p", "tests.no_silent_skips", "-p", "no:cacheprovider", "--rootdir", tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-ra",
            *plugins,
            *options,
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("text", SKIPS.values(), ids=SKIPS)
def test_in_ci_a_skip_is_a_failure_with_its_reason(tmp_path: Path, text: str) -> None:
    """Wherever it comes from; pytest's own exit code says so."""
    code, said = _run(tmp_path, text, "true")
    assert code in {1, 2}
    assert "skipped, which is a failure where CI=true" in said
    assert "no compiler" in said


def test_in_ci_a_skip_in_a_worker_is_a_failure_too(tmp_path: Path) -> None:
    """The suite runs in parallel."""
    code, said = _run(tmp_path, SKIPS["in a fixture"], "true", "-n", "1", "-p", "xdist")
    assert code == 1
    assert "no compiler" in said


def test_elsewhere_a_skip_is_named_and_counted_in_the_last_line(tmp_path: Path) -> None:
    """With its reason above it."""
    code, said = _run(tmp_path, SKIPS["by a mark"], "")
    assert code == 0
    assert "no compiler" in said
    assert "1 passed, 1 skipped" in said.splitlines()[-1]
