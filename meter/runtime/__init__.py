"""Wiring and life cycle: knows every room, and is the only one that does. See ``run``."""
