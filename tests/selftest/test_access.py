"""Servers that want a key or TLS: reached, or named at once, and never waited for without end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meter.cli import app
from meter.demo import process
from meter.selftest import server as room
from meter.selftest.access import Access, Reach, option, without_key
from meter.selftest.findings import SelftestError
from meter.selftest.load import Load, LoadError, Size
from meter.selftest.server import Server, url_of
from tests.selftest.secured import certificate, serving

SECRET = "sk-not-to-be-seen-anywhere"
NOBODY = (sys.executable, "-c", "import time; time.sleep(60)")


def reach(key: str | None = SECRET, **options) -> Reach:
    return Reach(key, "VLLM_API_KEY" if key else None, **options)


# --- the key


@pytest.mark.parametrize("secure", [False, True])
def test_a_key_and_tls_are_what_the_server_wants(tmp_path, secure):
    """The list of models, and the load itself."""
    pem = certificate(tmp_path) if secure else None
    with serving(SECRET, pem) as (port, seen):
        url = f"http{'s' * secure}://127.0.0.1:{port}"
        access = Access(url, reach(ca_file=pem))
        assert access.model()["id"] == "m"
        asyncio.run(Load(access, "m", Size())._ask(3, 1))
    assert seen == [f"Bearer {SECRET}"] * 2


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (
            None,
            "answers 401: it wants an API key: put it into a variable, and name that with --api",
        ),
        ("wrong", "answers 401: it does not take the API key in VLLM_API_KEY"),
    ],
)
def test_a_server_that_wants_another_key_says_so_at_once(key, says):
    """Not after half an hour; and not with the key in it."""
    command = NOBODY
    with serving(SECRET) as (port, _):
        server = Server(command, f"http://127.0.0.1:{port}", {}, reach=reach(key))
        with pytest.raises(SelftestError, match="something else answers"), server.bare():
            pass
        with pytest.raises(SelftestError) as raised:
            server.access.model()
    assert says in str(raised.value)
    assert "wrong" not in str(raised.value)


def waiting(port: int, limit_s: float, scheme: str = "http", **options) -> str:
    """What is said while a server starts that never serves us; nothing is waited for to the end."""
    server = Server(NOBODY, f"{scheme}://127.0.0.1:{port}", {}, reach=reach(None, **options))
    life = process.tethered(NOBODY, {}, 2)
    start_s = time.monotonic()
    try:
        with pytest.raises(SelftestError) as raised:
            server._wait_for(life)
    finally:
        process.end(life)
    assert time.monotonic() - start_s < limit_s
    return str(raised.value).replace(str(port), "PORT")


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    """A second is enough."""
    monkeypatch.setattr(room, "_LOOKS_MAX", 3)


def test_the_wait_ends_where_a_key_is_wanted():
    """As soon as the server answers."""
    with serving(SECRET) as (port, _):
        said = waiting(port, 30)
    assert said.startswith("http://127.0.0.1:PORT answers 401: it wants an API key")


def test_the_wait_ends_where_a_certificate_is_not_trusted(tmp_path):
    """With the option that names it."""
    with serving(pem=certificate(tmp_path)) as (port, _):
        said = waiting(port, 30, "https")
    assert "its certificate is not trusted (self" in said
    assert "give --ca-file FILE" in said


def test_the_wait_ends_where_tls_is_wanted_or_not(tmp_path):
    """Asked with the wrong scheme."""
    with serving(pem=certificate(tmp_path)) as (port, _):
        said = waiting(port, 60, "http")
    assert "it does not speak HTTP (" in said and "is it https://, by --url?" in said
    with serving() as (port, _):
        said = waiting(port, 60, "https")
    assert "it does not speak TLS as we do (" in said and "is it http://?" in said


def test_the_wait_ends_where_something_else_answers():
    """It answers, and is no OpenAI API: a few looks are enough."""
    with serving(status=404) as (port, _):
        said = waiting(port, 60)
    assert said == "http://127.0.0.1:PORT has no OpenAI API: it answers 404 at /v1/models"


def test_how_long_a_start_may_take_is_an_option():
    """Nobody is there, or it is busy with loading."""
    said = waiting(process.free_port(), 30, start_s=0.6)
    assert "after 1 s: name the server's --url, or give it longer with --start-timeout" in said
    with serving(status=503) as (port, _):
        assert "after 1 s" in waiting(port, 30, start_s=0.6)


@pytest.mark.parametrize(
    "body", [[], {"data": []}, {"data": [5]}, {"data": [{"id": 5}]}, {"data": {"a": 1}}, "x"]
)
def test_odd_lists_of_models_are_no_list(body):
    """Whatever answers there."""
    with serving(body=body) as (port, _), pytest.raises(SelftestError, match="no server with the"):
        Access(f"http://127.0.0.1:{port}").model()


def test_a_load_that_is_refused_does_not_show_the_key():
    """What the server answers is quoted, what we asked is not."""
    with serving("another") as (port, _):
        access = Access(f"http://127.0.0.1:{port}", reach())
        with pytest.raises(LoadError, match="answered 401") as raised:
            asyncio.run(Load(access, "m", Size())._ask(3, 1))
    assert SECRET not in str(raised.value)
    assert SECRET not in repr(access)


# --- where it comes from


@pytest.mark.parametrize(
    ("command", "environ", "name", "key", "key_from"),
    [
        ("vllm serve m", {}, None, None, None),
        ("vllm serve m", {"VLLM_API_KEY": "a"}, None, "a", "VLLM_API_KEY"),
        ("vllm serve m", {"OPENAI_API_KEY": "another's"}, None, None, None),
        ("vllm serve m --api-key b", {"VLLM_API_KEY": "a"}, None, "b", "the command's --api-key"),
        ("vllm serve m --api-key=b", {}, None, "b", "the command's --api-key"),
        ("vllm serve m --api-key b", {"MINE": "c"}, "MINE", "c", "MINE"),
    ],
)
def test_where_the_key_comes_from(command, environ, name, key, key_from):
    """The variable that is named, the command, vLLM's own variable."""
    found = Reach.of(command.split(), environ, name)
    assert (found.key, found.key_from) == (key, key_from)
    assert "key='" not in repr(found)


