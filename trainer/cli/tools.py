"""The trainer's commands that need no data of the user's: estimate, bench, sample-data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from trainer.base.errors import EXIT_OK, ConfigError
from trainer.base.files import check_folder
from trainer.cli.main import _count, _Parser, _positive, _quiet


def estimate(arguments: list[str]) -> int:
    parser = _Parser(
        "python -m trainer estimate",
        usage="python -m trainer estimate KEY=VALUE … [--json] [--classes N]\n"
        "       python -m trainer estimate --table FILE",
        description="The memory that one training step needs on its device, traced without data or a GPU. Takes the "
        "keys of `train`; device=mps traces a step on Apple's GPUs, device=cpu one on the CPU, all else one on CUDA.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `train`")
    parser.add_argument("--classes", type=_positive, default=17, help="of the classifier (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the launcher's table of all models instead")
    options = parser.parse_args(arguments)
    from trainer.config.compose import compose

    if options.table and (options.overrides or options.json):
        raise ConfigError(f"--table {options.table}: it is of all models and sizes; take the other words away")
    composed = compose(options.overrides, "estimate")
    from trainer.base.files import write_text
    from trainer.training import memory as estimates

    if options.table:
        write_text(options.table, estimates.as_csv(list(estimates.table())))
        return EXIT_OK
    found = estimates.estimate(composed, options.classes)
    if options.json:
        print(json.dumps(estimates.as_json(composed, found, options.classes), indent=2))
    else:
        print(estimates.as_text(composed, found))
    return EXIT_OK


def bench(arguments: list[str]) -> int:
    parser = _Parser(
        "python -m trainer bench",
        description="How fast this machine loads and trains: ratios to plain references and to timm's own pieces, all "
        "measured in turns in one run, on drawn pages.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and models: minutes, and rougher figures")
    parser.add_argument("--only", choices=("loader", "train"), help="one half of it")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures, the machine and the date there too"
    )
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_folder(options.json.absolute().parent)
    _quiet()
    from trainer.base.files import write_json
    from trainer.bench import bench as benches

    made = benches.measure(options.quick, [options.only] if options.only else benches.PARTS)
    print(benches.as_text(made))
    if options.json is not None:
        write_json(options.json, made)
    return EXIT_OK


def sample_data(arguments: list[str]) -> int:
    parser = _Parser(
        "python -m trainer sample-data", description="Draw a small, seeded set of documents.", allow_abbrev=False
    )
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--classes", type=_positive, default=6)
    parser.add_argument("--per-class", type=_positive, default=40, help="training images in each class")
    parser.add_argument("--test-per-class", type=_count, default=10)
    parser.add_argument("--seed", type=_count, default=0)
    parser.add_argument("--force", action="store_true", help="replace what an earlier sample-data drew there")
    options = parser.parse_args(arguments)
    from trainer.data.drawn import write_sample_data

    write_sample_data(
        options.out, options.classes, options.per_class, options.test_per_class, options.seed, options.force
    )
    return EXIT_OK


HANDLERS: dict[str, Callable[[list[str]], int]] = {
    "estimate": estimate,
    "bench": bench,
    "sample-data": sample_data,
}
