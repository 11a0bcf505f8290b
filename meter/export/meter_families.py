"""The devices and the meter itself as Prometheus families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import InfoMetricFamily, Metric

from meter import __version__
from meter.export.families import Labels, counter, gauge
from meter.export.state import State, coefficients_by_model
from meter.model import DeviceState

GPU_LABELS = ("gpu", "gpu_uuid")


def device_families(state: State) -> Iterator[Metric]:
    """What each hardware counter moved, and what the core learned of the device."""
    devices = state.snapshot.devices
    labels = (*GPU_LABELS, "quality")
    yield counter(
        "joulemeter_gpu_energy_joules",
        "Energy that the hardware's counter moved, up to the settled watermark. An engine on a CPU "
        'has its CPU here, as gpu="cpu".',
        labels,
        # A counter holds whole microjoules: rounding takes off what float differences left.
        ((_gpu_quality(d), round(d.settled_j, 6)) for d in devices),
    )
    yield gauge(
        "joulemeter_pending_joules",
        "Energy that the hardware's counter moved and that is in no account yet.",
        labels,
        ((_gpu_quality(d), d.pending_j) for d in devices),
    )
    yield _of_devices(
        "joulemeter_gpu_power_watts",
        "Power at the last reading, for display; energy is never computed from it.",
        devices,
        lambda d: d.power_w,
    )
    yield _of_devices(
        "joulemeter_gpu_power_limit_watts",
        "Power limit in force when the device was found; absent where it has none.",
        devices,
        lambda d: d.device.power_limit_w,
    )
    yield _of_devices(
        "joulemeter_gpu_energy_refresh_seconds",
        "Refresh period of the device's energy counter, as found.",
        devices,
        lambda d: d.refresh_s,
    )
    yield _of_devices(
        "joulemeter_gpu_energy_latency_seconds",
        "How late the energy counter shows what was drawn, as found; absent until then.",
        devices,
        lambda d: d.delay_s,
    )
    yield _of_devices(
        "joulemeter_gpu_energy_latency_sd_seconds",
        "Standard deviation of that delay.",
        devices,
        lambda d: d.delay_sd_s,
    )
    yield _of_devices(
        "joulemeter_gpu_energy_smear_seconds",
        "Over how long the energy counter averages what was drawn, as found; absent until then.",
        devices,
        lambda d: d.smear_s,
    )
    yield _of_devices(
        "joulemeter_sample_latency_seconds",
        "How long the last reading of the counter took.",
        devices,
        lambda d: d.latency_s,
    )
    yield counter(
        "joulemeter_gpu_energy_jumps",
        "Times that an energy counter moved by more than the device can draw; not in the accounts.",
        GPU_LABELS,
        ((_gpu(d), d.jumps) for d in devices),
    )
    learned = [
        ((*_gpu(d), state.model_label(model) if model else ""), name, value, sd)
        for d in devices
        for model, name, value, sd in coefficients_by_model(d)
    ]
    yield gauge(
        "joulemeter_coefficient",
        "Learned energy coefficients: static_w in watts, F joules a step, a and b joules a token, "
        "q joules a pair, c joules a context token, e joules for all experts of a step (absent "
        "where there are none). The model is named where several share the device.",
        (*GPU_LABELS, "model", "name"),
        (((*labels, name), value) for labels, name, value, _ in learned),
    )
    yield gauge(
        "joulemeter_coefficient_sd",
        "Standard deviation of a learned coefficient; absent while nothing is known of it.",
        (*GPU_LABELS, "model", "name"),
        (((*labels, name), sd) for labels, name, _, sd in learned if sd is not None),
    )


def _gpu(state: DeviceState) -> Labels:
    return state.device.index, state.device.id


def _gpu_quality(state: DeviceState) -> Labels:
    return (*_gpu(state), state.device.quality.value)


def _of_devices(
    name: str,
    help_: str,
    devices: Iterable[DeviceState],
    value_of: Callable[[DeviceState], float | None],
) -> Metric:
    """A gauge by device, of those where the value is known."""
    known = ((_gpu(d), value) for d in devices if (value := value_of(d)) is not None)
    return gauge(name, help_, GPU_LABELS, known)


def health_families(state: State, now_ns: int) -> Iterator[Metric]:
    """The meter's own counters, each with a bound somewhere behind it."""
    health, snapshot = state.health, state.snapshot
    for name, help_, value in (
        ("samples", "Readings of energy counters taken.", health.samples),
        ("datagrams", "Messages received from engines.", health.datagrams),
        ("datagrams_lost", "Messages from engines that never arrived.", health.datagrams_lost),
        ("events_dropped", "Events dropped because the meter's queue was full.",
         health.events_dropped),
        ("engines_gone", "Times that an engine was taken for gone without its saying so.",
         health.engines_gone),
        ("engines_back", "Times that an engine taken for gone spoke again.", health.engines_back),
        ("late_events", "Events that came too late to be ordered.", snapshot.late_events),
        ("lost_steps", "Engine steps that the meter did not see.", snapshot.lost_steps),
        ("device_resets", "Times that an energy counter went backwards.",
         sum(d.resets for d in snapshot.devices)),
    ):  # fmt: skip
        yield counter(f"joulemeter_{name}", help_, (), [((), value)])
    yield counter(
        "joulemeter_sample_errors",
        "Readings of energy counters that failed, by source.",
        ("source",),
        (((source,), n) for source, n in health.sample_errors.items()),
    )
    yield counter(
        "joulemeter_messages_refused",
        "Messages from engines, or records in them, that were not taken, by reason: unreadable, "
        "record, stray (from one who has not said hello), user, engines, requests, names (too "
        "many), defect.",
        ("reason",),
        (((reason,), float(n)) for reason, n in health.refused.items()),
    )
    yield counter(
        "joulemeter_thread_errors",
        "Errors inside the meter's own threads, by thread; each went on, or was started anew.",
        ("thread",),
        (((thread,), float(n)) for thread, n in health.thread_errors.items()),
    )
    if snapshot.settled_ns is not None:
        yield gauge(
            "joulemeter_settled_lag_seconds",
            "How far behind now the joules are that are in the accounts for good. It is a few "
            "seconds; while it grows no receipt becomes final.",
            (),
            [((), max(0, now_ns - snapshot.settled_ns) / 1e9)],
        )
    yield counter(
        "joulemeter_label_overflow",
        'Distinct label values beyond the bound, which are exported as "other".',
        ("label",),
        (((label,), n) for label, n in state.label_overflow.items()),
    )
    yield gauge(
        "joulemeter_source_age_seconds",
        "Time since a source last said something.",
        ("source",),
        (((source,), max(0, now_ns - t) / 1e9) for source, t in health.source_last_ns.items()),
    )