@pytest.mark.parametrize("key", ["a b", "a\r\nX: y", "é", "a\x00"])
def test_an_odd_key_is_refused_and_not_shown(key):
    """A line break in it would be a header of its own."""
    with pytest.raises(SelftestError, match="API key in MINE is no key") as raised:
        Reach.of((), {"MINE": key}, "MINE")
    assert key not in str(raised.value)


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(SelftestError, match="--api-key-env NONE: that variable is not set"):
        Reach.of((), {}, "NONE")


def test_a_command_with_tls_is_reached_so(tmp_path):
    """Its own certificate is trusted where no other is named."""
    command = ["vllm", "serve", "m", "--ssl-certfile", "/c.pem", "--ssl-keyfile=/k.pem"]
    assert url_of(command) == "https://127.0.0.1:8000"
    assert Reach.of(command, {}).ca_file == Path("/c.pem")
    assert Reach.of(command, {}, ca_file=Path("/d.pem")).ca_file == Path("/d.pem")
    for bad in ("/none.pem", str(tmp_path)):
        with pytest.raises(SelftestError, match="no certificates can be read"):
            Access("https://x", reach(ca_file=Path(bad))).get("/")


def test_a_command_is_written_down_without_its_key():
    """Several keys, and both ways to give one."""
    said = without_key(["vllm", "--api-key", "a", "b", "--port", "1", "--api-key=c", "m"])
    assert said == ["vllm", "--api-key", "…", "…", "--port", "1", "--api-key=…", "m"]
    assert option(["--port"], "--port") is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--url", "http://127.0.0.1:1", "--trace", "t", "--api-key-env", "NONE"], "is not set"),
        (["--seconds", "nan", "--demo"], "Invalid value for '--seconds'"),
        (["--seconds", "1e300", "--demo"], "Invalid value for '--seconds'"),
        (["--start-timeout", "0", "--demo"], "Invalid value for '--start-timeout'"),
        (["--pairs", "-1", "--demo"], "Invalid value for '--pairs'"),
    ],
)
def test_odd_options_are_refused(words, says):
    """Before anything is started."""
    done = CliRunner().invoke(app, ["selftest", *words])
    assert done.exit_code == 2
    assert says in done.output


def test_what_answers_for_a_meter_is_not_believed(tmp_path):
    """A server of another kind, with JSON or without: no traceback."""
    (tmp_path / "t.jsonl").write_text("")
    for body in ({}, [], "x", {"receipts": 5}):
        with serving(body=body) as (port, _):
            url = f"http://127.0.0.1:{port}"
            words = ["--url", url, "--meter", url, "--trace", str(tmp_path / "t.jsonl")]
            done = CliRunner().invoke(app, ["selftest", *words])
        assert done.exit_code == 2, json.dumps(body)
        assert "no meter answers at" in done.output
