"""The plugin inside vLLM. Standard library only, relative imports only."""
