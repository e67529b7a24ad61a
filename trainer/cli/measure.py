"""estimate and bench: memory and speed of training. They need no data from the user."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.base.errors import EXIT_OK, ConfigError
from trainer.base.files import check_folder, write_json, write_text
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
    given = parser.parse_intermixed_args(arguments)
    if given.table and (given.overrides or given.json):
        raise ConfigError(f"--table {given.table}: the table has all models and sizes; remove the other arguments")
    config = options.composed(given.overrides, "estimate", None)
    if given.table:
        check_folder(given.table.absolute().parent)
    else:
        from trainer.models import timm_names

        timm_names.check(config.model.name)

    with heavy():
        from trainer.memory import estimate as memory
        from trainer.memory import table

    if given.table:
        write_text(given.table, table.as_csv(list(table.rows())))
        return EXIT_OK
    traced = memory.estimate(config, given.classes)
    if given.json:
        print(json.dumps(memory.as_json(config, traced, given.classes), indent=2))
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
    given = parser.parse_args(arguments)
    if given.json is not None:
        check_folder(given.json.absolute().parent)

    with heavy():
        from trainer.bench import bench as benches

    measured = benches.measure(given.quick, [given.only] if given.only else benches.PARTS)
    print(benches.as_text(measured))
    if given.json is not None:
        write_json(given.json, measured)
    return EXIT_OK
