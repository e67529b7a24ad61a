"""predict: predict the test images with a checkpoint or an ensemble."""

from __future__ import annotations

from trainer.base.errors import EXIT_OK
from trainer.base.files import check_checkpoint
from trainer.cli import options
from trainer.cli.imports import heavy


def predict(arguments: list[str]) -> int:
    parser = options.parser("predict", "Predict the test images. Writes submission.csv and predictions.npz.")
    options.add_output(parser)
    options.add_checkpoint(parser)
    options.add_inference(parser)
    args = options.parse(parser, arguments)
    output = options.output_folder(args.output)
    options.check_views(args.tta)
    check_checkpoint(args.checkpoint)
    root = options.required_data(args.root, may_be_file=True)

    with heavy():
        from trainer.predict import predict as predicting

        model: predicting.Model = predicting.of_checkpoint
        if args.checkpoint.suffix == ".json":
            from trainer.ensemble import score

            model = score.predict
    predicting.predict(args.checkpoint, root, output, options.inference(args), model)
    return EXIT_OK
