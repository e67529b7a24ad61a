"""Print the requirements of `python -m trainer` from pyproject.toml. An image installs them before it copies the code.

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
