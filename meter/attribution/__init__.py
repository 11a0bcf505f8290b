"""The pure core: attributes every joule that the counters moved. See ``attributor``."""

from meter.attribution.attributor import Attributor
from meter.attribution.fit import Fit

__all__ = ["Attributor", "Fit"]
