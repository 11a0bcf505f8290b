"""The pure core: attributes every joule that the counters moved. See ``attributor``."""

from meter.attribution.attributor import Attributor
from meter.attribution.boundaries import Boundaries
from meter.attribution.fit import Fit
from meter.attribution.learned import Learned, from_facts, to_facts
from meter.attribution.order import WINDOW_NS

__all__ = [
    "WINDOW_NS",
    "Attributor",
    "Boundaries",
    "Fit",
    "Learned",
    "from_facts",
    "to_facts",
]
