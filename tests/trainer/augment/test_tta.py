"""Views at test time: what they are, and that one decode of an image serves all of them and every model alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.trainer.conftest import draw
from trainer.augment import views
from trainer.data.rows import Table
from trainer.data.table import read_test
from trainer.images import decode
from trainer.models import checkpoint
from trainer.models.checkpoint import Checkpoint
from trainer.predict import inference
from trainer.predict.inference import Options


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are decoded, in their order."""
    paths: list[Path] = []
    real = decode.decode

    def count(path: Path, limit: decode.Limit | None) -> decode.Pixels:
        paths.append(path)
        return real(path, limit)

    monkeypatch.setattr(decode, "decode", count)
    return paths


def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("light", 5), ("standard", 8), ("heavy", 11)])
def test_every_view_is_another_and_the_first_is_the_image(name: str, count: int) -> None:
    images = pictures()
    seen = [view(images) for view in views.views(name)]
    assert len({view.numpy().tobytes() for view in seen}) == count
    assert all(view.shape == images.shape and view.dtype == torch.uint8 for view in seen)
    assert torch.equal(seen[0], images)


def test_the_standard_views_are_the_symmetries_of_the_square() -> None:
    """Every view of a view is a view again."""
    images = pictures()
    seen = {view(images).numpy().tobytes() for view in views.views("standard")}
    again = {
        outer(inner(images)).numpy().tobytes() for inner in views.views("standard") for outer in views.views("standard")
    }
    assert again == seen


def test_the_heavy_views_leave_paper_white_and_their_image_in_place() -> None:
    """A black square in the middle of a page stays there, larger, smaller or as it is; more contrast darkens grey."""
    page = torch.full((1, 3, 100, 100), 255, dtype=torch.uint8)
    page[:, :, 30:70, 30:70] = 0
    nearer, farther, _ = (view(page) for view in views.views("heavy")[8:])
    sides = [float((seen < 128).float().mean()) ** 0.5 for seen in (nearer, farther)]
    assert sides == pytest.approx([0.46, 0.35], abs=0.02)
    for seen in (nearer, farther):
        assert torch.equal(seen, seen.flip(3)) and torch.equal(seen, seen.transpose(2, 3))
        assert seen[0, 0, 0, 0] == 255
    grey = torch.full((1, 3, 4, 4), 155, dtype=torch.uint8)
    assert views.views("heavy")[10](grey).unique().tolist() == [125]


def test_with_the_square_s_symmetries_it_does_not_matter_how_a_page_lies(trained: list[Path], tmp_path: Path) -> None:
    page = draw(1, 5).resize((64, 64))
    paths = [tmp_path / "upright.png", tmp_path / "lying.png"]
    page.save(paths[0])
    page.transpose(Image.Transpose.ROTATE_90).save(paths[1])
    table = Table(["upright", "lying"], paths, [], [], [])
    member = plain(checkpoint.load(trained[0] / "best.ckpt"))
    options = Options(precision="fp32")
    (once,) = inference.probabilities([member], table, options)
    (turned,) = inference.probabilities([member], table, replace(options, tta="standard"))
    assert (once[0] - once[1]).abs().max() > 1e-4
    torch.testing.assert_close(turned[0], turned[1], atol=1e-6, rtol=0)


def plain(member: Checkpoint) -> Checkpoint:
    """Without the random strength of CLAHE."""
    return replace(member, preprocessing={**member.preprocessing, "transforms": [{"InvertImg": {"p": 1}}]})


def test_one_decode_serves_all_views_and_every_model_of_one_preprocessing(
    trained: list[Path], documents: Path, decoded: list[Path]
) -> None:
    first, other = (checkpoint.load(run / "best.ckpt") for run in trained)
    second = replace(first, state_dict={k: v * 1.1 for k, v in first.state_dict.items()}, calibration={})
    table = read_test(documents)
    alone = inference.probabilities([second], table, Options(tta="light", num_workers=0))
    assert decoded == table.paths
    decoded.clear()
    found = inference.probabilities([first, other, second], table, Options(tta="light", num_workers=0))
    assert sorted(decoded) == sorted(table.paths * 2), "once for 64 px, once for 160 px"
    torch.testing.assert_close(found[2], alone[0], atol=0, rtol=0)
    assert all(f.shape == (6, 3) and torch.allclose(f.sum(1), torch.ones(6)) for f in found)


def test_models_that_are_too_large_for_the_device_together_take_turns(
    trained: list[Path], documents: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint.load(trained[0] / "best.ckpt")
    table = read_test(documents)
    monkeypatch.setattr(inference, "TOGETHER_BYTES", 1)
    a, b = inference.probabilities([first, first], table, Options(num_workers=0))
    assert decoded == table.paths * 2
    torch.testing.assert_close(a, b, atol=0, rtol=0)
