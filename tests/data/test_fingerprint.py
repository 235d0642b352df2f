"""The fingerprint of a recipe's data: it changes when a file does that any part of the preparation reads."""

import os

import numpy as np
import pytest
from data_files import colour, encode, write_folder

from weathered.core.errors import DataError, SpecError
from weathered.data.fingerprint import data_fingerprint
from weathered.recipe import DataOptions


def of(**options):
    return data_fingerprint(DataOptions(**options))


def images(path, seed):
    np.savez(path, x=np.stack([colour(seed + i) for i in range(4)]), y=np.arange(4) % 2)


def test_the_source_of_open_set_images_counts(tmp_path):
    train, other = tmp_path / "train.npz", tmp_path / "other.npz"
    images(train, 0)
    images(other, 10)
    make = (f"open-set:rate=0.5,source={other}",)
    before, without = of(train=str(train), make=make), of(train=str(train))
    assert before != without
    assert of(train=str(train), make=make) == before
    images(other, 20)
    assert of(train=str(train), make=make) != before
    assert of(train=str(train)) == without
    write_folder(tmp_path / "set", ["a", "b"])
    make = (f"open-set:rate=0.5,source=folder:{tmp_path / 'set'}",)
    before = of(train=str(train), make=make)
    (tmp_path / "set" / "a" / "9.png").write_bytes(encode(colour(9)))
    assert of(train=str(train), make=make) != before
    with pytest.raises(DataError, match="there is no such file"):
        of(make=("open-set:rate=0.5,source=gone/x.npz",))
    with pytest.raises(SpecError, match="no method 'opn-set'"):
        of(make=("opn-set:rate=0.5",))


def test_makers_without_files_change_nothing():
    assert of(make=("symmetric:rate=0.4", "long-tail:imbalance=10")) == of()


def test_parts_of_one_npz_file_differ(tmp_path):
    path = tmp_path / "x.npz"
    images(path, 0)
    assert len({of(train=str(path)), of(train=f"npz:{path}:train"), of(train=f"npz:{path}:val")}) == 3
    before = of(train=f"npz:{path}:train")
    images(path, 5)
    assert of(train=f"npz:{path}:train") != before


@pytest.mark.parametrize(("separator", "encoding"), [(",", "utf-8"), (";", "utf-8"), (",", "utf-8-sig")])
def test_images_behind_a_csv_file_count(tmp_path, separator, encoding):
    write_folder(tmp_path, ["a"], each=2)
    text = f"path{separator}label\na/0.png{separator}x\na/1.png{separator}y\n"
    (tmp_path / "x.csv").write_text(text, encoding=encoding)
    before = of(train=str(tmp_path / "x.csv"))
    assert of(train=str(tmp_path / "x.csv")) == before
    (tmp_path / "a" / "1.png").write_bytes(encode(colour(77, 7, 7)))
    after = of(train=str(tmp_path / "x.csv"))
    assert after != before
    (tmp_path / "a" / "1.png").unlink()
    assert of(train=str(tmp_path / "x.csv")) not in (before, after)


def test_odd_folders_have_a_fingerprint(tmp_path):
    write_folder(tmp_path / "set", ["a", "b"])
    seen = {of(train=str(tmp_path / "set"))}
    (tmp_path / "set" / "a" / "z.png").symlink_to("gone.png")
    seen.add(of(train=str(tmp_path / "set")))
    with open(os.fsencode(tmp_path / "set") + b"/a/\xff.png", "wb") as stream:
        stream.write(b"x")
    seen.add(of(train=str(tmp_path / "set")))
    (tmp_path / "set" / "c").symlink_to("a")
    seen.add(of(train=str(tmp_path / "set")))
    (tmp_path / "set" / "c").unlink()
    (tmp_path / "set" / "c").symlink_to("b")
    seen.add(of(train=str(tmp_path / "set")))
    assert len(seen) == 5
