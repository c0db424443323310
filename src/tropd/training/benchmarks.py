"""`eval_benchmarks`: a student that learns is asked the problems of benchmarks, and graded as `tropd evaluate` does.

Draws are addressed and answers are graded in a sandbox, so that no random stream of the training is read or moved.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from trl.models import unwrap_model_for_generation

from ..evaluation.benchmarks.grading import Grader, check_gradable
from ..evaluation.benchmarks.problem import Problem
from ..evaluation.benchmarks.registry import benchmark, evenly, find, load
from ..evaluation.responses import MOST_SAMPLES, Prompted, Sampling, read_prompts, seed_of
from ..evaluation.scores import Graded, Scores, score
from ..models.files import context_length
from ..models.sampling import sample, until_eos
from ..rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise, decoding_through
from .distributed.sharding import student_is_sharded_while_writing
from .guards.faults import EVALUATED_ROWS, SCORING, enough_memory
from .logging.metrics import named_metric


@dataclass(frozen=True)
class Asked:
    """A benchmark of `eval_benchmarks` with the problems that are asked."""

    name: str  # in the metrics
    problems: Sequence[Problem]  # all of them, or `eval_benchmarks_max_problems`, evenly spaced


def load_asked(args: Any) -> list[Asked]:
    """Read the benchmarks of a configuration, and check that they can be graded here.

    Raises:
        ValueError: an unknown name, files that are missing, a grader or the sandbox that cannot be had.
    """
    asked: list[Asked] = []
    for name in args.eval_benchmarks:
        one = benchmark(name, "eval_benchmarks")
        if one.source and args.eval_benchmarks_data is None:
            raise ValueError(
                f"eval_benchmarks has {name!r}, but eval_benchmarks_data is not set. Name the folder of the "
                "benchmarks' files (`tropd evaluate --list --data FOLDER` says what is found there)."
            )
        check_gradable(one)
        problems = load(one, find(one, Path(args.eval_benchmarks_data or ".")))
        if one.name in [other.name for other in asked]:
            raise ValueError(f"eval_benchmarks has two of the name {one.name!r}; rename a file, or remove one.")
        asked.append(Asked(one.name, evenly(problems, args.eval_benchmarks_max_problems)))
    return asked


class BenchmarkStage:
    """Asks the student and grades it, each rank its share of the responses.

    Raises:
        ValueError: a prompt leaves no room for `eval_benchmarks_max_new_tokens` in the student's context.
    """

    def __init__(self, trainer: Any, asked: Sequence[Asked]):
        self.trainer, args = trainer, trainer.args
        longest = args.eval_benchmarks_max_new_tokens or trainer.max_completion_length
        if longest is None:
            raise ValueError(
                "eval_benchmarks_max_new_tokens is not set, and neither is max_completion_length, whose value it would "
                "have. Set one, such as eval_benchmarks_max_new_tokens: 1024."
            )
        self.sampling = Sampling(
            model="the student",
            temperature=args.eval_benchmarks_temperature,
            top_p=1.0,
            max_new_tokens=longest,
            batch_size=args.per_device_eval_batch_size,
            seed=args.seed,
            system_prompt=args.eval_benchmarks_system_prompt,
            chat_template_kwargs=args.chat_template_kwargs or {},
        )
        self.asked = [(one, read_prompts(one.problems, trainer._tokenizer, self.sampling)) for one in asked]
        for one, prompted in self.asked:
            self._check_fits(one, prompted)

    def measure(self) -> dict[str, float]:
        """The metrics of all benchmarks, the same on all ranks; the student is left in evaluation mode."""
        self.trainer.model.eval()
        found: dict[str, float] = {}
        for one, prompted in self.asked:
            scores = score(self._write_and_grade(one, prompted))
            found |= {named_metric(family, one.name): value for family, value in _values(scores).items()}
        return found

    def _write_and_grade(self, one: Asked, prompted: Prompted) -> list[Graded]:
        """Responses of all ranks with their verdicts, in their order."""
        ranks, world = self.trainer.ranks, self.trainer.accelerator.num_processes
        samples = self.trainer.args.eval_benchmarks_samples
        total = len(one.problems) * samples
        # All ranks write as many, so that sharded weights are gathered together: the last ones may be asked twice.
        numbers = range(self.trainer.accelerator.process_index, -(-total // world) * world, world)
        places = [divmod(number % total, samples) for number in numbers]
        responses = self._write(one.name, places, prompted)
        found = []
        elsewhere = "a benchmark could not be graded by another process"
        with ranks.failing_together(lambda: RuntimeError(elsewhere)), Grader(one.name) as grader:
            for number, (problem, turn), response in zip(numbers, places, responses, strict=True):
                if number < total:
                    graded = self._grade(grader, one.problems[problem], turn, response, prompted.thinking_opened)
                    found.append((number, graded))
        return [graded for _, graded in sorted(gather_object(found), key=lambda pair: pair[0])]

    def _grade(self, grader: Grader, problem: Problem, turn: int, response: list[int], opened: bool) -> Graded:
        ids = until_eos(response, self.trainer.eos_token_ids)
        verdict = grader.grade(problem, self.trainer._tokenizer.decode(ids), opened)
        ended = len(ids) < len(response)
        return Graded(problem.id, turn, verdict.outcome, len(ids), ended, problem.group, verdict.details)

    def _write(self, name: str, places: Sequence[tuple[int, int]], prompted: Prompted) -> list[list[int]]:
        trainer, args, size = self.trainer, self.trainer.args, self.sampling.batch_size
        responses: list[list[int]] = []
        moment = f"the benchmark {name} after step {trainer.state.global_step}"
        with (
            enough_memory(SCORING, lambda: moment, args, EVALUATED_ROWS),
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as student,
            torch.no_grad(),
            trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
        ):
            for start in range(0, len(places), size):
                responses += self._draw(student, name, places[start : start + size], prompted)
        return responses

    def _draw(self, student: Any, name: str, places: Sequence[tuple[int, int]], prompted: Prompted) -> list[list[int]]:
        """The same responses as `tropd evaluate` draws from this student with this seed."""
        together = student_is_sharded_while_writing(self.trainer)
        rows = [(problem * MOST_SAMPLES + turn, 0) for problem, turn in places]
        noise = AddressedNoise(seed_of(self.sampling.seed, name), 0, BENCHMARK_STREAM, rows, synced_gpus=together)
        with decoding_through(student, noise) if self.sampling.temperature > 0 else nullcontext():
            return sample(
                student,
                [prompted.contexts[problem] for problem, _ in places],
                max_new_tokens=self.sampling.max_new_tokens,
                eos_ids=self.trainer.eos_token_ids,
                pad_id=self.trainer._tokenizer.pad_token_id,
                temperature=self.sampling.temperature,
                vocab_limit=max(self.trainer._tokenizer.get_vocab().values()) + 1,
                synced_gpus=together,
            )

    def _check_fits(self, one: Asked, prompted: Prompted) -> None:
        model = self.trainer.model
        positions = context_length((model.get_base_model() if is_peft_model(model) else model).config)
        longest, room = max(map(len, prompted.contexts)), self.sampling.max_new_tokens
        if positions is not None and longest + room > positions:
            raise ValueError(
                f"eval_benchmarks_max_new_tokens is {room}, and the longest prompt of {one.name} has {longest} tokens: "
                f"together more than the {positions} of the student's context. Lower it to {positions - longest} or "
                "less, or remove the benchmark."
            )


def _values(scores: Scores) -> dict[str, float]:
    return {
        "benchmark/<name>/accuracy": scores.accuracy,
        "benchmark/<name>/truncated_share": scores.truncated,
        "benchmark/<name>/no_answer_share": scores.no_answer,
        "benchmark/<name>/undecided_share": scores.undecided,
        "benchmark/<name>/length": scores.tokens[0],
    }
