"""Folders of class folders: links that stay inside are followed, links that leave are refused, nothing is silent."""

import os

import pytest
import torch
from data_files import colour, encode, write_folder

from weathered.core.errors import DataError
from weathered.data import load, load_pair


@pytest.fixture
def tree(tmp_path):
    """Two classes of four images, and a folder outside with two classes."""
    write_folder(tmp_path / "set", ["a", "b"])
    write_folder(tmp_path / "outside", ["c", "d"], make=lambda seed: colour(seed + 999))
    return tmp_path / "set"


def refused(tree, message):
    with pytest.raises(DataError, match=message) as caught:
        load(str(tree))
    assert str(caught.value).startswith(f"{tree}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("c", "../outside/c"),
        ("a/more", "../../outside/c"),
        ("a/z.png", "../../outside/c/0.png"),
        ("c", ".."),
        ("c", "/"),
        ("c", "../nowhere"),
        ("a/z.png", "../../nowhere.png"),
    ],
    ids=["class", "folder", "image", "parent", "top", "missing class", "missing image"],
)
def test_links_that_lead_out_are_refused(tree, place, target):
    (tree / place).symlink_to(target)
    refused(tree, f"the link '{place}' leads out of this folder")


def test_a_neighbour_whose_name_begins_alike_is_outside(tree):
    write_folder(tree.parent / "set2", ["c"])
    (tree / "c").symlink_to(tree.parent / "set2" / "c")
    refused(tree, "the link 'c' leads out")


def test_links_that_stay_inside_are_followed(tree):
    (tree / "c").symlink_to("a")
    (tree / "b" / "more").symlink_to(tree / "a")
    (tree / "b" / "z.png").symlink_to("../a/0.png")
    data = load(str(tree))
    assert data.class_names == ("a", "b", "c")
    assert data.class_counts.tolist() == [4, 9, 4]
    pixels = data.inputs.fetch(torch.arange(17))
    assert torch.equal(pixels[data.labels == 2], pixels[data.labels == 0])


def test_the_given_folder_may_be_a_link(tree):
    (tree.parent / "link").symlink_to(tree)
    assert load(str(tree.parent / "link")).class_counts.tolist() == [4, 4]
    (tree.parent / "link" / "c").symlink_to(tree / "a")
    assert load(str(tree.parent / "link")).class_counts.tolist() == [4, 4, 4]


@pytest.mark.parametrize(("place", "target"), [("a/loop", "."), ("a/loop", ".."), ("c", "."), ("a/twice", "inner")])
def test_circles_are_refused(tree, place, target):
    (tree / "a" / "inner").mkdir()
    (tree / place).symlink_to(target)
    refused(tree, "is read twice for one class, because of a link")


@pytest.mark.parametrize("target", ["gone", "c"])
def test_a_class_that_leads_nowhere_is_no_missing_class(tree, target):
    (tree / "c").symlink_to(target)
    refused(tree, "the link 'c' leads nowhere")


def test_an_image_that_leads_nowhere_may_be_skipped(tree):
    (tree / "a" / "z.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"a/z\.png: there is no such file"):
        load(str(tree))
    assert len(load(str(tree), skip_bad=True)) == 8


def test_links_to_what_is_not_read_are_let_be(tree):
    (tree.parent / "readme.txt").write_text("x")
    (tree / "readme.txt").symlink_to("../readme.txt")
    (tree / "a" / "readme.txt").symlink_to("../../readme.txt")
    (tree / ".hidden").symlink_to("../outside")
    assert load(str(tree)).class_counts.tolist() == [4, 4]


def test_what_is_left_out_is_said(tree):
    assert load(str(tree)).notes == ()
    (tree / "stray.png").write_bytes(encode(colour(1)))
    (tree / "a" / "photo.HEIC").write_bytes(b"x")
    (tree / "a" / "README").write_text("x")
    (tree / "b" / "inner").mkdir()
    (tree / "b" / "inner" / "9.png").write_bytes(encode(colour(2)))
    data = load(str(tree))
    assert data.class_counts.tolist() == [4, 5]
    assert data.notes == (
        "Folders below a class folder count to its class, such as b/inner to b.",
        "Images beside the class folders that belong to no class and were left out: 1.",
        "Files without the ending of an image (.heic, no ending) that were left out: 2.",
    )


def test_a_folder_of_that_name_is_no_image(tree):
    (tree / "a" / "x.png").mkdir()
    assert load(str(tree)).class_counts.tolist() == [4, 4]


def test_names_that_are_no_utf8(tree):
    odd = os.fsencode(tree) + b"/a/\xff.png"
    with open(odd, "wb") as stream:
        stream.write(encode(colour(1)))
    assert load(str(tree)).class_counts.tolist() == [5, 4]
    os.mkdir(os.fsencode(tree) + b"/\xff")
    refused(tree, "the name of the class folder '.' is not UTF-8 text; rename it")


def test_one_class_is_too_few(tmp_path):
    write_folder(tmp_path / "set", ["a"])
    with pytest.raises(DataError, match="at least two classes"):
        load_pair(str(tmp_path / "set"))


def test_images_without_classes_follow_the_same_rules(tree):
    (tree / "a" / "photo.heic").write_bytes(b"x")
    data = load(f"images:{tree}")
    assert data.class_counts.tolist() == [8]
    assert data.notes == ("Files without the ending of an image (.heic) that were left out: 1.",)
    (tree / "a" / "more").symlink_to(tree.parent / "outside" / "c")
    with pytest.raises(DataError, match="the link 'a/more' leads out of this folder"):
        load(f"images:{tree}")
