"""Games of TextArena: won by a player that can, the same for the same seed, and with draws of their own."""

import random
import re
import subprocess
import sys

import pytest

from training import agents
from training.agents import build, logged
from tropd.data import load_prompts
from tropd.run.tools import find_tools

pytest.importorskip("textarena", reason="textarena is not installed (pip install textarena)")

from tropd.environments.textarena import GAMES, OVER, Game, rows


def begun(name: str, seed: int = 3) -> tuple[Game, str]:
    game = Game()
    return game, game.reset(**rows(name, 1, seed)[0])


def guesses(game: Game) -> list[str]:
    """A number between 1 and 20 is found by halving; what the game said."""
    low, high, said = 1, 20, []
    while not said or OVER not in said[-1]:
        middle = (low + high) // 2
        said.append(game.act(f"[{middle}]"))
        low, high = (middle + 1, high) if "higher" in said[-1] else (low, middle - 1)
    return said


def test_a_game_is_won_by_who_can_play_it():
    for seed in range(5):
        game, told = begun("GuessTheNumber-v0", seed)
        assert "between 1 and 20" in told and game.get_reward() == 0.0
        said = guesses(game)
        assert game.get_reward() == 1.0 and game.act("[1]") == OVER
        assert all("between 1 and 20" not in text for text in said)  # the rules are told once


def test_bad_moves_lose():
    game, _ = begun("FrozenLake-v0")
    said = [game.act("jump") for _ in range(3)]
    assert "invalid move" in said[0].lower() and said[-1] == OVER
    assert game.get_reward() < 1.0


@pytest.mark.parametrize("name", GAMES)
def test_a_game_is_the_same_for_its_seed_whatever_others_draw(name):
    seen = []
    for noise in (1, 2):
        random.seed(noise)
        before = random.getstate()
        (one, first), (_, other) = begun(name), begun(name, 8)
        move = re.findall(r"\[[^\]\n]*\]", first.replace("[GAME]", ""))
        said = [one.act(move[0] if move else "0 1") for _ in range(4)]
        assert random.getstate() == before
        seen.append((first, other, said, one.get_reward()))
    assert seen[0] == seen[1] and seen[0][0]


def test_the_tool_has_a_schema_and_other_games_are_refused():
    (schemas,) = find_tools([], "tropd.environments.textarena.Game").schemas.values()
    assert [schema["function"]["name"] for schema in schemas] == ["act"]
    with pytest.raises(ValueError, match="game is 'Chess-v0'; choose one of FifteenPuzzle-v0"):
        Game().reset(game="Chess-v0", seed=0)


@pytest.mark.slow
def test_a_run_plays_games_of_its_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "tropd.environments.textarena", "GuessTheNumber-v0", "2", str(path), "42"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: 2 rows of GuessTheNumber-v0\n"
    data = load_prompts(path).dataset.to_list()
    assert [row["seed"] for row in data] == [42, 43]

    def play(context: list[int]) -> str:
        """Guess 1, 2, …, and say so when it is over."""
        text = agents.text(context).split("Enter your guess.")[-1]
        if OVER in text or "between 1 and 20" not in agents.text(context):
            return "It is over.<|im_end|>"
        guess = f'{{"name": "act", "arguments": {{"action": "[{text.count("<tool_response>") + 1}]"}}}}'
        return f"<tool_call>\n{guess}\n</tool_call><|im_end|>"

    models = {name: agents.qwen(seed) for name, seed in (("student", 1), ("teacher", 2))}
    for model in models.values():
        model.config.max_position_embeddings = 8192  # one token a byte
    settings = {"num_generations": 2, "max_completion_length": 3000}
    trainer = build(tmp_path, play, environment_factory=Game, rows=data * 2, **settings, **models)
    numbers = [begun("GuessTheNumber-v0", seed)[0]._game.state.game_state["game_number"] for seed in (42, 43)]
    found = agents.rollouts(trainer)
    assert sorted(len(rollout.turns) for rollout in found) == sorted(n + 1 for n in numbers * 2)
    assert logged(trainer)["reward"] == 1.0
