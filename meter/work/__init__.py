"""Where tokens come from: what the inference engine says about its own work.

``vllm`` is the plugin inside vLLM (standard library only), ``wire`` and ``listener`` are its other
end in the meter, ``beside`` puts the plugin next to any vLLM. Importing this package imports
nothing, so that vLLM can load ``meter.work.vllm`` alone.
"""
