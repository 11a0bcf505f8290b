"""``joulemeter report``: a window of time as one HTML file that needs nothing else.

What was used, by whom, what it cost, when, and how sure all of that is. The figures come from a
recorded trace (``from_trace``: the same core as live, to the µJ) or from a Prometheus that scrapes
meters (``from_prometheus``); both make one ``Report`` (``figures``), and ``html`` writes it, with
``charts`` as inline SVG. A durable ledger will be a third source.
"""
