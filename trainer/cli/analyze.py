"""analyze and label-errors: commands on the validation predictions of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.base.errors import EXIT_OK
from trainer.base.files import check_checkpoint
from trainer.cli import options
from trainer.cli.imports import heavy


def analyze(arguments: list[str]) -> int:
    parser = options.parser("analyze", "Report the metrics and mistakes of a checkpoint on its validation images.")
    options.add_output(parser)
    options.add_checkpoint(parser)
    options.add_data(parser, of_model=True)
    args = options.parse(parser, arguments)
    output = options.output_folder(args.output)
    check_checkpoint(args.checkpoint)
    root = options.data_of_model(args.root, args.checkpoint)

    with heavy():
        from trainer.report.analyze import analyze as run

    run(args.checkpoint, output / "analysis_results", root)
    return EXIT_OK


def label_errors(arguments: list[str]) -> int:
    parser = options.parser(
        "label-errors", "Find likely label errors among the validation images (confident learning)."
    )
    options.add_output(parser)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--predictions", type=Path, metavar="FILE", help="a val_predictions.npz or a best.ckpt")
    either.add_argument("--checkpoint", dest="predictions", type=Path, help=argparse.SUPPRESS)
    options.add_data(parser, of_model=True)
    args = options.parse(parser, arguments)
    output = options.output_folder(args.output)
    check_checkpoint(args.predictions)
    root = options.data_of_model(args.root, args.predictions)

    with heavy():
        from trainer.scores.label_errors import write

    write(args.predictions, output, root)
    return EXIT_OK
