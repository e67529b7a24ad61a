"""Labs whose runs are containers: what tests of the Docker engine share."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.docker_engine import Dockerd
from tests.launcher.conftest import LABEL, Lab, wait_for

MIB = 2**20


def job(box: Lab, image: str, count: int = 1, more: str = "", name: str = "job.yaml", pretrained: str = "false") -> str:
    values = ", ".join(map(str, range(count)))
    text = f"image: {image}\nenv: [FAKE_PLAN]\nmatrix: {{seed: [{values}]}}\n"
    return box.job(text + f"overrides: {{model: resnet34, model.pretrained: {pretrained}}}\n" + more, name)


def submit(box: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return box.launcher("submit", *words, "--engine", "docker", box.machine())


def journal(box: Lab, what: str) -> list[dict[str, Any]]:
    """Of submissions that are whole: a folder that is still being made gets its name while one looks into it."""
    paths = sorted(box.runs.glob("[!.]*/[!.]*/journal"))
    lines = [line for path in paths for line in path.read_text().rpartition("\n")[0].splitlines()]
    return [event for event in map(json.loads, lines) if event["what"] == what]


def containers(dockerd: Dockerd, box: Lab, everything: bool = True) -> list[Any]:
    found = dockerd.client().containers.list(all=everything, filters={"label": LABEL})
    return [each for each in found if each.labels[LABEL].startswith(str(box.root))]


def one_container(dockerd: Dockerd, box: Lab) -> Any:
    wait_for(lambda: journal(box, "begin"), "a run")
    (found,) = containers(dockerd, box)
    return found
