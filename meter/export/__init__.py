"""What the world sees: Prometheus, the HTTP API, the page.

``PROMETHEUS_MULTIPROC_DIR``, which an operator may have set for vLLM, would switch the Prometheus
client library into a mode without custom collectors, so it leaves this process's environment before
the library can be imported. ``SET_ASIDE`` keeps it for the engine that is started.
"""

import os

SET_ASIDE = {
    name: os.environ.pop(name)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    if name in os.environ
}
