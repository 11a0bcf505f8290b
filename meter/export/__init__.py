"""What the world sees: Prometheus, the HTTP API, the page.

``PROMETHEUS_MULTIPROC_DIR``, which an operator may have set for vLLM, would switch the Prometheus
client library into a mode without custom collectors, so it leaves this process's environment before
the library can be imported. ``SET_ASIDE`` keeps it for the engine that is started.
"""

import os

SERVER = "joulemeter"
DEFAULT_PORT = 29401
"""Outside the ranges of ephemeral and node ports; dcgm-exporter has 9400, a second one 9401."""
PORTS_TRIED = 20
"""Where the default is taken: so many from there on are tried, and looked at by who looks for us.
"""

SET_ASIDE = {
    name: os.environ.pop(name)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    if name in os.environ
}
