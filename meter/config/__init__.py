"""Settings: what there is (``settings``), how it is read (``load``) and explained (``show``)."""

from meter.config.load import CONFIG_VARIABLE, ConfigError, load, variable
from meter.config.settings import (
    CalibrationSettings,
    EngineSettings,
    HttpSettings,
    PowerSettings,
    PricingSettings,
    Settings,
    known_keys,
)

__all__ = [
    "CONFIG_VARIABLE",
    "CalibrationSettings",
    "ConfigError",
    "EngineSettings",
    "HttpSettings",
    "PowerSettings",
    "PricingSettings",
    "Settings",
    "known_keys",
    "load",
    "variable",
]
