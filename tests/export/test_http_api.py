"""The meter's own port, spoken to over ASGI."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from export_samples import NS, make_receipt

from meter.export.http import create_app
from meter.export.receipts import EVICTED, GoneError, Priced
from meter.export.site import FILES

HERE = "http://127.0.0.1"
PAGE = Path(__file__).parents[2] / "meter/export/page"


class FakeView:
    """A running meter, as far as the port can see."""

    def __init__(self, state=None):
        self.the_state = state
        self.receipts = {"r1": Priced(make_receipt(), None)}
        self.the_problems = ()
        self.is_alive = True
        self.busy = False
        self.gone = set()

    def state(self):
        return self.the_state

    def receipt(self, request):
        if self.busy:
            raise TimeoutError
        if request in self.gone:
            raise GoneError(EVICTED)
        return self.receipts.get(request)

    def recent(self, limit):
        return list(self.receipts.values())[:limit]

    def running(self):
        return []

    def problems(self):
        return self.the_problems

    def alive(self):
        return self.is_alive


@pytest.fixture
def view(state):
    return FakeView(state)


@pytest.fixture
def get(view):
    """Gets a path from the application."""
    transport = httpx.ASGITransport(create_app(view, lambda: 32 * NS), raise_app_exceptions=False)

    def ask(path, method="GET", **headers):
        async def run():
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1"
            ) as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(run())

    return ask


def test_metrics_are_negotiated(get):
    """Plain text by default, OpenMetrics where it is asked for."""
    plain = get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "joulemeter_energy_joules_total" in plain.text
    accept = "application/openmetrics-text; version=1.0.0"
    new = get("/metrics", accept=accept)
    assert new.headers["content-type"].startswith("application/openmetrics-text")
    assert new.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": b"\xff\xfe"},
        {"accept-encoding": b"\xff"},
        {"accept": "application/openmetrics-text; version=1.x"},
        {"accept": "text/plain;version=" + "9" * 5000},
    ],
)
def test_metrics_come_whatever_is_accepted(get, headers):
    """A header that cannot be understood chooses nothing: it was a 500, and a traceback each."""
    answer = get("/metrics", **headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "joulemeter_energy_joules_total" in answer.text


def test_some_metrics_alone(get):
    """As Prometheus' own clients give them, by the names of samples."""
    some = get("/metrics?name[]=joulemeter_build_info&name[]=joulemeter_tokens_total").text
    names = {line.split("{")[0] for line in some.splitlines() if not line.startswith("#")}
    assert names == {"joulemeter_build_info", "joulemeter_tokens_total"}


def test_a_receipt_by_id(get):
    """As JSON."""
    answer = get("/v1/receipts/r1")
    assert answer.status_code == 200
    assert answer.json()["id"] == "r1"


def test_an_unknown_receipt_says_why_and_what_to_do(get):
    """problem+json with the field and the remedy."""
    answer = get("/v1/receipts/nobody/knows")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["field"] == "request_id"
    assert "'nobody/knows'" in problem["detail"]
    assert "X-Request-Id" in problem["remedy"]


def test_a_receipt_that_is_kept_no_longer_is_gone(get, view):
    """410 with the reason, and not 404: there was one."""
    view.gone = {"r0"}
    answer = get("/v1/receipts/r0")
    assert answer.status_code == 410
    assert EVICTED in answer.json()["detail"]
    assert "--record" in answer.json()["remedy"]


def test_recent_receipts(get):
    """Newest first, as many as asked for."""
    assert [r["id"] for r in get("/v1/receipts?limit=5").json()["receipts"]] == ["r1"]


@pytest.mark.parametrize("limit", ["0", "-1", "many", "100000", "1.5"])
def test_a_bad_limit_is_refused(get, limit):
    """With the range in the remedy."""
    answer = get(f"/v1/receipts?limit={limit}")
    assert answer.status_code == 400
    assert answer.json()["field"] == "limit"


def test_a_busy_writer_is_said_and_not_waited_for(get, view):
    """503, try again."""
    view.busy = True
    answer = get("/v1/receipts/r1")
    assert answer.status_code == 503
    assert "again" in answer.json()["detail"]


