"""The fingerprint of a recipe's data: it changes when a file does that any part of the preparation reads."""

import os

import numpy as np
import pytest
import torch
from data_files import colour, encode, write_folder, write_idx

from weathered.core.errors import DataError, SpecError
from weathered.data.fingerprint import data_fingerprint
from weathered.data.sources import load
from weathered.data.sources.torchvision_files import KNOWN, torchvision_files
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


def test_the_pixels_of_torchvision_files_count(tmp_path):
    def write(value):
        for part, size in (("train", 20), ("t10k", 10)):
            raw = tmp_path / "MNIST" / "raw"
            write_idx(raw / f"{part}-images-idx3-ubyte", np.full((size, 4, 4), value))
            write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(size) % 10)
        return of(train="torchvision:MNIST", root=str(tmp_path))

    before = write(0)
    assert load("torchvision:MNIST", root=tmp_path).floats(torch.arange(20)).max() == 0
    assert write(200) != before
    assert write(0) == before


@pytest.mark.parametrize("name", KNOWN)
def test_every_file_of_a_torchvision_set_counts_and_those_of_the_other_split_only_where_none_is_named(tmp_path, name):
    def fingerprints():
        return [of(train=f"torchvision:{name}{split}", root=str(tmp_path)) for split in ("", ":train", ":test")]

    both, train, test = (set(torchvision_files(f"{name}{split}", tmp_path)) for split in ("", ":train", ":test"))
    assert both == train | test
    assert train != test
    states = [fingerprints()]
    for path in sorted(both):
        path.parent.mkdir(parents=True, exist_ok=True)
        for content in (b"u", b"v"):
            path.write_bytes(content)
            states.append(fingerprints())
            changed = [old != new for old, new in zip(*states[-2:], strict=True)]
            assert changed == [True, path in train, path in test]


def test_a_packed_torchvision_file_counts_where_the_plain_one_is_missing(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    seen = [of(train="torchvision:MNIST", root=str(tmp_path))]
    for name, content in (("train-labels-idx1-ubyte.gz", b"u"), ("train-labels-idx1-ubyte", b"v")):
        (raw / name).write_bytes(content)
        seen.append(of(train="torchvision:MNIST", root=str(tmp_path)))
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"never opened beside the plain file")
    assert of(train="torchvision:MNIST", root=str(tmp_path)) == seen[-1]
    assert len(set(seen)) == 3
