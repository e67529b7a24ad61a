"""Every model, data and training group of the manual together: one optimizer step and one prediction, small."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.augment.pipeline import Augmentation
from trainer.config.compose import compose
from trainer.config.plain import to_dict
from trainer.data import dataset, table
from trainer.images.decode import Images
from trainer.models import build
from trainer.models.checkpoint import Checkpoint
from trainer.predict import inference
from trainer.training import device, step

MODELS = ("resnet34", "resnet50", "efficientnet_b4", "convnext_base", "swin_base_384", "deit_base_384")
DATA = ("baseline_aug", "transformer_384")
TRAININGS = ("baseline_768", "default", "efficientnet", "transformer")
SMALL = ["data.img_size=64", "model.pretrained=false", "training.batch_size=2", "training.num_workers=0", "device=cpu"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side on as many cores: threads of small models would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def alias(model: nn.Module) -> nn.Module:
    """A model with the same weights in the same memory. Inference converts its weights, which then cannot be trained."""
    return copy.deepcopy(model, {id(weights): nn.Parameter(weights.data) for weights in model.parameters()})


@pytest.mark.parametrize("model", MODELS)
def test_every_combination_takes_a_step_and_predicts(
    model: str, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is built once: its eight combinations go on with the weights of the one before."""
    built: list[nn.Module] = []
    create = build.create

    def once(*arguments: object, **named: object) -> nn.Module:
        if not built:
            built.append(create(*arguments, **named))  # type: ignore[arg-type]
        return alias(built[0])

    monkeypatch.setattr(build, "create", once)
    for chosen in itertools.product(DATA, TRAININGS):
        groups = [f"model={model}", f"data={chosen[0]}", f"training={chosen[1]}"]
        assert compose(groups).data.img_size == {"baseline_aug": 768, "transformer_384": 384}[chosen[0]]
        config = compose([*groups, *SMALL])
        pages = table.read_training(documents, config.data)
        view = Augmentation(config.data.train_transforms, "data.train_transforms", 64, config.seed, config.data.fast)
        images = dataset.ImageDataset(pages, view, Images(pages.paths, None))
        batch = dataset.collate([images[0, row] for row in (0, len(pages) - 1)])

        precision = device.precision(config.training.precision, "cpu")
        net, optimizer = step.learner(config, len(pages.class_names), torch.device("cpu"), precision, False)
        prepared = step.set_up(config, device.fabric("cpu", precision), net, optimizer, [1.0] * 3, steps_per_epoch=10)
        before = [weights.detach().clone() for weights in net.model.get_classifier().parameters()]  # type: ignore[operator]
        assert step.take(prepared, [batch], 0) == 2 and torch.isfinite(prepared.loss_sum) and prepared.loss_sum > 0
        after = list(net.model.get_classifier().parameters())  # type: ignore[operator]
        assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True)), "the step changed nothing"

        mean, std = build.mean_std(config.model.name)
        checkpoint = Checkpoint(
            net.model.state_dict(),
            pages.class_names,
            pages.labels,
            to_dict(config),
            {
                "img_size": 64,
                "mean": list(mean),
                "std": list(std),
                "transforms": config.data.val_transforms,
                "fast": config.data.fast,
            },
        )
        options = inference.Options(device="cpu", precision="fp32", batch_size=6, num_workers=0)
        (probabilities,) = inference.probabilities([checkpoint], table.read_test(documents), options)
        assert probabilities.shape == (6, 3)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
