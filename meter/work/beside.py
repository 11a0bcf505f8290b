"""Puts the plugin beside any vLLM: a directory that only has to be on its ``PYTHONPATH``.

The plugin is copied under a name of its own, so that nothing in vLLM's environment is shadowed, and
with the metadata by which vLLM finds plugins. If joulemeter is installed there as well, vLLM sees
one distribution of that name, and registering twice does no harm anyway.
"""

from __future__ import annotations

from pathlib import Path

from meter import __version__
from meter.system.files import replace_file

#: Under which vLLM knows it, and VLLM_PLUGINS names it.
NAME = "joulemeter"
PACKAGE = "joulemeter_vllm"
_MODE = 0o644  # nothing in it is secret, and the server may be another user's
_METADATA = f"""Metadata-Version: 2.1
Name: joulemeter
Version: {__version__}
Summary: joulemeter's plugin for vLLM, put beside it
"""
_ENTRY_POINTS = f"""[vllm.general_plugins]
{NAME} = {PACKAGE}:register
"""


def directory(target: Path) -> Path:
    """Make ``target`` that directory (again) and return it. Raises ``OSError``."""
    package = target / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    for source in (Path(__file__).parent / "vllm").glob("*.py"):
        replace_file(package, source.name, source.read_bytes(), _MODE)
    metadata = target / f"joulemeter-{__version__}.dist-info"
    metadata.mkdir(exist_ok=True)
    replace_file(metadata, "METADATA", _METADATA.encode(), _MODE)
    replace_file(metadata, "entry_points.txt", _ENTRY_POINTS.encode(), _MODE)
    return target
