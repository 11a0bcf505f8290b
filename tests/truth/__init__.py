"""A truth generator: synthetic engines on synthetic cards, and what each request truly took.

Data flows one way: ``workload`` (who asks for what, and when), ``engine`` (which tokens each step
computes), ``costs`` and ``board`` (what that costs on one device, and how long it takes),
``layouts`` (how engines and devices play together), ``settle`` (who truly pays), ``card`` (what the
counter shows), ``telling`` (what the meter is told). ``scenarios.build(name)`` makes a ``Case`` of
it all; ``score.score(case, replayed)`` says how far off the meter was. ``python -m tests.truth``
prints every scenario in a table.

Nothing here is shared with the meter's core: the truth is worked out row by row, by another road.
"""
