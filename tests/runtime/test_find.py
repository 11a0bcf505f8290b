"""Where a process listens, as its own sockets say."""

import os
import socket
import subprocess
import sys

import pytest

from meter.runtime import find as room
from meter.runtime.find import FindError, find, listening, urls_of


@pytest.mark.parametrize(
    ("ip", "urls"),
    [
        ("127.0.0.1", ("http://127.0.0.1:8000",)),
        ("10.1.2.3", ("http://10.1.2.3:8000",)),
        ("::1", ("http://[::1]:8000",)),
        ("0.0.0.0", ("http://127.0.0.1:8000",)),
        ("::", ("http://127.0.0.1:8000", "http://[::1]:8000")),
    ],
)
def test_a_server_is_asked_at_the_address_on_which_it_listens(monkeypatch, ip, urls):
    """One address alone, IPv6 alone, or every one."""
    monkeypatch.setattr(room, "listening", lambda pids: {(ip, 8000)})
    assert urls_of({1}) == urls


def test_a_process_says_where_it_listens():
    """Its listening sockets, and no others."""
    with socket.socket() as listener, socket.socket() as bound:
        listener.bind(("127.0.0.4", 0))
        listener.listen()
        bound.bind(("127.0.0.4", 0))
        found = listening({os.getpid()})
        assert listener.getsockname() in found
        assert bound.getsockname() not in found


def test_a_url_of_this_machine_finds_its_process():
    """At that address: another process may have the same port at another one."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert room._listener_on(port, "127.0.0.1") == os.getpid()
        assert room._listener_on(port, "localhost") == os.getpid()
        assert room._listener_on(port, "far.example") is None
        other.bind(("127.0.0.1", 0))
        assert room._listener_on(other.getsockname()[1], "127.0.0.1") is None


def test_a_process_that_is_over_is_none():
    """Nobody has waited for it yet: it serves nothing any more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as over:
        os.waitid(os.P_PID, over.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(FindError, match=f"no process {over.pid}"):
            find(str(over.pid))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("0", "no process 0"),
        ("99999999999999999999999", "no process"),
        ("²", "neither a pid nor a URL"),
        ("ftp://127.0.0.1:8000", "is no http or https URL"),
        ("http:// x", "a space or an odd character"),
        ("http://127.0.0.1:99999", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://me:secret@127.0.0.1", "VLLM_API_KEY"),
    ],
)
def test_a_target_that_can_be_none_is_refused(target, said):
    """In one line, whatever it is."""
    with pytest.raises(FindError, match=said) as failed:
        find(target)
    assert "\n" not in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_meter_is_no_part_of_the_server_that_it_attaches_to():
    """A shell or a supervisor starts both: what the meter listens on is not the server's."""
    told = subprocess.run(
        [
            *("sh", "-c", '"$0" -c "$1" $$; true', sys.executable),
            "import os, sys; from meter.runtime.find import family; "
            "print(os.getpid(), sys.argv[1], *(p.pid for p in family(int(sys.argv[1]))))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    meter, shell, *members = told
    assert members[0] == shell
    assert meter not in members
