"""Prompts of the adapters: instruction templates of the Alpaca kind."""

from __future__ import annotations

_ALONE = "Below is an instruction that describes a task. "
_PAIRED = "Below is an instruction that describes a task, paired with an input that provides further context. "
_WRITE = "Write a response that appropriately completes the request.\n\n"
INSTRUCTION = "### Instruction:\n"
RESPONSE = "\n\n### Response:"
START = _ALONE + _WRITE + INSTRUCTION


def alpaca(instruction: str, context: str = "") -> str:
    """Write an instruction, with a further context or none, as the adapters were trained to read it.

    Args:
        instruction: the question or task.
        context: more text that belongs to it; empty counts as none.

    Returns:
        The prompt: it ends with the response's heading, without a newline or space after it.

    Source: golden generation.
    """
    given = f"\n\n### Input:\n{context}" if context else ""
    return f"{_PAIRED if context else _ALONE}{_WRITE}{INSTRUCTION}{instruction}{given}{RESPONSE}"


def next_turn(question: str) -> str:
    """Write a question that follows an answer in the same conversation: what comes after the answer's end token."""
    return f"\n\n{INSTRUCTION}{question}{RESPONSE}"
