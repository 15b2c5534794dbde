"""Models that can reason before they answer: how they are told to, or not to, and how their reasoning is marked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a family of models that can reason before they answer is told to, or not to.

    Attributes:
        option: The argument of the chat template that switches reasoning on (true) or off (false); None if no template
            of the family has one.
        empty: What an answer without reasoning begins with, unless the turn already ends with it: the block of
            reasoning, empty.
        start, end: What the block begins and ends with.
        always: False if an empty block is left to the chat template, and only completed where it opens one: not all
            models of the family reason, or are trained with it.
    """

    option: str | None
    empty: str = ""
    start: str = "<think>"
    end: str = "</think>"
    always: bool = True

    def without(self, turn: str) -> str:
        r"""The turn with the block of reasoning closed, so that the answer comes next.

        >>> qwen3_5 = Thinking("enable_thinking", "<think>\n\n</think>\n\n")
        >>> qwen3_5.without("<|im_start|>assistant\n<think>\n")
        '<|im_start|>assistant\n<think>\n\n</think>\n\n'
        """
        if turn.rstrip().endswith(self.end):
            return turn
        opened = (k for k in range(len(self.empty) - 1, len(self.start) - 1, -1) if turn.endswith(self.empty[:k]))
        return turn + self.empty[next(opened, 0) :] if self.always or self.opens(turn) else turn

    def opens(self, turn: str) -> bool:
        """Whether a turn ends with the beginning of a block of reasoning."""
        return turn.rstrip().endswith(self.start)

    def marked(self, text: str, *, opened: bool) -> str:
        r"""A generated text with its reasoning marked as `spr.grounding.final_answer` reads it.

        ``opened`` says that the turn already begins the block.

        >>> Thinking("enable_thinking").marked("A dog?</think>\na dog", opened=True)
        '<think>A dog?</think>\na dog'
        """
        text = self.start + text if opened else text
        return text.replace(self.start, "<think>").replace(self.end, "</think>")
