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
    given = options.parse(parser, arguments)
    output = options.output_folder(given.output)
    options.check_views(given.tta)
    check_checkpoint(given.checkpoint)
    root = options.required_data(given.root)

    with heavy():
        from trainer.predict import predict as predicting

        model: predicting.Model = predicting.of_checkpoint
        if given.checkpoint.suffix == ".json":
            from trainer.ensemble import score

            model = score.predict
    predicting.predict(given.checkpoint, root, output, options.inference(given), model)
    return EXIT_OK
