"""Where joules come from: sources of energy readings, and the threads that poll them.

A source (``source``) finds its devices: NVIDIA's GPUs (``nvml`` with ``nvml_*``), the CPU by its
counter (``rapl``) or an estimate (``estimate``), of which the engine has what it claims (``claim``,
``cpu_time``), a recording (``playback``). The ``sampler`` opens them and gives each device a
thread of its own (``lane``), which watches its counter (``watch``) and reads only what this meter
owns (``owner``).
"""
