"""check-data and sample-data: commands on the data folder. They need no model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from trainer.base.errors import EXIT_DATA, EXIT_OK, DataError
from trainer.base.files import check_folder, data_folder, json_text
from trainer.base.plural import counted
from trainer.cli import options
from trainer.cli.imports import heavy
from trainer.config.schema import DataConfig


def check_data(arguments: list[str]) -> int:
    parser = options.parser(
        "check-data",
        "Find duplicate images (equal, rescaled, re-encoded, rotated or mirrored), leaks between training and "
        "validation, contradictory labels and unreadable files. Takes the data.* keys of `train`.",
    )
    options.add_output(parser)
    options.add_data(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `train`: data.format=…")
    parser.add_argument(
        "--quick", action="store_true", help="only read the training images and labels, and split them; write nothing"
    )
    parser.add_argument("--configurations", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--test", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-test", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the content of check_data.json")
    args = parser.parse_intermixed_args(arguments)
    folder = None if args.root is None else str(args.root)
    config = options.composed(args.overrides, "check-data", folder).data
    if args.quick:
        return _quick(args, config, folder)
    output = options.output_folder(args.output)
    data_folder(config.root)

    with heavy():
        from trainer.data import check

    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # keep notes out of the JSON
        checked = check.check(config)
        report = check.write(checked, output)
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else check.as_text(checked, report))
    print(check.written(output), file=sys.stderr if args.json else sys.stdout)
    check.refuse(checked, config, output)
    return EXIT_OK


def _quick(args: argparse.Namespace, base: DataConfig, folder: str | None) -> int:
    """Print the number of images. With `--configurations`, which the launcher uses: the answers to the lists of
    KEY=VALUE in the JSON on standard input, as JSON."""
    from trainer.data import quick_check

    lists = json.load(sys.stdin) if args.configurations else [["training.drop_last=false"]]  # only the data counts
    configs = [options.composed([*args.overrides, *words], "check-data", folder) for words in lists]
    with contextlib.redirect_stdout(sys.stderr if args.configurations else sys.stdout):  # keep notes out of the JSON
        answers = quick_check.check(base, configs, not args.only_test, args.test)
    if args.configurations:
        print(json_text(dataclasses.asdict(answers)))
        return EXIT_DATA if answers.all_errors() else EXIT_OK
    if errors := answers.all_errors():
        raise DataError("\n".join(errors))
    for note in answers.configurations[0].notes:
        print(f"warning: {note}")
    print(f"{data_folder(base.root)}: {counted(answers.images, 'training image')} without errors")
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
