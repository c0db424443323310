"""The first stage of a guided step: one teacher prefix for each prompt, shared by its rollouts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..objective.methods import Method
from ..rollout.guidance import prefixes, response_ids
from ..teacher.local import LocalTeacher
from ..teacher.names import rows_by_name
from ..teacher.several import Teachers, naming

Row = dict[str, Any]


@dataclass(frozen=True)
class TeacherPrefixes:
    """Finds teacher responses and cuts them to the schedule's length.

    Attributes:
        method: its guidance reading is used.
        teachers: write the responses that the data set does not have, each for its own rows.
        tokenizer: the student's.
        tokenize: rows to the token ids of their prompts, as the student sees them.
        eos_ids: every id that ends a response.
        template_kwargs: keyword arguments of the student's chat template.
        max_length: L_max, tokens of prefix and continuation together.
        min_tail: tokens left to the student.
        temperature: the teacher writes at the rollouts' temperature.
        vocab_limit: the teacher writes ids below it.
        num_generations: rollouts of a prompt.
        teacher_may_write: a sharded teacher cannot write for one rank alone.
        asking: what the teacher is asked in: turns its failure into a sentence.
        drawing: what a teacher writes in, told which and the row of each response (of its prompt's first rollout in
            the whole step): decides where the tokens come from; PyTorch's generator by default.
    """

    method: Method
    teachers: Teachers
    tokenizer: Any
    tokenize: Callable[[list[Row]], list[list[int]]]
    eos_ids: Sequence[int]
    template_kwargs: dict[str, Any]
    max_length: int
    min_tail: int
    temperature: float
    vocab_limit: int
    num_generations: int
    teacher_may_write: bool = True
    asking: Callable[[], AbstractContextManager[None]] = nullcontext
    drawing: Callable[[LocalTeacher, Sequence[int]], AbstractContextManager[None]] = lambda *_: nullcontext()

    def prefixes_for(
        self, rows: Sequence[Row], first_row: int, fraction: float, gather: Callable[[list], list]
    ) -> list[list[int]]:
        """One prefix for each of this rank's rows, the same for all rows of a prompt.

        A prompt's rows may lie on two ranks: the rank with the first of them finds the prefix, and `gather` shares it.

        Args:
            rows: this rank's rows, rollouts of a prompt side by side.
            first_row: number of the first of them in the whole step.
            fraction: α_t of the schedule.
            gather: collects a list of objects from all ranks.
        """
        groups = [(first_row + i) // self.num_generations for i in range(len(rows))]
        owned = {group: i for i, group in enumerate(groups) if (first_row + i) % self.num_generations == 0}
        starts = prefixes(
            self._responses([rows[i] for i in owned.values()], [first_row + i for i in owned.values()], fraction),
            reading=self.method.guidance_length,
            fraction=fraction,
            max_length=self.max_length,
            min_tail=self.min_tail,
        )
        shared = dict(gather(list(zip(owned, starts, strict=True))))
        return [shared[group] for group in groups]

    def _responses(self, rows: list[Row], numbers: list[int], fraction: float) -> list[list[int]]:
        """Each row's teacher response as ids without EOS: the data set's, else written by the teacher now.

        Args:
            rows: the first rollout of each prompt.
            numbers: theirs in the whole step.
            fraction: α_t of the schedule.
        """
        if not rows:
            return []
        prompt_ids = [list(ids) for ids in self.tokenize(rows)]
        missing = [i for i, row in enumerate(rows) if row.get("teacher_response") is None]
        written = self._write(
            [rows[i] for i in missing], [numbers[i] for i in missing], [prompt_ids[i] for i in missing], fraction
        )
        found = dict(zip(missing, written, strict=True))
        return [found[i] if i in found else self._given(row, prompt_ids[i]) for i, row in enumerate(rows)]

    def _given(self, row: Row, prompt_ids: list[int]) -> list[int]:
        options = self.template_kwargs | self.teachers.contexts[self.teachers.name_for(row)].student_options(row)
        ids = response_ids(row["teacher_response"], row["prompt"], prompt_ids, self.tokenizer, self.eos_ids, **options)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_limit:
            raise ValueError(
                f"the teacher_response of prompt {row['prompt']!r:.60} has token ids from {min(ids)} to {max(ids)}, "
                f"but the student's vocabulary has {self.vocab_limit} entries; use the student's tokenizer."
            )
        return ids

    def _write(
        self, rows: list[Row], numbers: list[int], prompt_ids: list[list[int]], fraction: float
    ) -> list[list[int]]:
        """Samples of each row's teacher, no longer than the prefix can use."""
        if not rows:
            return []
        if not self.teacher_may_write:
            raise ValueError(
                f"prompt {rows[0]['prompt']!r:.60} has no teacher_response, and a sharded teacher cannot write one "
                "for a single rank. Generate the responses beforehand into a teacher_response column."
            )
        longest = self.max_length
        if self.method.guidance_length == "cap":
            longest = min(longest, int(fraction * longest + 1e-9) + self.min_tail)
        contexts = self.teachers.contexts_for(rows, prompt_ids)
        written: dict[int, list[int]] = {}
        for name, mine in rows_by_name([self.teachers.name_for(row) for row in rows]).items():
            teacher = self.teachers.by_name[name]
            with self.asking(), naming(name), self.drawing(teacher, [numbers[i] for i in mine]):
                responses = teacher.write(
                    [contexts[i] for i in mine],
                    pad_id=min(self.tokenizer.pad_token_id, teacher.vocab_size - 1),  # any id that the teacher has
                    eos_ids=self.eos_ids,
                    max_new_tokens=longest,
                    temperature=self.temperature,
                    vocab_limit=self.vocab_limit,
                )
            written |= dict(zip(mine, responses, strict=True))
        return [written[i] for i in range(len(rows))]
