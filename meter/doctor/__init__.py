"""What this machine can measure, at which quality, and the one step to the next better.

``examine`` looks at the GPUs, the CPU and vLLM, each in a file of its own, and changes nothing.
"""

from meter.doctor.diagnosis import Diagnosis, Finding, Level, examine

__all__ = ["Diagnosis", "Finding", "Level", "examine"]
