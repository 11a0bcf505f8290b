"""The pure core: attributes every joule that the counters moved. See ``attributor``."""

from meter.attribution.attributor import Attributor
from meter.attribution.calibration import Fit, fit_intervals

__all__ = ["Attributor", "Fit", "fit_intervals"]
