"""Blocks of KV cache, shared between requests whose text begins alike.

A block holds the keys and values of ``block_tokens`` consecutive tokens. A full block is known by
the hash of its tokens and of the block before it; whoever comes with the same beginning takes the
block instead of computing it. A block that nobody holds stays findable until its place is needed:
the least recently freed goes first, and of one request the end goes before the beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Held:
    """The blocks that one request holds, in order; ``hashes`` are those of its full blocks."""

    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    published: int = 0


class BlockPool:
    """``blocks`` blocks of ``block_tokens`` tokens each."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        if blocks < 1 or block_tokens < 1:
            raise ValueError(f"expected at least one block of one token: {blocks}, {block_tokens}")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._references = [0] * blocks
        self._hash_of: list[int | None] = [None] * blocks
        self._cached: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(blocks))

    @property
    def free(self) -> int:
        """Blocks that can be had now, findable ones among them."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    def take_cached(self, held: Held, tokens: Sequence[int]) -> int:
        """Take the blocks of the longest known beginning; returns its tokens.

        At least one token is left to compute: what comes next is only known by computing it.
        Precondition: ``held`` holds no block.
        """
        found = 0
        for number in range((len(tokens) - 1) // self.block_tokens):
            block = self._cached.get(self._hash(held, tokens, number))
            if block is None:
                break
            self._reference(block)
            held.blocks.append(block)
            found += self.block_tokens
        held.published = len(held.blocks)
        return found

    def lacking(self, held: Held, tokens: int) -> int:
        """Blocks still to be had for ``tokens`` tokens in all."""
        return max(0, -(-tokens // self.block_tokens) - len(held.blocks))

    def grow(self, held: Held, tokens: int) -> bool:
        """Hold enough blocks for ``tokens`` tokens in all; false, and nothing done, if too few."""
        lacking = self.lacking(held, tokens)
        if lacking > len(self._free):
            return False
        for _ in range(lacking):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            held.blocks.append(block)
        return True

    def publish(self, held: Held, tokens: Sequence[int], computed: int) -> None:
        """Make findable the blocks that the first ``computed`` tokens fill."""
        for number in range(held.published, computed // self.block_tokens):
            name = self._hash(held, tokens, number)
            block = held.blocks[number]
            if name not in self._cached and self._hash_of[block] is None:
                self._cached[name] = block
                self._hash_of[block] = name
            held.published = number + 1

    def release(self, held: Held) -> None:
        """Let go of all blocks; what was published stays findable for now."""
        for block in reversed(held.blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
        held.blocks.clear()
        held.published = 0

    def check(self) -> None:
        """Raise ``RuntimeError`` where the books do not agree with themselves."""
        for block, references in enumerate(self._references):
            if references < 0 or (references == 0) != (block in self._free):
                raise RuntimeError(f"block {block} has {references} holders, free or not")
        for name, block in self._cached.items():
            if self._hash_of[block] != name:
                raise RuntimeError(f"block {block} is found under a hash that is not its own")

    def _hash(self, held: Held, tokens: Sequence[int], number: int) -> int:
        """The hash of full block ``number``, kept so that it is computed once a request."""
        while len(held.hashes) <= number:
            start = len(held.hashes) * self.block_tokens
            before = held.hashes[-1] if held.hashes else 0
            held.hashes.append(hash((before, *tokens[start : start + self.block_tokens])))
        return held.hashes[number]

    def _reference(self, block: int) -> None:
        if not self._references[block]:
            del self._free[block]
        self._references[block] += 1

    def _forget(self, block: int) -> None:
        name = self._hash_of[block]
        if name is not None:
            del self._cached[name]
            self._hash_of[block] = None
