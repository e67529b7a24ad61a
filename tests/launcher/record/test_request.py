"""run.json: every request is read back as it was written, and only what a launcher writes is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.base.errors import RecordError
from launcher.record.request import Resources, Retry, RunRequest, parse_request, request_as_json

REQUEST = RunRequest(
    "001-a", 1, "train", ["train"], resources=Resources(1, memory=5, cpus=1.5), retry=Retry(2, ("lost",), 0.5),
    config={"model": "resnet34", "teachers": ["x"]}, links={"/data/a": "/b"}, timeout=1.0,
)  # fmt: skip


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(request_as_json(REQUEST)), **fields}).encode()


def test_a_request_is_read_as_it_was_written() -> None:
    assert parse_request(request_as_json(REQUEST).encode(), Path("001-a")) == REQUEST


def test_fields_that_an_earlier_version_did_not_write_have_their_defaults() -> None:
    content = json.loads(request_as_json(REQUEST))
    for name in ("links", "priority", "retry", "share_gpu"):
        del content[name]
    one, other = (parse_request(json.dumps(content).encode(), Path("001-a")) for _ in range(2))
    assert (one.links, one.priority, one.retry, one.share_gpu) == ({}, 0, Retry(), False)
    assert one.links is not other.links, "the requests share no list or mapping"


@pytest.mark.parametrize("missing", ["name", "index", "kind", "command", "resources"])
def test_a_request_without_a_field_that_has_no_default_is_none(missing: str) -> None:
    content = json.loads(request_as_json(REQUEST))
    del content[missing]
    with pytest.raises(RecordError, match=f"'{missing}'"):
        parse_request(json.dumps(content).encode(), Path("001-a"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"share_gpu": 1}, "share_gpu: 1 is not true or false"),
        ({"index": True}, "index: true is not an integer in its range"),
        ({"index": 1.0}, "index: 1.0 is not an integer in its range"),
        ({"index": -1}, "index: -1 is not an integer in its range"),
        ({"timeout": "1"}, 'timeout: "1" is not a number in its range'),
        ({"timeout": True}, "timeout: true is not a number in its range"),
        ({"env": ["A", None]}, r'env: \["A", null\] is not a list of texts'),
        ({"needs": ["../a"]}, r'needs: \["../a"\] is not a list of names'),
        ({"links": {"a": None}}, r'links: {"a": null} is not a mapping of texts'),
        ({"kind": "other"}, 'kind: "other" is not a word of this launcher'),
        ({"command": None}, "command is null"),
        ({"resources": {"gpus": None}}, "resources.gpus is null"),
        ({"resources": {"cpus": True}}, "resources.cpus: true is not a number in its range"),
        ({"retry": {"on": None}}, "retry.on is null"),
        ({"select": {"top": None}}, "select names neither top nor runs"),
        ({"unheard_of": 1}, "its field unheard_of is of another version"),
    ],
)
def test_a_value_of_another_type_is_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(RecordError, match=why):
        parse_request(changed(**fields), Path("001-a"))
