"""For all tests."""

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong: no test fails by its own time.
settings.register_profile("joulemeter", deadline=None)
settings.load_profile("joulemeter")


@pytest.fixture(scope="session", autouse=True)
def no_memory_of_the_callers(tmp_path_factory):
    """What the meter learns in a test stays out of the caller's home, and the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
