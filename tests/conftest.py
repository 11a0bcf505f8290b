"""For all tests."""

from hypothesis import settings

# A busy machine is slow, not wrong: no test fails by its own time.
settings.register_profile("joulemeter", deadline=None)
settings.load_profile("joulemeter")
