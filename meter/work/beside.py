"""Puts the plugin beside any vLLM: a directory that only has to be on its ``PYTHONPATH``.

The plugin is copied under a name of its own, so that nothing in vLLM's environment is shadowed, and
with the metadata by which vLLM finds plugins. If joulemeter is installed there as well, vLLM sees
one distribution of that name, and registering twice does no harm anyway.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from meter import __version__

#: Under which vLLM knows it, and VLLM_PLUGINS names it.
NAME = "joulemeter"
PACKAGE = "joulemeter_vllm"
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
        shutil.copyfile(source, package / source.name)
    metadata = target / f"joulemeter-{__version__}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(_METADATA, encoding="utf-8")
    (metadata / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
    return target
