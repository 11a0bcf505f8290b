"""Joulemeter: the live energy meter for LLM inference.

The import package of the distribution ``joulemeter``. Importing it costs nothing: it has no
dependency outside the standard library, so that ``meter.work.vllm`` can be loaded by vLLM.
"""

__version__ = "0.1.0"
