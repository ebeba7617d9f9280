"""Finding stop sequences in text that arrives bit by bit.

An Aho-Corasick automaton: every character is looked at once, whatever the number of sequences.
It knows characters and positions, not tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """The first sequence to be complete wins; of those complete at one character, the longest.

    That rule looks at characters alone, so neither tokens nor chunks can change what is found.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self.matched: str | None = None
        self._position = 0
        self._state = 0
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._found: list[str | None] = [None]
        for sequence in sequences:
            self._add(sequence)
        self._fail = self._failures()
        self._initials = frozenset(self._next[0])

    @property
    def begin(self) -> int:
        """Where the match begins, or text that may still become one; else the text's end."""
        held = self._depth[self._state] if self.matched is None else len(self.matched)
        return self._position - held

    def feed(self, text: str, early: int = 0) -> None:
        """Reads on, up to the end of a match and no further. In so many early characters no sequence can begin.

        Those come before all others.
        """
        self._position += early
        later = text[early:] if early else text
        if self.matched is not None or self.skip(later):
            return
        for character in later:
            self._position += 1
            self._state = self._step(self._state, character)
            self.matched = self._found[self._state]
            if self.matched is not None:
                return

    def skip(self, text: str) -> bool:
        """Reads on where no sequence has begun and none begins in the text; else False, and nothing is read."""
        if self._state or self.matched is not None or not self._initials.isdisjoint(text):
            return False
        self._position += len(text)
        return True

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)

    def _add(self, sequence: str) -> None:
        if not sequence:
            raise ValueError("a stop sequence has at least one character")
        state = 0
        for character in sequence:
            state = self._next[state].get(character) or self._grow(state, character)
        self._found[state] = sequence

    def _grow(self, parent: int, character: str) -> int:
        self._next.append({})
        self._depth.append(self._depth[parent] + 1)
        self._found.append(None)
        self._next[parent][character] = len(self._next) - 1
        return self._next[parent][character]

    def _failures(self) -> list[int]:
        """For every state the longest proper suffix that is a state; breadth first, short ones first."""
        self._fail = [0] * len(self._next)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, child in self._next[state].items():
                self._fail[child] = self._step(self._fail[state], character)
                waiting.append(child)
            if self._found[state] is None:
                self._found[state] = self._found[self._fail[state]]
        return self._fail
