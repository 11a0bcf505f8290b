"""``joulemeter selftest``: how truly this meter measures on the user's own card and server.

Pure analysis: ``look`` runs the core over a recorded trace and keeps what each interval of the
counter showed and what was foreseen for it; ``findings`` has what is found, from the counter
(``counter``), the coefficients (``foresight``), the receipts (``repeats``) and the physics
(``bound``); ``promises`` holds the README's promises against it. ``report`` prints them.
"""
