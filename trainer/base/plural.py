"""Numbers with their nouns in messages."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """The number and the noun, in the plural unless it is one.

    >>> counted(1, "run"), counted(0, "class"), counted(2.5, "core"), counted(2, "entry"), counted(3, "epoch")
    ('1 run', '0 classes', '2.5 cores', '2 entries', '3 epochs')
    """
    digits = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "tch", "nch", "sh")) else "s")
