"""Which GPUs a program may use, by CUDA's own variables.

``CUDA_VISIBLE_DEVICES`` set and naming nothing (empty, -1) means that there is no GPU for it; not
set, that there are all. Its numbers count in CUDA's order: with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``
that is NVML's, else the fastest GPU comes first (``FASTEST_FIRST``, the default), and CUDA alone
knows which that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"
_NOTHING = frozenset(("", "-1", "none", "void", "NoDevFiles"))


def visible_devices(value: str | None) -> tuple[str, ...] | None:
    """The devices that ``CUDA_VISIBLE_DEVICES`` names; ``None`` where it is unset (all)."""
    if value is None:
        return None
    names = []
    for part in value.split(","):
        name = part.strip()
        if name in _NOTHING:
            break  # CUDA stops at the first entry that names nothing
        names.append(name)
    return tuple(names)


def order_is_unclear(
    names: Sequence[str], boards: Collection[str], environ: Mapping[str, str]
) -> bool:
    """Whether the numbers among ``names`` may mean other GPUs to CUDA than to NVML: there are
    ``boards`` of several kinds (by their names), and CUDA was not told to count as NVML does."""
    counted = any(name.isdigit() for name in names)
    return counted and len(set(boards)) > 1 and environ.get(ORDER_VARIABLE) != BY_BUS
