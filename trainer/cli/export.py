"""export: write a checkpoint as a file for use without the trainer."""

from __future__ import annotations

from trainer.base.errors import EXIT_OK, ConfigError, nearest
from trainer.base.files import check_checkpoint
from trainer.base.names import FORMATS
from trainer.cli import options
from trainer.cli.imports import heavy


def export(arguments: list[str]) -> int:
    parser = options.parser(
        "export",
        "Write a checkpoint as a file for use without the trainer, with read_page.py, preprocessing.json and a "
        "model card (README.md). Compares the file with the checkpoint. onnx and torch_export take uint8 images and "
        "return calibrated probabilities. safetensors holds only the timm model; it takes normalised images and "
        "returns logits.",
    )
    options.add_checkpoint(parser, "a best.ckpt")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=" | ".join(FORMATS))
    parser.add_argument(
        "--output",
        type=options.place,
        metavar="DIR",
        help="folder for the files (default: export/FORMAT in $RUN_DIR or here)",
    )
    options.add_data(parser, of_model=True)
    parser.add_argument(
        "--images", type=options.positive, default=32, help="most images for the comparison (default: 32)"
    )
    parser.add_argument("--batch_size", type=options.positive, default=8, help="images per batch (default: 8)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    args = options.parse(parser, arguments)
    if args.to not in FORMATS:
        raise ConfigError(f"--to {args.to}: unknown format; {nearest(args.to, FORMATS)}")
    if args.checkpoint.suffix == ".json":
        raise ConfigError(f"{args.checkpoint}: an ensemble has several models; export each with --checkpoint best.ckpt")
    check_checkpoint(args.checkpoint)
    if args.output is None:
        output = options.output_folder(None) / "export" / args.to
    else:
        output = options.output_folder(args.output)
    root = options.data_of_model(args.root, args.checkpoint)

    with heavy():
        from trainer.export.export import export as run

    run(args.checkpoint, args.to, output, root, args.images, args.batch_size, args.force)
    return EXIT_OK
