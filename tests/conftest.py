"""For all tests."""

import signal
import socketserver
import threading

import pytest
from hypothesis import HealthCheck, settings

from tests.no_silent_skips import (  # noqa: F401
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

# A busy machine is slow, not wrong: no test fails by its own time.
settings.register_profile("joulemeter", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("joulemeter")


@pytest.fixture(scope="session", autouse=True)
def no_memory_of_the_callers(tmp_path_factory):
    """What the meter learns in a test stays out of the caller's home, and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def signals_stay_as_they_were():
    """A command that is tried in this process blocks signals; what starts later would not end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Banner(socketserver.BaseRequestHandler):
    """Greets as an SSH server does."""

    def handle(self):
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.fixture
def ssh_url():
    """A port that speaks no HTTP, and takes one call."""
    with socketserver.TCPServer(("127.0.0.1", 0), Banner) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        thread.join()
