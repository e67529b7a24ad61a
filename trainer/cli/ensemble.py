"""ensemble: several checkpoints vote."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from trainer.base.errors import EXIT_OK, ConfigError, nearest
from trainer.base.files import check_checkpoint
from trainer.base.names import METHODS, OPTIMISED, WEIGHTS
from trainer.cli import options
from trainer.cli.imports import heavy


def ensemble(arguments: list[str]) -> int:
    parser = options.parser(
        "ensemble", "Join checkpoints in an ensemble. Writes its validation F1, submission.csv and predictions.npz."
    )
    options.add_output(parser)
    several = parser.add_mutually_exclusive_group(required=True)
    several.add_argument("--checkpoints", nargs="+", type=Path, metavar="FILE")
    several.add_argument("--checkpoint", dest="checkpoints", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="soft_voting", help=f"{', '.join(METHODS)} (default: %(default)s)")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="W",
        help="one number per member (all folds of a model are one member), or equal, or greedy: search weights on the "
        "validation images and use them if they are better (default: equal)",
    )
    options.add_inference(parser)
    args = options.parse(parser, arguments)
    output = options.output_folder(args.output)
    options.check_views(args.tta)
    if args.method not in METHODS:
        raise ConfigError(f"--method {args.method}: unknown method; {nearest(args.method, METHODS)}")
    weights = weighting(args.weights)
    for path in args.checkpoints:
        check_checkpoint(path)
    root = options.optional_data(args.root, may_be_file=True)

    with heavy():
        from trainer.data.table import has_test_images
        from trainer.ensemble.score import ensemble as run
        from trainer.models.ensemble_file import make

    joined = make(args.checkpoints, args.method, None if isinstance(weights, str) else weights)
    for repeated in joined.repeated():
        same = " and ".join(str(part.path) for part in repeated)
        print(f"note: {same} are one checkpoint, which has {len(repeated)} votes; name it once for one vote")
    if root is None:
        print("note: no data folder, so no submission.csv; add --data DIR to get one")
    elif not has_test_images(root):
        print(f"note: {root} has no test images, so no submission.csv")
        root = None
    run(joined, weights if isinstance(weights, str) else "given", root, output, options.inference(args))
    return EXIT_OK


def weighting(words: Sequence[str] | None) -> str | list[float]:
    """The value of --weights: a name in `WEIGHTS`, or one number per member. Raises ConfigError."""
    if not words:
        return "equal"
    if len(words) == 1 and not _is_number(words[0]):
        if words[0] == OPTIMISED:
            print(f"note: --weights {OPTIMISED} was removed; --weights greedy is used, which is as good")
            return "greedy"
        if words[0] not in WEIGHTS:
            raise ConfigError(f"--weights {words[0]}: unknown weights; {nearest(words[0], WEIGHTS)}")
        return words[0]
    odd = next((word for word in words if not _is_number(word)), None)
    if odd is not None:
        raise ConfigError(
            f"--weights {' '.join(words)}: {odd} is not a number; give one number per member, or {' or '.join(WEIGHTS)}"
        )
    numbers = [float(word) for word in words]
    if min(numbers) < 0 or sum(numbers) <= 0:
        raise ConfigError(
            f"--weights {' '.join(words)}: weights must not be negative, and at least one must be positive"
        )
    return numbers


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
