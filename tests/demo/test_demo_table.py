"""The live table: what is on the screen, as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from meter.demo.table import ACCOUNTS, Frame, draw, sparkline


def text_of(frame: Frame, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(draw(frame, width))
    return captured.get()


def summary() -> dict[str, Any]:
    accounts = {f"{name}_j": 0.0 for name, _ in ACCOUNTS}
    return {
        **accounts,
        "quality": "simulated",
        "measured_j": 2000.0,
        "prefill_j": 500.0,
        "decode_j": 1400.0,
        "idle_j": 100.0,
        "conservation_error_j": 2e-12,
        "requests_running": 7,
        "settled_lag_s": 2.1,
        "per_token": [
            {
                "model": "m",
                "token_type": "output",
                "idle": idle,
                "window": "1m",
                "kwh_per_token": kwh,
                "cost_per_million_tokens": 0.5,
            }
            for idle, kwh in (("with", 9e-7), ("without", 1e-7))
        ],
        "cost": {"currency": "USD", "components": {}, "credits": "0"},
    }


def receipt(**changed: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-demo-12",
        "tenant": "acme",
        "prompt_tokens": 1234,
        "cached_tokens": 600,
        "completion_tokens": 100,
        "energy_j": 45.6,
        "uncertainty_j": 0.456,
        "cost": {"amount": "0.000070", "currency": "USD"},
        "reason": "stop",
        **changed,
    }


def frame(**changed: Any) -> Frame:
    base: dict[str, Any] = {
        "title": "a card",
        "url": "http://127.0.0.1:29401",
        "state": "traffic",
        "elapsed_s": 12.0,
        "summary": summary(),
        "power_w": (100.0, 400.0),
        "receipts": (receipt(),),
    }
    return Frame(**{**base, **changed})


def test_everything_that_matters_is_on_the_screen() -> None:
    """Quality, address, power, joules and kWh and money per token, every account, the sum."""
    text = text_of(frame())
    for words in (
        *("simulated", "http://127.0.0.1:29401", "400 W", "360 mJ", "0.100 kWh", "0.500 USD"),
        *("2.000 kJ", "1.400 kJ", "70.0 %", "residual 2e-12 J", "settle 2.1 s behind"),
        *(name for name, _ in ACCOUNTS),
    ):
        assert words in text


def test_a_receipt_is_one_line_with_its_share_of_everything() -> None:
    """Also on a terminal of 100 columns nothing is cut."""
    (line,) = [line for line in text_of(frame()).splitlines() if "demo-12" in line]
    for words in (
        "chatcmpl-demo-12",
        "acme",
        "1,234",
        "600",
        "45.60 J",
        "1.0 %",
        "456 mJ",
        "70.0 µUSD",
    ):
        assert words in line
    assert "…" not in text_of(frame())


def test_on_eighty_columns_less_is_shown_and_nothing_is_cut() -> None:
    """What a person asks first stays: tokens, energy, cost."""
    text = text_of(frame(receipts=(receipt(id="chatcmpl-demo-12345", tenant="umbrella"),)), 80)
    (line,) = [line for line in text.splitlines() if "demo-12345" in line]
    for words in ("umbrella", "1,234", "100", "45.60 J", "456 mJ", "70.0 µUSD"):
        assert words in line
    assert "cached" not in text
    assert "…" not in text


def test_unknown_is_a_dash_and_never_a_zero() -> None:
    """Before the first reading, without prices, and for an aborted request."""
    text = text_of(frame(summary=None, power_w=(), receipts=()))
    assert "waiting for the first reading" in text
    assert "0 W" not in text
    aborted = receipt(id="left", completion_tokens=0, cached_tokens=None, cost=None, tenant=None)
    text = text_of(frame(receipts=(receipt(tenant=None), aborted)))
    (line,) = [line for line in text.splitlines() if "left" in line]
    assert line.count("–") == 3


def test_what_no_receipt_knows_has_no_column() -> None:
    """No tenants, no column of dashes."""
    assert "tenant" not in text_of(frame(receipts=(receipt(tenant=None),)))
    assert "tenant" in text_of(frame())


def test_no_name_is_markup_or_a_command_to_the_terminal() -> None:
    """An id of a client's ended the demo, where it looked like the end of a style."""
    hostile = "[red]a[/nothing]\x1b[2J\n"
    row = receipt(id=hostile, tenant=hostile, reason=hostile)
    text = text_of(frame(receipts=(row,), notes=(hostile,)), 300)
    assert text.count("[red]a[/nothing]") == 4
    assert text.replace("\n", "").isprintable()


def test_notes_are_shown() -> None:
    """What a reader must know of the figures stands below them."""
    assert "read without NVML" in text_of(frame(notes=("read without NVML",)))


def test_a_sparkline_begins_at_zero() -> None:
    """Half the largest value is half the height; nothing is nothing."""
    assert sparkline([0.0, 400.0, 799.0]) == "▁▅█"
    assert sparkline([]) == ""
    assert sparkline([0.0]) == ""
