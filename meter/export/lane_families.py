"""How each device is polled, as Prometheus families: whose it is, how old its last reading is, and
whether its counter can be believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

from meter.export.families import counter, gauge
from meter.export.meter_families import GPU_LABELS
from meter.export.state import State
from meter.power.lane import LaneState


def lane_families(state: State, now_ns: int) -> Iterator[Metric]:
    """How the polling of each device goes, and whether its counter can be believed."""
    ours = [lane for lane in state.health.lanes if lane.owned]
    yield _of_lanes(
        "joulemeter_device_owned",
        "1 where this meter meters the device, 0 where another meter of this host does: then "
        "nothing else is exported of it here.",
        ((lane, float(lane.owned)) for lane in state.health.lanes),
    )
    yield _of_lanes(
        "joulemeter_device_age_seconds",
        "Time since the last reading of the device's energy.",
        ((lane, _age_s(lane.good_ns, now_ns)) for lane in ours),
    )
    yield _of_lanes(
        "joulemeter_gpu_energy_gap_ratio",
        "By how much the energy counter moved more (or less, below 0) than the integral of the "
        "instant power, as a share of that, over the last half minute; absent where unknown.",
        ((lane, lane.gap) for lane in ours),
    )
    yield _of_lanes(
        "joulemeter_gpu_energy_still_seconds",
        "How long the energy counter has been stuck: not moving while the device draws power.",
        ((lane, lane.still_s) for lane in ours),
    )
    yield counter(
        "joulemeter_samples_missed",
        "Polls of energy counters that were left out because the one before took too long.",
        GPU_LABELS,
        (((lane.device.index, lane.device.id), lane.missed) for lane in ours),
    )


def host_families(state: State) -> Iterator[Metric]:
    """What the host's CPU took; absent where it is not read."""
    host = state.health.host
    if host is None:
        return
    quality = host.quality.value
    yield counter(
        "joulemeter_host_cpu_energy_joules",
        "Energy of this host's CPU packages and DRAM since the meter began: what the engine claims "
        "(its part of the idle power and its processes' part of the rest), and other.",
        ("share", "quality"),
        [(("claimed", quality), host.claimed_uj / 1e6), (("other", quality), host.other_uj / 1e6)],
    )
    if host.idle_w is not None:
        yield gauge(
            "joulemeter_host_cpu_idle_watts",
            "Idle power of this host's CPU, as learned: the lowest mean over a second so far.",
            ("quality",),
            [((quality,), host.idle_w)],
        )


def _age_s(t_ns: int | None, now_ns: int) -> float | None:
    return None if t_ns is None else max(0, now_ns - t_ns) / 1e9


def _of_lanes(name: str, help_: str, rows: Iterable[tuple[LaneState, float | None]]) -> Metric:
    """A gauge by device, of those where the value is known."""
    known = (
        ((lane.device.index, lane.device.id), value) for lane, value in rows if value is not None
    )
    return gauge(name, help_, GPU_LABELS, known)
