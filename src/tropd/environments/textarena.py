"""Games of TextArena for one player as an environment: a move is a text, and so is what the game says.

`pip install textarena` brings the games. Rows name a game and a seed, for `environment:
tropd.environments.textarena.Game`; `python -m tropd.environments.textarena FrozenLake-v0 64 rows.jsonl` writes them.
"""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import textarena
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed. It comes with: pip install textarena==0.7.4", name=error.name
    ) from error

GAMES = (
    *("FifteenPuzzle-v0", "FrozenLake-v0", "GuessTheNumber-v0", "LightsOut-v0", "Mastermind-v0"),
    *("Minesweeper-v0", "PegJump-v0", "Secretary-v0", "Sudoku-v0-easy", "TowerOfHanoi-v0"),
)
"""Those that were tried: for one player, without a download, and the same for the same seed."""

OVER = "The game is over."

PROMPT = "Play this game. Make each move with the tool `act`; when the game is over, say so.\n"


def rows(game: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with seeds from `seed` on, which `Game.reset` gets."""
    check_game(game)
    message = {"role": "user", "content": PROMPT}
    return [{"prompt": [message], "game": game, "seed": number} for number in range(seed, seed + count)]


def check_game(game: str) -> None:
    """Refuse a game that was not tried: many are for several players, or want a download."""
    if game not in GAMES:
        raise ValueError(f"game is {game!r}; choose one of {', '.join(GAMES)}.")


class Game:
    """A game for one player. Its draws are its own: TextArena takes Python's global ones, which stay as they were."""

    def reset(self, game: str, seed: int, **_: Any) -> str:
        """Begin a game.

        Args:
            game: one of `GAMES`.
            seed: of what it draws.
        """
        check_game(game)
        self._draws, self._seen, self._is_over = random.Random(seed).getstate(), "", False
        with self._own_draws():
            self._game = textarena.make(game)
            self._game.reset(num_players=1, seed=seed)
        return self._news()

    def act(self, action: str) -> str:
        """Make a move.

        Args:
            action: the move, in the form that the game asks for, such as [5].
        """
        if self._is_over:
            return OVER
        with self._own_draws():
            self._is_over, _ = self._game.step(str(action))
        if not self._is_over:
            return self._news()
        _, told = self._game.close()
        return f"{told[0].get('reason') or ''} {OVER}".strip()

    def get_reward(self) -> float:
        """What the game gives, 1 for a game that is won, and some give a part; 0 where it is not over."""
        if not self._is_over:
            return 0.0
        rewards, _ = self._game.close()
        return float(rewards[0])

    def _news(self) -> str:
        """What the game says beyond what it has said, or all of it where that has changed."""
        with self._own_draws():
            _, text = self._game.get_observation()
        news, self._seen = text.removeprefix(self._seen), text
        return str(news.strip("\n"))

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        others = random.getstate()
        random.setstate(self._draws)
        try:
            yield
        finally:
            self._draws = random.getstate()
            random.setstate(others)


def main(words: list[str]) -> None:
    """Write rows: `GAME COUNT rows.jsonl [FIRST_SEED]`."""
    if len(words) not in (3, 4) or not all(word.isdecimal() for word in (words[1], *words[3:])):
        raise SystemExit("usage: python -m tropd.environments.textarena GAME COUNT ROWS.jsonl [FIRST_SEED]")
    found = rows(words[0], int(words[1]), int(words[3]) if len(words) == 4 else 0)
    Path(words[2]).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    print(f"{words[2]}: {len(found)} rows of {words[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
