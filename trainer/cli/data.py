"""check-data and sample-data: commands on the data folder. They need no model."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from trainer.base.errors import EXIT_OK
from trainer.base.files import check_folder, data_folder
from trainer.cli import options
from trainer.cli.imports import heavy


def check_data(arguments: list[str]) -> int:
    parser = options.parser(
        "check-data",
        "Find duplicate images (equal, rescaled, re-encoded, rotated or mirrored), leaks between training and "
        "validation, contradictory labels and unreadable files. Takes the data.* keys of `train`.",
    )
    options.add_output(parser)
    options.add_data(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `train`: data.format=…")
    parser.add_argument("--quick", action="store_true", help="only read the training images and labels; write nothing")
    parser.add_argument("--json", action="store_true", help="print the content of check_data.json")
    args = parser.parse_intermixed_args(arguments)
    folder = None if args.root is None else str(args.root)
    config = options.composed(args.overrides, "check-data", folder).data
    if args.quick:
        from trainer.data.table import data_root, read_training

        root = data_root(config)
        print(f"{root}: {len(read_training(root, config))} training images without errors")
        return EXIT_OK
    output = options.output_folder(args.output)
    data_folder(config.root)

    with heavy():
        from trainer.data import check

    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # keep notes out of the JSON
        checked = check.check(config)
        report = check.write(checked, output)
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else check.as_text(checked, report))
    check.refuse(checked, config)
    return EXIT_OK


def sample_data(arguments: list[str]) -> int:
    parser = options.parser("sample-data", "Draw a small, seeded set of documents.")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--classes", type=options.positive, default=6)
    parser.add_argument("--per-class", type=options.positive, default=40, help="training images in each class")
    parser.add_argument("--test-per-class", type=options.count, default=10)
    parser.add_argument("--seed", type=options.count, default=0)
    parser.add_argument("--force", action="store_true", help="replace an earlier sample data folder")
    args = parser.parse_args(arguments)
    check_folder(args.out)

    from trainer.data.drawn import write_sample_data

    write_sample_data(args.out, args.classes, args.per_class, args.test_per_class, args.seed, args.force)
    return EXIT_OK