def info_families(state: State) -> Iterator[Metric]:
    """Identities to join with."""
    build = InfoMetricFamily("joulemeter_build", "The meter's version.", labels=())
    build.add_metric((), {"version": __version__})
    yield build
    gpu = InfoMetricFamily("joulemeter_gpu", "Metered devices.", labels=GPU_LABELS)
    for device in state.snapshot.devices:
        facts = {
            "gpu_name": device.device.name,
            "quality": device.device.quality.value,
            "boundary": device.device.boundary,
            "note": device.device.note or "",
        }
        gpu.add_metric(_gpu(device), facts)
    yield gpu
    engine = InfoMetricFamily("joulemeter_engine", "Metered engines.", labels=("engine",))
    for info in state.snapshot.engines:
        facts = {
            "model_name": state.model_label(info.model),
            "fidelity": info.fidelity.value,
            "engine_version": info.engine_version or "",
        }
        engine.add_metric((info.id,), facts)
    yield engine
    yield _engine_gpus(state)


def _engine_gpus(state: State) -> Metric:
    """Which engine uses which card: one series for each device that an engine owns."""
    labels = ("engine", *GPU_LABELS)
    uses = InfoMetricFamily("joulemeter_engine_gpu", "Devices that an engine uses.", labels=labels)
    indices = {d.device.id: d.device.index for d in state.snapshot.devices}
    for engine in state.snapshot.engines:
        for device in engine.devices:
            values = (engine.id, indices.get(device, ""), device)
            uses.add_metric(values, {"model_name": state.model_label(engine.model)})
    return uses
