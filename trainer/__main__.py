"""`python -m trainer`: the entry point, and the images' ENTRYPOINT."""

import sys

from trainer.cli.imports import end
from trainer.cli.main import main

if __name__ == "__main__":
    end(main(sys.argv[1:]))
