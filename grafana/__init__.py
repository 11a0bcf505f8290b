"""The dashboards, as code. ``python -m grafana`` writes ``grafana/dashboards/`` anew."""

import warnings

# The classic model is chosen: Grafana 10 to 13 read it. The SDK advises the newer one on import,
# which Grafana 11 and 12 cannot.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    from grafana_foundation_sdk.builders import dashboard, heatmap  # noqa: F401
