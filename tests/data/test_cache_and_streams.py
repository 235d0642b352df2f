"""The cache gives back what was decoded and notices damage; streams give what memory gives."""

import os
import time

import numpy as np
import pytest
import torch
from data_files import SHARED, colour, encode, write_folder, write_parquet

from weathered.core.errors import DataError
from weathered.data import cache, iterate, load
from weathered.data.stream import StreamInputs, progress


@pytest.fixture
def parquet(tmp_path):
    images = [encode(colour(i)) for i in range(30)]
    return write_parquet(tmp_path / "x.parquet", images, {"label": [i % 3 for i in range(30)]}, group=7)


@pytest.fixture
def decodes(monkeypatch):
    """How often images were decoded in bulk."""
    count = []
    original = cache.decode_all
    monkeypatch.setattr(cache, "decode_all", lambda *a, **k: count.append(1) or original(*a, **k))
    return count


def everything(dataset):
    return dataset.inputs.fetch(torch.arange(len(dataset)))


def entries(tmp_path):
    return sorted((tmp_path / "cache").glob("*.npy"))


def test_the_second_load_does_not_decode(parquet, tmp_path, decodes):
    first = everything(load(str(parquet)))
    second = load(str(parquet))
    assert len(decodes) == 1
    assert torch.equal(everything(second), first)
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob(".*"))
    # labels are no part of the key, a copy of the file has the same content
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(parquet.read_bytes())
    load(str(copy))
    assert len(decodes) == 1
    load(str(parquet), image_size=3)
    assert len(decodes) == 2


def test_a_loaded_entry_cannot_be_changed_on_disk_by_writing_to_it(parquet):
    data = load(str(parquet))
    before = everything(data)
    data.inputs.tensor.zero_()
    assert torch.equal(everything(load(str(parquet))), before)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\x93NUMPY" + os.urandom(200))


def lose_record(path):
    path.with_suffix(".json").unlink()


def spoil_record(path):
    path.with_suffix(".json").write_text("[1, 2")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, garbage, lose_record, spoil_record, remove])
def test_a_damaged_entry_is_rebuilt(parquet, tmp_path, decodes, damage):
    first = everything(load(str(parquet))).clone()
    damage(entries(tmp_path)[0])
    assert torch.equal(everything(load(str(parquet))), first)
    assert len(decodes) == 2
    load(str(parquet))
    assert len(decodes) == 2


def test_a_changed_file_is_decoded_again(parquet, tmp_path):
    write_folder(tmp_path / "set", ["a", "b"])
    load(str(tmp_path / "set"))
    changed = tmp_path / "set" / "a" / "1.png"
    changed.write_bytes(encode(colour(77)))
    os.utime(changed, ns=(0, time.time_ns() + 10**9))
    data = load(str(tmp_path / "set"))
    assert torch.equal(everything(data)[1], torch.from_numpy(colour(77).transpose(2, 0, 1).copy()))
    images = [encode(colour(i + 50)) for i in range(30)]
    write_parquet(parquet, images, {"label": [0, 1] * 15})
    assert torch.equal(everything(load(str(parquet)))[0], torch.from_numpy(colour(50).transpose(2, 0, 1).copy()))


