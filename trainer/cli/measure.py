"""estimate and bench: memory and speed of training. They need no data from the user."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.base.errors import EXIT_OK, ConfigError
from trainer.base.files import write_json, write_text
from trainer.cli import options
from trainer.cli.imports import heavy


def estimate(arguments: list[str]) -> int:
    parser = options.parser(
        "estimate",
        "Predict the device memory of one training step, without data or a GPU. Takes the keys of `train`. "
        "device=mps is for Apple GPUs, device=cpu for the CPU; other values are for CUDA.",
        "python -m trainer estimate KEY=VALUE … [--json] [--classes N]\n       python -m trainer estimate --table FILE",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `train`")
    parser.add_argument("--classes", type=options.positive, default=17, help="number of classes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the launcher's memory table of all models")
    args = parser.parse_intermixed_args(arguments)
    if args.table and (args.overrides or args.json):
        raise ConfigError(f"--table {args.table}: the table has all models and sizes; remove the other arguments")
    config = options.composed(args.overrides, "estimate", None)
    if args.table:
        options.check_output_file("--table", args.table)
    else:
        from trainer.config import timm_models

        timm_models.check(config.model.name)

    with heavy():
        from trainer.memory import estimate as memory
        from trainer.memory import table

    if args.table:
        write_text(args.table, table.as_csv(list(table.rows())))
        return EXIT_OK
    traced = memory.estimate(config, args.classes)
    if args.json:
        print(json.dumps(memory.as_json(config, traced, args.classes), indent=2))
    else:
        print(memory.as_text(config, traced))
    return EXIT_OK


def bench(arguments: list[str]) -> int:
    parser = options.parser(
        "bench",
        "Measure loading and training speed of this machine, as ratios to plain code and to timm. The measurements "
        "alternate in one run and use drawn pages.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and models: a few minutes, less exact")
    parser.add_argument("--only", choices=("loader", "train"), help="measure only loading or only training")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the results, the machine and the date to FILE"
    )
    args = parser.parse_args(arguments)
    if args.json is not None:
        options.check_output_file("--json", args.json)

    with heavy():
        from trainer.bench import bench as benches

    measured = benches.measure(args.quick, [args.only] if args.only else benches.PARTS)
    print(benches.as_text(measured))
    if args.json is not None:
        write_json(args.json, measured)
    return EXIT_OK
