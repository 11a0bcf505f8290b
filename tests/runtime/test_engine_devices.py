"""Which devices belong to an engine."""

import pytest

from meter.model import Device, Quality
from meter.runtime.devices import owned, wanted

FOUND = tuple(
    Device(f"GPU-{letter * 8}", "H100", Quality.MEASURED, index=str(i))
    for i, letter in enumerate("abc")
)


def test_configured_devices_come_first():
    """Then what the command may use, then all."""
    environ = {"CUDA_VISIBLE_DEVICES": "2"}
    assert wanted(("0",), ("1",), environ) == ("0",)
    assert wanted((), ("1",), environ) == ("1",)
    assert wanted((), (), environ) == ("2",)
    assert wanted((), (), {}) == ()


@pytest.mark.parametrize(
    ("configured", "cuda", "indices"),
    [
        ((), None, "012"),
        (("1",), "0", "1"),
        ((), "0,2", "02"),
        ((), "GPU-bbbb", "1"),
        ((), "7", "012"),
        ((), "", "012"),
    ],
)
def test_an_engine_owns_what_names_it_else_all(configured, cuda, indices):
    """By index, by UUID or the beginning of one; a name that fits nothing narrows nothing."""
    ids = tuple(FOUND[int(i)].id for i in indices)
    assert owned(FOUND, configured, cuda) == ids
