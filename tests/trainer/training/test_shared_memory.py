"""Image loading processes leave their batches in /dev/shm: how much that is, and what happens when it is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainer.base import cores
from trainer.base.errors import TrainerError
from trainer.config.compose import compose
from trainer.data.dataset import ImageDataset
from trainer.training import full_memory, run
from trainer.training.val_batches import end_workers

SIZE, BATCH = 32, 4


class Dark(ImageDataset):
    """Images of the trainer's own type and size, without files."""

    def __init__(self, count: int) -> None:
        self.table: Any = SimpleNamespace(targets=[0] * count)
        self.images = lambda row: np.zeros((SIZE, SIZE, 3), np.uint8)
        self.augmentation = lambda image, epoch, row: image


@pytest.mark.parametrize("workers", [1, 2])
def test_the_formula_has_the_loaders_real_numbers(workers: int) -> None:
    config = compose([f"training.num_workers={workers}", f"data.img_size={SIZE}", f"training.batch_size={BATCH}"])
    many = BATCH * workers * (cores.PREFETCH + 3)
    loader = run._loader(config, Dark(many), [(0, row) for row in range(many)], BATCH, workers)
    batches = iter(loader)
    try:
        ahead = batches._send_idx  # what it asks of its processes before the first batch is used
        first = next(batches)
        assert batches._send_idx - batches._rcvd_idx == ahead, "one batch is used, and another one is asked for"
        assert all(part.is_shared() for part in first), "nothing is left to a thread that would drop the batch"
        assert first[0].dtype == torch.uint8 and first[0].nbytes == cores.batch_bytes(BATCH, SIZE)
        held = (ahead + 1) * first[0].nbytes
        assert held <= cores.shared_bytes(workers, BATCH, SIZE, "cpu") / cores.LOADERS <= 2 * held
    finally:
        del batches
        end_workers(loader)


def test_the_formula_counts_processes_as_the_trainer_does() -> None:
    batch = cores.batch_bytes(16, 768)
    for device_name, available in (("cuda", 16), ("cuda", 64), ("cpu", 4), ("cpu", 64)):
        processes = cores.workers(None, device_name, 1, available)
        needed = cores.shared_bytes(None, 16, 768, device_name, 1, available)
        assert needed == 2 * (processes * cores.PREFETCH + cores.MORE) * batch
    assert cores.shared_bytes(None, 16, 768, "cuda", 1, 16) > 2**30, "15 processes fill more than a gibibyte"
    assert cores.shared_bytes(0, 16, 768, "cuda") == 0
    assert cores.shared_bytes(8, 16, 768, "cuda", 2) == 2 * cores.shared_bytes(8, 8, 768, "cuda", 1)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file </torch_7>: "
        "No space left on device (28)",
        "unable to open shared memory object </torch_7> in read-write mode: No space left on device (28)",
    ],
)
def test_full_shared_memory_names_its_size_and_both_settings(text: str) -> None:
    with (
        pytest.raises(TrainerError, match=r"/dev/shm \([\d,]+ MiB\) is full") as raised,
        full_memory.memory_errors(compose([])),
    ):
        raise RuntimeError(text)
    assert "training.num_workers" in str(raised.value) and "resources.shm" in str(raised.value)
    assert "--shm-size" in str(raised.value)


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="root is needed for a small /dev/shm")
def test_a_full_shared_memory_ends_the_run_and_never_hangs(tmp_path: Path) -> None:
    script = tmp_path / "loads.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from tests.trainer.training.test_shared_memory import Dark, compose, full_memory, end_workers, run
        from trainer.base.errors import TrainerError
        config = compose(["data.img_size=32"])
        loader = run._loader(config, Dark(400), [(0, row) for row in range(400)], 100, 1)
        try:
            with full_memory.memory_errors(config):
                for batch in loader:
                    pass
        except TrainerError as error:
            sys.exit(f"error: {error}")
        finally:
            end_workers(loader)  # as the run does
        """)
    )
    shell = f'mount -t tmpfs -o size=600k none /dev/shm && exec "{sys.executable}" "{script}"'
    root = Path(__file__).parents[3]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell], capture_output=True, text=True, timeout=120, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 1 and "/dev/shm (1 MiB) is full" in done.stderr, done.stderr