def test_the_summary_closes(get):
    """Its parts sum to what was measured."""
    summary = get("/v1/summary").json()
    parts = ("attributed_j", "idle_j", "startup_j", "unattributed_j", "pending_j")
    assert sum(summary[part] for part in parts) == pytest.approx(summary["measured_j"], rel=1e-9)
    phases = ("prefill_j", "decode_j", "recompute_j")
    assert sum(summary[part] for part in phases) == pytest.approx(summary["attributed_j"])
    assert summary["conservation_error_j"] == pytest.approx(0)
    assert summary["receipts_open_j"] + summary["receipts_closed_j"] == summary["attributed_j"]
    assert summary["quality"] == "simulated"
    assert summary["requests"] == 4
    assert summary["requests_by_reason"] == {"stop": 3, "abort": 1}
    assert summary["tokens"] == {"input": 60, "input_cached": 40, "output": 120}
    assert summary["coefficients"]["GPU-0"] == {"static_w": 115.0, "F": 2.0}
    (device,) = summary["devices"]
    assert (device["delay_s"], device["delay_sd_s"], device["smear_s"]) == (0.0625, 0.002, 0.025)
    assert (device["power_limit_w"], device["age_s"]) == (700.0, 3.0)
    assert (device["resets"], device["jumps"]) == (0, 1)
    assert device["coefficient_sd"] == {"static_w": 1.5, "F": None}
    assert summary["settled_lag_s"] == 2.0
    assert summary["cost"]["currency"] == "EUR"


def test_before_the_first_state_the_summary_is_not_there(get, view):
    """503 and not zeros."""
    view.the_state = None
    assert get("/v1/summary").status_code == 503


def test_liveness_is_of_the_meters_threads(get, view):
    """A dead writer is not alive."""
    assert get("/livez").status_code == 200
    view.is_alive = False
    assert get("/livez").status_code == 503


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_readiness_names_what_is_missing(get, view, path):
    """Every problem with its remedy."""
    assert get(path).status_code == 200
    view.the_problems = ("no energy source: install the driver",)
    answer = get(path)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "no energy source: install the driver"


def test_the_page_needs_nothing_from_elsewhere(get):
    """It works offline: the files that it names are here, none of them names an address, and the
    policy forbids others."""
    page = get("/")
    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    imported = re.findall(r'from "\./([^"]+)"', get("/page/app.js").text)
    names = {f"/{name}" for name in named} | {f"/page/{name}" for name in imported}
    assert names == {f"/page/{name}" for name in FILES if name != "index.html"}
    for answer in (page, *(get(name) for name in names)):
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        # The namespace of SVG is a name, and nothing is fetched from there.
        text = answer.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search("https?://", text)


def test_the_page_is_small():
    """Tens of kilobytes, all files together."""
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 80_000
    assert sorted(path.name for path in PAGE.iterdir()) == sorted(FILES)


def test_an_unknown_path_lists_the_known_ones(get):
    """As a problem, too."""
    answer = get("/nothing")
    assert answer.status_code == 404
    assert "/v1/summary" in answer.json()["remedy"]


@pytest.mark.parametrize("path", ["/metrics", "/v1/summary", "/v1/receipts/r1", "/readyz", "/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_another_method_is_refused(get, path, method):
    """The port only reads, and says which methods do."""
    answer = get(path, method)
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["remedy"] == "This port only reads: GET."
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/metrics", "/v1/summary", "/v1/live", "/livez", "/"])
def test_head_is_get_without_waiting(get, path):
    """Also where GET would never end."""
    answer = get(path, "HEAD")
    assert answer.status_code == 200
    if path != "/v1/live":
        assert answer.headers["content-type"] == get(path).headers["content-type"]


@pytest.mark.parametrize(
    ("path", "detail", "remedy"),
    [
        ("/v1/receipts?limt=5", "limt: no such parameter", "Did you mean limit?"),
        ("/v1/receipts?qqqq=5", "qqqq: no such parameter", "Known: limit."),
        ("/v1/live?row=5", "row: no such parameter", "Did you mean rows?"),
        ("/v1/live?rows=201", "rows: '201'", "Give a whole number from 0 to 200."),
    ],
)
def test_a_misspelt_parameter_is_refused(get, path, detail, remedy):
    """Rather than passed over: the answer would be to another question."""
    answer = get(path)
    assert answer.status_code == 400
    assert answer.json()["detail"] == detail
    assert answer.json()["field"] == detail.split(":")[0]
    assert answer.json()["remedy"] == remedy


@pytest.mark.parametrize("path", ["/", "/v1/receipts/", "/v1/receipts?limit=", "/v1/receipts?"])
def test_what_is_too_long_is_not_repeated(get, path):
    """A sentence is a sentence, whatever was sent."""
    answer = get(path + "1" * 20_000)
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 1000


def test_a_failure_inside_is_a_problem_and_no_trace(get, view):
    """500 with the kind of error, no internals."""
    view.state = lambda: 1 / 0
    answer = get("/v1/summary")
    assert answer.status_code == 500
    assert answer.json()["detail"] == "ZeroDivisionError inside the meter"


def test_watchers_leave_room_for_others(view):
    """So many may follow the stream, and the next is told what to do instead."""
    app = create_app(view, watchers_max=0)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            return await client.get("/v1/live")

    answer = asyncio.run(run())
    assert answer.status_code == 503
    assert "/v1/summary" in answer.json()["remedy"]
