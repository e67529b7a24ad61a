"""Print what `python -m trainer` needs, from pyproject.toml: so that an image installs it before any code is copied.

usage: requirements.py pyproject.toml
"""

import re
import sys
import tomllib
from pathlib import Path

LAUNCHER_ONLY = {"click", "docker", "nvidia-ml-py", "psutil", "pydantic"}

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
    if re.split(r"[<>=!~; \[]", line)[0] not in LAUNCHER_ONLY:
        print(line)
