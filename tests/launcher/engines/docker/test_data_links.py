"""Links in a data folder: what a container sees of them, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.base.errors import DataFolderError
from launcher.engines.docker import data_links
from launcher.engines.docker.data_links import MOST, links, why_not_mounted
from launcher.record.request import RunRequest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    links.cache_clear()
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("elsewhere/train/a", "elsewhere/more"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").touch()
    (tmp_path / "elsewhere" / "train.csv").touch()
    return folder


def resolved(path: str, mounts: dict[str, str], data: Path) -> Path:
    """Where a container with these mounts finds `path`: follows links hop by hop, as its kernel does."""
    visible = {"/data": str(data), **mounts}
    for _ in range(40):
        walked, rest = Path("/"), list(Path(path).parts[1:])
        while rest:
            walked /= rest.pop(0)
            inside = max((p for p in visible if walked.is_relative_to(p)), key=len, default=None)
            if inside is None:
                continue
            host = Path(visible[inside]) / walked.relative_to(inside)
            if host.is_symlink() and str(walked) not in visible:
                path = os.path.normpath(walked.parent / host.readlink() / Path(*rest))
                break
        else:
            inside = max(p for p in visible if Path(path).is_relative_to(p))
            return Path(visible[inside]) / Path(path).relative_to(inside)
    raise AssertionError(f"{path} leads in circles")


def test_links_that_runs_can_make_are_not_followed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs folder and the cache may be in the data folder: a run could have anything of the host mounted."""
    monkeypatch.setenv("CACHE_DIR", str(data / "cache"))
    (data / "cache").mkdir()
    submission = data / "runs" / "job-20261130-101500"
    (submission / "001-a").mkdir(parents=True)
    (submission / "submission.json").touch()
    (data / "class").mkdir()
    for folder in (submission / "001-a", data / "cache", data / "class"):
        (folder / "link").symlink_to(tmp_path / "elsewhere" / "more")
    found = links(str(data), "/data")
    assert list(found.mounts.values()) == [str(tmp_path / "elsewhere" / "more")] and not found.refused
    assert list(found.named) == [str(data / "class" / "link")]
    links.cache_clear()
    (data / "class" / "through").symlink_to(submission / "001-a" / "link")  # its run chooses where it leads
    found = links(str(data), "/data")
    assert list(found.refused) == [str(data / "class" / "through")] and "001-a, where runs can exchange it" in str(
        found.refused
    )


@pytest.mark.parametrize("relative", [False, True])
def test_links_of_folders_and_files_are_mounted_where_they_lead(data: Path, tmp_path: Path, relative: bool) -> None:
    away = Path("../elsewhere") if relative else tmp_path / "elsewhere"
    (data / "train.csv").symlink_to(away / "train.csv")
    (data / "train").symlink_to(away / "train")
    (tmp_path / "elsewhere" / "train" / "b").symlink_to("../more" if relative else tmp_path / "elsewhere" / "more")
    (data / ".hidden").symlink_to("/etc")
    (data / "notes").symlink_to("/etc")  # the trainer never reads it
    found = links(str(data), "/data")
    assert not found.refused
    for name in ("train.csv", "train/a/1.jpg", "train/b/1.jpg"):
        assert resolved(f"/data/{name}", found.mounts, data).samefile(data / name), found.mounts
    (note,) = data_links.notes(str(data))
    assert f"{data}/train → {tmp_path}/elsewhere/train" in note and "read-only" in note


def test_links_within_the_data_need_nothing_unless_they_name_this_hosts_path(data: Path) -> None:
    (data / "images").mkdir()
    (data / "images" / "1.jpg").touch()
    (data / "a").mkdir()
    (data / "a" / "1.jpg").symlink_to("../images/1.jpg")
    (data / "a" / "nowhere.jpg").symlink_to("gone.jpg")
    (data / "a" / "circle").symlink_to("circle")
    assert data_links.notes(str(data)) == []
    (data / "a" / "2.jpg").symlink_to(data / "images" / "1.jpg")
    links.cache_clear()
    assert links(str(data), "/data").mounts == {str(data): str(data)}
    assert resolved("/data/a/2.jpg", {str(data): str(data)}, data) == data / "images" / "1.jpg"


def test_many_linked_files_need_a_folder_of_nothing_else(data: Path, tmp_path: Path) -> None:
    (data / "train" / "a").mkdir(parents=True)
    for number in range(MOST + 10):
        (tmp_path / "elsewhere" / "more" / f"{number}.jpg").touch()
        (data / "train" / "a" / f"{number}.jpg").symlink_to(tmp_path / "elsewhere" / "more" / f"{number}.jpg")
    more = str(tmp_path / "elsewhere" / "more")
    assert links(str(data), "/data").mounts == {more: more}
    links.cache_clear()
    (tmp_path / "elsewhere" / "more" / "key.pem").touch()
    with pytest.raises(DataFolderError, match="has more than such files: key") as refused:
        data_links.notes(str(data))
    assert f"cp -rL {data} NEW_FOLDER" in str(refused.value) and "and 7 more" in str(refused.value)


def test_a_few_linked_files_show_only_themselves(data: Path, tmp_path: Path) -> None:
    (data / "a").mkdir()
    (data / "a" / "1.jpg").symlink_to(tmp_path / "elsewhere" / "more" / "1.jpg")
    one = str(tmp_path / "elsewhere" / "more" / "1.jpg")
    assert links(str(data), "/data").mounts == {one: one}


@pytest.mark.parametrize(
    "target", ["/", "/etc", "/root", "/home", "/home/somebody", "/home/me/.ssh", "/proc/self", "/srv", "/srv/data"]
)
def test_what_is_never_data_is_never_mounted(target: str) -> None:
    assert why_not_mounted(Path(target), Path(target), Path("/srv/data/set"))


@pytest.mark.parametrize(
    "path", ["/", "/usr", "/data/more", "/runs", "/opt", "/opt/app/x", "/run/secrets", "/tmp", "/etc/x"]
)
def test_no_link_replaces_what_a_container_needs(path: str) -> None:
    assert why_not_mounted(Path("/mnt/disk/train"), Path(path), Path("/srv/data"))
    assert why_not_mounted(Path("/mnt/disk/train"), Path("/mnt/disk/train"), Path("/srv/data")) == ""


def test_a_runs_own_data_folder_has_the_same_rules(data: Path, tmp_path: Path) -> None:
    (data / "train").symlink_to("../elsewhere/train")
    request = RunRequest("001-a", 1, "train", [], config={"root": "data"}, cwd=str(tmp_path))
    (completed,) = data_links.added([request])
    assert completed.links == {f"{tmp_path}/elsewhere/train": f"{tmp_path}/elsewhere/train"}
    (data / "train").unlink()
    (data / "train").symlink_to("/etc")
    links.cache_clear()
    with pytest.raises(DataFolderError, match="a part of the system"):
        data_links.added([request])
