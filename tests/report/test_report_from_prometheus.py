"""A report from a real Prometheus over a fleet of known rates."""

from __future__ import annotations

import pytest

from meter.export.figures import duration
from meter.report import make
from meter.report.from_prometheus import PrometheusError, Window, from_prometheus
from meter.report.html import to_html
from tests.grafana.sample import END_S, START_S, A, B, openmetrics
from tests.grafana.server import serving

FLEET = (A, B)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("prometheus"), openmetrics(FLEET)) as prometheus:
        yield prometheus._base


@pytest.fixture(scope="module")
def report(server):
    return from_prometheus(server, Window(START_S + 60, END_S - 60))


def test_the_figures_are_those_of_the_fleet(report):
    """Joules by account and model, tokens and requests: rates times the window."""
    seconds = report.seconds
    power_w = sum(host.power_w for host in FLEET)
    assert report.measured_j == pytest.approx(power_w * seconds, rel=0.01)
    assert sum(report.accounts_j.values()) == pytest.approx(report.measured_j, rel=1e-3)
    for host in FLEET:
        (line,) = [line for line in report.models if line.name == host.host.model]
        output = host.tokens_per_s["output"] * seconds
        assert line.output_tokens == pytest.approx(output, rel=0.01)
        assert line.requests == pytest.approx(host.requests_per_s * seconds, rel=0.01)
    assert report.quality in ("measured", "estimated", "simulated")
    assert report.cost > 0


def test_the_timeline_is_the_power(report):
    """Every bin at the fleet's power."""
    power_w = sum(host.power_w for host in FLEET)
    seen = [sum(b.watts) for b in report.timeline if b.watts]
    assert len(seen) >= 0.8 * len(report.timeline) > 10
    assert seen == pytest.approx([power_w] * len(seen), rel=0.02)


def test_a_mean_is_over_the_time_that_was_metered(server, report):
    """A window of three hours with a meter in its last seventy minutes: the power would be little
    more than a third of what it was. What was not metered is said."""
    assert report.metered_s == pytest.approx(report.seconds, rel=0.01)
    assert report.holes == ()
    power_w = sum(host.power_w for host in FLEET)
    late = from_prometheus(server, Window(END_S - 10_800, END_S))
    assert late.metered_s == pytest.approx(END_S - START_S, abs=10)
    assert late.mean_power_w == pytest.approx(power_w, rel=0.02)
    (hole,) = late.holes
    metered, window = duration(late.metered_s), duration(10_800)
    assert hole.startswith(f"a meter was there for {metered} of the window's {window}: means are")
    page = to_html(late, make.window("-3h", "now")[1])
    assert f"{metered} of metering" in page
    assert hole[1:].replace("'", "&#x27;") in page


def test_it_makes_a_page(report):
    """With the devices' names, and without requests, which Prometheus does not have."""
    html = to_html(report, make.window("-1h", "now")[1])
    assert report.meters[0].name in html
    assert "Those that took the most" not in html


def test_a_window_with_nothing_in_it_is_an_error(server):
    """With the remedy."""
    with pytest.raises(PrometheusError, match="does it scrape a meter"):
        from_prometheus(server, Window(START_S - 7200, START_S - 3600))


def test_nobody_there_is_an_error():
    """No traceback."""
    with pytest.raises(make.ReportError, match=r"no Prometheus answers at \S+ \(\[Errno 111\]"):
        make.from_prometheus("http://127.0.0.1:9", *make.window("-1h", "now"))


def test_a_port_that_speaks_no_http_is_no_prometheus(ssh_url):
    """No traceback either."""
    with pytest.raises(make.ReportError, match=r"no Prometheus answers at \S+ \(SSH"):
        make.from_prometheus(ssh_url, *make.window("-1h", "now"))


def test_an_address_without_http_is_refused():
    """Whatever else could be opened, such as a file."""
    for url in ("prometheus:9090", "file:///etc/passwd"):
        with pytest.raises(make.ReportError, match="give one as http://HOST:9090"):
            make.from_prometheus(url, *make.window("-1h", "now"))


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("-24h", "now", 86400),
        ("-90m", "2026-11-25T08:00Z", 5400),
        ("2026-11-24", "2026-11-25", 86400),
        ("2026-11-25T08:00+01:00", "2026-11-25T08:00Z", 3600),
        ("-1.5d", "-12h", 129600),
    ],
)
def test_times_as_people_type_them(start, end, seconds):
    """ISO 8601, UTC where no zone is given, or so long before."""
    since, until = make.window(start, end)
    assert (until - since).total_seconds() == seconds


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("yesterday", "now"),
        ("now", "now"),
        ("-1h", "-2x"),
        ("-99999999d", "now"),
        (f"-{'9' * 5000}w", "now"),
        ("x" * 5000, "now"),
        ("-1h", "0001-01-01"),
    ],
)
def test_other_times_are_refused(start, end):
    """With an example, in few words."""
    with pytest.raises(make.ReportError) as raised:
        make.window(start, end)
    assert len(str(raised.value)) < 250
