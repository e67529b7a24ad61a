"""The beginning of a long text in a message."""

from __future__ import annotations


def in_brief(text: str, most: int) -> str:
    """A text that somebody else wrote, on one line of at most `most` characters. It is cut between two words if that
    keeps half of them, and `…` says so.

    >>> in_brief("cannot connect: try again later", 22), in_brief("a" * 30, 8), in_brief("short", 8)
    ('cannot connect: try …', 'aaaaaaa…', 'short')
    """
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    words = text[: most - 1].rpartition(" ")[0].rstrip(" ,;:([")
    return f"{words} …" if len(words) >= most // 2 else f"{text[: most - 1]}…"