def test_without_a_place_for_the_cache_data_still_load(parquet, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    data = load(str(parquet), cache_dir=blocked / "cache")
    assert "could not be cached" in data.notes[-1]

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    second = load(str(parquet))
    assert "could not be cached" in second.notes[-1]
    assert torch.equal(everything(second), everything(data))
    assert not list((tmp_path / "cache").iterdir())


def test_large_limits_share_the_whole_and_small_ones_do_not(parquet, decodes):
    whole = everything(load(str(parquet)))
    for seed in (0, 1):
        part = load(str(parquet), limit=10, seed=seed)
        assert (whole[:, None] == everything(part)[None]).flatten(2).all(2).sum() == 10
    assert len(decodes) == 1
    load(str(parquet), limit=2)
    assert len(decodes) == 2


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache.default_cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("WEATHERED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_cache_dir() == tmp_path / "xdg" / "weathered"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path / ".cache" / "weathered"


def sources(tmp_path, parquet):
    write_folder(tmp_path / "set", ["a", "b"], each=15)
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"set/a/{i}.png,{i % 2}\n" for i in range(15)))
    return {"parquet": str(parquet), "folder": str(tmp_path / "set"), "csv": str(tmp_path / "table.csv")}


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv"])
@pytest.mark.parametrize("image_size", [None, 4])
def test_streams_give_what_memory_gives_for_any_number_of_workers(tmp_path, parquet, kind, image_size):
    spec = sources(tmp_path, parquet)[kind]
    memory = load(spec, image_size=image_size)
    stream = load(spec, image_size=image_size, memory_limit_bytes=100)
    assert memory.inputs.in_memory
    assert isinstance(stream.inputs, StreamInputs)
    assert stream.inputs.shape == memory.inputs.shape
    assert torch.equal(stream.labels, memory.labels)
    rows = torch.randperm(len(memory), generator=torch.Generator().manual_seed(0))
    memory, stream = memory.select(rows), stream.select(rows)
    batches = list(torch.randint(0, len(memory), (5, 4), generator=torch.Generator().manual_seed(1)))
    expected = list(iterate(memory, batches, workers=0))
    state = torch.get_rng_state()
    for workers in (0, 2) if image_size is None else (0,):
        found = list(iterate(stream, iter(batches), workers))
        assert len(found) == 5
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_unpacked_file_is_written_again(tmp_path, parquet):
    memory = load(str(parquet))
    load(str(parquet), memory_limit_bytes=1)
    (unpacked,) = (tmp_path / "cache").glob("*.images")
    cut(unpacked)
    stream = load(str(parquet), memory_limit_bytes=1)
    assert torch.equal(everything(stream), everything(memory))


def test_an_error_in_a_worker_stays_one_sentence(tmp_path):
    write_folder(tmp_path / "set", ["a", "b"])
    stream = load(str(tmp_path / "set"), memory_limit_bytes=1)
    (tmp_path / "set" / "b" / "3.png").write_bytes(b"gone bad")
    for workers in (0, 1):
        found = iterate(stream, torch.arange(8).split(2), workers)
        assert next(found).shape == (2, 3, 6, 6)
        with pytest.raises(DataError, match=r"^\S+b/3\.png: not an image of a known format \([A-Z, ]+\)\.$"):
            list(found)


def test_a_stream_skips_bad_images_and_remembers_them(parquet, tmp_path, decodes):
    images = [encode(colour(i)) for i in range(9)]
    images[4] = b"broken"
    path = write_parquet(tmp_path / "y.parquet", images, {"label": [i % 3 for i in range(9)]})
    for _ in range(2):
        stream = load(str(path), skip_bad=True, memory_limit_bytes=1)
        assert not stream.inputs.in_memory
        assert stream.labels.tolist() == [0, 1, 2, 0, 2, 0, 1, 2]
        assert torch.equal(everything(stream)[4], torch.from_numpy(colour(5).transpose(2, 0, 1).copy()))
        assert "1 images could not be read" in stream.notes[-1]
    assert len(decodes) == 1


def test_a_stream_of_other_sizes_names_the_image(tmp_path):
    images = [encode(colour(0)), encode(colour(1)), encode(colour(2, 5, 8))]
    path = write_parquet(tmp_path / "y.parquet", images, {"label": [0, 1, 0]})
    stream = load(str(path), memory_limit_bytes=1)
    with pytest.raises(DataError, match=r"row 2: the image is 8 x 5 pixels.*pass --image-size"):
        everything(stream)


def test_iterate_refuses_a_negative_number_of_workers():
    with pytest.raises(ValueError, match="workers must be >= 0, got -1"):
        next(iterate(load("digits"), [torch.arange(3)], workers=-1))


def test_the_bar_stays_away_without_a_terminal(capsys):
    with progress(10, "decoding", patience=0.0) as advance:
        for _ in range(10):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not there")
def test_cifar10_loads_from_the_cache_in_half_a_second():
    spec = f"parquet:{SHARED / 'cifar10-train.parquet'}"
    load(spec)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        data = load(spec)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.5
    assert data.inputs.shape == (3, 32, 32)
    assert np.array_equal(data.class_counts.numpy(), [5000] * 10)
