"""`python -m tests.made_docs`: write jobs/schema.json and the parts of docs/ that are made from the code (`make docs`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.engines import registry
from launcher.job import json_schema, schema
from launcher.record import states
from tests import architecture

DOCS = Path(__file__).parents[1] / "docs"
PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "job file reference": ("job-file.md", lambda: schema.reference(registry.sections())),
    "states": ("states.md", states.reference),
    "rooms of the launcher": ("architecture.md", lambda: architecture.table("launcher")),
    "rooms of the trainer": ("architecture.md", lambda: architecture.table("trainer")),
}
"""Name of the part: the page that has it, and what makes it. It stands between two comments."""


SCHEMA = DOCS.parent / "jobs" / "schema.json"


def schema_text() -> str:
    """What `launcher schema` prints."""
    return json_schema.as_text(json_schema.job_schema(registry.sections())) + "\n"


def renew(name: str) -> tuple[str, str]:
    """The text of the page with the named part, as it is and as it should be."""
    page, make = PARTS[name]
    text = (DOCS / page).read_text(encoding="utf-8")
    begin = f"<!-- {name}: made from the code by `make docs` -->\n"
    end = f"<!-- end of {name} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    assert rest and tail, f"docs/{page} lacks the comments around: {name}"
    return text, f"{head}{begin}{make()}\n{end}{tail}"


if __name__ == "__main__":
    for part, (file, _) in PARTS.items():
        (DOCS / file).write_text(renew(part)[1], encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    architecture.PICTURE.write_text(architecture.draw(architecture.read_house()), encoding="utf-8")
    print(f"jobs/{SCHEMA.name}, docs/: {', '.join(PARTS)} and {architecture.PICTURE.name} are those of the code")
