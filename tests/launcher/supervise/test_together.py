"""What `plan` and `submit` say of how many runs start together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.sizes import GIB
from launcher.host.machine import Gpu, Machine
from launcher.job import document, spec
from launcher.job.expansion import Planned
from launcher.record.request import Resources, RunRequest
from launcher.supervise import together
from tests.launcher.conftest import Lab

SHARED = "note: {} fit on {} together: --set resources.share_gpu=true"


def server(*sizes: int | None) -> Machine:
    gpus = tuple(Gpu(index, memory=size and size * GIB) for index, size in enumerate(sizes))
    return Machine("server", 16, 64 * GIB, gpus)


def planned(needs: list[int | None], share: bool, cpus: float = 1) -> list[Planned]:
    return [
        Planned(
            RunRequest(
                f"{number:03d}-x",
                number,
                "train",
                [],
                resources=Resources(gpus=1, cpus=cpus),
                share_gpu=share,
                predicted_memory=need and need * GIB,
            )
        )
        for number, need in enumerate(needs, start=1)
    ]


def job(share: bool = False, more: str = "") -> spec.Job:
    text = f"matrix: {{seed: [1, 2]}}\nresources: {{share_gpu: {str(share).lower()}}}\n{more}"
    parsed = document.parse(text, "job.yaml")
    return spec.Job(spec._validate(parsed), parsed)


@pytest.mark.parametrize(
    ("needs", "gpus", "said"),
    [
        ([20, 30, 40, 23], (80,), "3 start together; the others follow as GPU memory becomes free"),  # 113 GiB
        ([60, 60, 30], (80,), "one starts alone; the others follow as GPU memory becomes free"),
        ([60, 60, 15], (80,), "2 start together; the others follow as GPU memory becomes free"),
        ([20, 30, 23], (80,), "at most 3 at once"),
        ([30] * 7, (80,), "at most 2 at once"),
        ([30] * 7, (80, 24, 40), "at most 3 at once"),
        ([30, None, 30], (80,), "2 start together; the others follow as GPU memory becomes free"),
        ([30, 40], (None,), "one starts alone; the others follow as GPU memory becomes free"),
    ],
)
def test_the_number_at_once_is_what_the_scheduler_places(
    needs: list[int | None], gpus: tuple[int, ...], said: str
) -> None:
    assert together.lines(job(share=True), planned(needs, share=True), server(*gpus)) == [said]


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12), st.lists(st.sampled_from([24, 80]), min_size=1, max_size=3)
)
def test_the_number_at_once_fits_the_memory_of_the_gpus(needs: list[int], gpus: list[int]) -> None:
    number = together.at_once(planned(list(needs), share=True), server(*gpus), None)
    assert sum(sorted(needs)[:number]) <= sum(gpus)
    assert number or min(needs) > max(gpus)


def test_plan_says_what_would_fit_together_and_the_words_that_allow_it() -> None:
    one, four = server(80), server(*[80] * 4)
    assert together.lines(job(), planned([20] * 3, False, 16), one) == [
        "one after another",
        SHARED.format(3, "this GPU"),
    ]
    said = together.lines(job(), planned([20] * 30, False, 4), four)
    assert said == ["at most 4 at once"], "of 16 cores 4 runs have 4 each"
    said = together.lines(job(more="max_parallel: 9\n"), planned([20] * 30, False), four)
    assert said == ["at most 4 at once"], "the cores allow no more"
    cores = "matrix: {seed: [1, 2]}\nresources: {cpus: 1}\n"
    parsed = document.parse(cores, "job.yaml")
    few = spec.Job(spec._validate(parsed), parsed)
    assert together.lines(few, planned([20] * 30, False), four) == [
        "at most 4 at once",
        SHARED.format(16, "these 4 GPUs"),
    ]
    for nothing in (planned([50, 50], False), planned([None, None], False), planned([20], False)):
        assert together.lines(job(), nothing, one)[1:] == []
    assert together.lines(job(), planned([20] * 3, False), server(None))[1:] == [], "its memory is unknown"


def test_what_plan_promises_is_what_runs(lab: Lab) -> None:
    """The words are copied from the message."""
    (lab.root / "machine.yaml").write_text("{gpus: [{memory: 24g}], cpus: 16, memory: 64g}")
    text = lab.job("matrix: {seed: [1, 2, 3, 4]}\noverrides: {model: resnet34}\nresources: {gpu_memory: 10g}\n")
    shown = lab.launcher("plan", text, "--machine=machine.yaml").stdout
    line = next(line for line in shown.splitlines() if "fit on this GPU together" in line)
    assert line.startswith("note: 2 fit on this GPU together: ") and "one after another" in shown
    words = line.partition("together: ")[2].split()
    assert "at most 2 at once" in lab.launcher("plan", text, "--machine=machine.yaml", *words).stdout
