"""``joulemeter top``: the live page in a terminal.

It reads the meter's own stream (``/v1/live``) and nothing else, so it works from any machine that
reaches the port. ``feed`` listens on a thread, ``view`` is what the keys change, ``draw`` makes a
frame of both; ``run`` puts them together. Drawn with rich, which the meter needs anyway: nothing
more has to be installed on a server to look at it over ssh.
"""
