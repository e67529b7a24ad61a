"""`python -m trainer`: the entry point, and the images' ENTRYPOINT."""

import sys

from trainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
