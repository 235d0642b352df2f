"""Image files that a data set of the hub names are opened where its own files lie, and nowhere else."""

import pytest
from data_files import colour, encode

from weathered.data.images import BadImage
from weathered.data.sources.hugging_face import HubImages, prefixes_of_files

PICTURE = encode(colour(0))


@pytest.fixture
def places(tmp_path):
    """A cache as the hub lays it out, with a secret beside each of its folders."""
    for path in (
        "hub/datasets--owner--set/blobs/abc",
        "hub/models--owner--net/secret.png",
        "hub/secret.png",
        "cache/downloads/extracted/def/a.png",
        "cache/secret.png",
        "local/a.png",
        "locality/secret.png",
        "secret.png",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(PICTURE)
    snapshot = tmp_path / "hub" / "datasets--owner--set" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/abc")
    (snapshot / "out.png").symlink_to(tmp_path / "secret.png")
    return tmp_path


def images(places, path, name="owner/set"):
    row = {"bytes": None, "path": path if path is None or "://" in path else str(places / path)}
    allowed = prefixes_of_files(name, [places / "cache" / "downloads"], places / "hub")
    return HubImages([{"image": row}], "image", "hf:set", allowed)


@pytest.mark.parametrize(
    "path", ["hub/datasets--owner--set/snapshots/1/a.png", "cache/downloads/extracted/def/a.png", "local/a.png"]
)
def test_files_of_the_data_set_are_read(places, path):
    assert images(places, path, str(places / "local")).read(0) == PICTURE


@pytest.mark.parametrize(
    "path",
    [
        "secret.png",
        "cache/secret.png",
        "hub/secret.png",
        "hub/models--owner--net/secret.png",
        "hub/datasets--owner--set/snapshots/1/out.png",
        "hub/datasets--owner--set/../secret.png",
        "local/../secret.png",
        "locality/secret.png",
    ],
)
def test_other_files_of_this_computer_are_not_opened(places, path):
    with pytest.raises(BadImage, match=r"^hf:set row 0: '[^']*' is not among the files of the data set\.$"):
        images(places, path, str(places / "local")).read(0)


def test_a_folder_counts_only_where_it_is_the_data_set(places):
    with pytest.raises(BadImage, match="not among the files"):
        images(places, "local/a.png").read(0)


def test_paths_relative_to_where_the_program_runs_are_not_opened(places, monkeypatch):
    monkeypatch.chdir(places)
    allowed = prefixes_of_files("owner/set", [places / "cache" / "downloads"], places / "hub")
    with pytest.raises(BadImage, match="'secret.png' is not among the files"):
        HubImages([{"image": {"bytes": None, "path": "secret.png"}}], "image", "hf:set", allowed).read(0)


@pytest.mark.parametrize("path", [None, "file:///etc/hostname", "local/gone.png", "local/\0.png"])
def test_what_is_no_file_is_a_bad_image(places, path):
    with pytest.raises(
        BadImage, match=r"^hf:set row 0: (the image has no bytes|'file:.* is not among|the image's file)"
    ):
        images(places, path, str(places / "local")).read(0)


def test_bytes_are_taken_whatever_the_path_says():
    row = {"bytes": PICTURE, "path": "/etc/hostname"}
    assert HubImages([{"image": row}], "image", "hf:set", ()).read(0) == PICTURE
