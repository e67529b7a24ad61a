"""Words of a command line that are no `key=value`: what somebody meant who wrote them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from trainer.config.keys import GROUPS, OTHER_WORDS, keys


def misspelt(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """One message for each override that is written in another form, and the words that are in the right form."""
    faults, rest, position = [], [], 0
    while position < len(words):
        word, after = words[position], [*words[position + 1 : position + 3], "", ""]
        taken = 1
        if (
            "=" in (word[-1:], after[0][:1])
            and after[0]
            and (after[0] == "=" or after[0][:1] == "=" or _is_bare(after[0]))
        ):
            taken = 3 if after[0] == "=" and after[1] else 2
            together = "".join(words[position : position + taken])
            faults.append(f"{' '.join(words[position : position + taken])}: write {together}")
        elif _is_bare(word) and (key := _key(word)) and _is_bare(after[0]) and not after[0].startswith("-"):
            taken = 2
            meant = f"--data {after[0]}" if key == "data" and Path(after[0]).is_dir() else f"{key}={after[0]}"
            faults.append(f"{word} {after[0]}: write {meant}")
        elif _is_bare(word) and not word.startswith("-") and Path(word).is_dir():
            faults.append(f"{word}: is a folder; write --data {word}")
        else:
            rest.append(word)
        position += taken
    return faults, rest


def _is_bare(word: str) -> bool:
    return bool(word) and "=" not in word


def _key(word: str) -> str | None:
    """The key that a word such as `--lr` or `epochs` means. None: there is none, or there are several."""
    name = word.lstrip("-").replace("-", "_")
    if name in GROUPS:
        return name
    like = difflib.get_close_matches(name, OTHER_WORDS, n=1, cutoff=0.85)
    meant = [
        key for key in keys() if key == name or key.rsplit(".", 1)[-1] in (name, OTHER_WORDS[like[0]] if like else name)
    ]
    return meant[0] if len(meant) == 1 else None
