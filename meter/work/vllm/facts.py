"""What a model's configuration tells of its size. Plain arithmetic on a Hugging Face config.

Every function returns ``None`` where the config does not say: a wrong prior is worse than none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float": 4, "int8": 1}


def item_bytes(dtype: object) -> float | None:
    """Bytes of one value of a torch dtype, or of one named so (``fp8_e4m3``: 1)."""
    size = getattr(dtype, "itemsize", None)
    if isinstance(size, int):
        return size
    name = str(dtype).rsplit(".", 1)[-1]
    if name.startswith(("fp8", "float8")):
        return 1
    return _ITEM_BYTES.get(name)


def checkpoint_bytes(directory: str) -> int | None:
    """Bytes of the safetensors files of a model in a local directory."""
    path = Path(directory)
    if not path.is_dir():
        return None
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) or None


def parameters(config: Any) -> float | None:
    """Parameters (count) of a decoder with gated feed-forward layers, dense or with experts."""
    hidden = _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    inner = _number(config, "intermediate_size")
    vocabulary = _number(config, "vocab_size")
    if not (hidden and layers and heads and inner and vocabulary):
        return None
    if _number(config, "kv_lora_rank"):  # latent attention has another shape
        return None
    kv_heads = _number(config, "num_key_value_heads") or heads
    head = _number(config, "head_dim") or hidden / heads
    attention = 2 * hidden * head * (heads + kv_heads)
    routed = routed_parameters(config)
    feed_forward = routed if routed is not None else layers * 3 * hidden * inner
    embeddings = vocabulary * hidden * (1 if getattr(config, "tie_word_embeddings", False) else 2)
    return layers * attention + feed_forward + embeddings


def active_parameters(config: Any, total: float | None) -> float | None:
    """Parameters that one token uses: all but the experts it is not routed to."""
    routed, share = routed_parameters(config), _active_share(config)
    if total is None or routed is None or share is None:
        return total if routed is None else None
    return total - routed * (1 - share)


def routed_parameters(config: Any) -> float | None:
    """Parameters of all routed experts; ``None`` for a dense model."""
    experts = routed_experts(config)
    hidden = _number(config, "hidden_size")
    inner = _number(config, "moe_intermediate_size") or _number(config, "intermediate_size")
    layers = _number(config, "num_hidden_layers")
    if not (experts and hidden and inner and layers):
        return None
    return (layers - (_number(config, "first_k_dense_replace") or 0)) * experts * 3 * hidden * inner


def _active_share(config: Any) -> float | None:
    experts, used = routed_experts(config), active_experts(config)
    return used / experts if experts and used else None


def routed_experts(config: Any) -> int | None:
    """Routed experts in each layer with experts; ``None`` for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return _first(config, names, least=2)


def active_experts(config: Any) -> int | None:
    """Routed experts that one token uses in such a layer."""
    names = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k")
    return _first(config, names, least=1)


def _first(config: Any, names: tuple[str, ...], least: int) -> int | None:
    """The first of these counts that is said and means something."""
    counts = (_number(config, name) for name in names)
    return next((int(n) for n in counts if n is not None and n >= least), None)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
