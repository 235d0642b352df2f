"""Clips: generated ones, those in files, their limits, and what else is made of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from weathered.core.errors import DataError
from weathered.data import clip_files
from weathered.data.auxiliary import load_auxiliary
from weathered.data.clip_files import by_number, decode_animation
from weathered.data.clips import evenly, film_strip
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.images import BadImage
from weathered.data.sources import load, load_pair
from weathered.data.sources.clips import AMPLITUDE, NOISE, SHOWN, textures
from weathered.recipe import DataOptions


def test_generated_clips_are_noise_with_one_texture_in_five_frames():
    data = load("clips:300")
    assert data.inputs.shape == (16, 1, 24, 24)
    assert data.class_names == ("rows", "columns", "checks", "rings")
    assert int(data.class_counts.min()) > 40
    x = data.floats(torch.arange(300))[:, :, 0]
    assert float(x.median()) == pytest.approx(0.5, abs=0.01)
    assert float(x[:, :, :, 0].std()) == pytest.approx(NOISE, abs=0.01)
    # each place of each texture, as far as it stands out of the noise
    filters = textures()[:, None] / 25
    found = torch.nn.functional.conv2d((x - 0.5).flatten(0, 1)[:, None], filters)
    found = found.view(300, 16, 4, -1).amax(3)
    assert torch.equal(found.amax(1).argmax(1), data.labels)
    strength = found[torch.arange(300), :, data.labels]
    shown = strength > 0.7 * AMPLITUDE
    assert shown.sum(1).tolist() == [SHOWN] * 300
    first = shown.long().argmax(1)
    assert torch.equal(shown, (torch.arange(16) >= first[:, None]) & (torch.arange(16) < first[:, None] + SHOWN))
    assert set(first.tolist()) == set(range(12))


def test_the_same_number_gives_the_same_clips_and_test_clips_are_others():
    one, other = load("clips:20"), load("clips:20")
    assert torch.equal(one.inputs.fetch(torch.arange(20)), other.inputs.fetch(torch.arange(20)))
    train, test = load_pair("clips:20", "clips:20")
    assert not torch.equal(train.inputs.fetch(torch.arange(20)), test.inputs.fetch(torch.arange(20)))
    assert torch.equal(textures().sum((1, 2)).abs(), torch.tensor([5.0, 5.0, 1.0, 9.0]))


@pytest.mark.parametrize("rest", ["1", "many", "-3", "2.5", "100001"])
def test_other_numbers_are_refused(rest):
    with pytest.raises(DataError, match=r"'clips' takes a number of clips in \[2, 100000\]"):
        load(f"clips:{rest}")


def test_facts_and_kind_are_those_of_clips():
    data = load("clips:20")
    assert (data.is_clip, data.is_image, data.kind) == (True, False, "clips")
    assert {"clip", "range01", "uniform_pixels"} <= data.facts
    assert not {"image", "table"} & data.facts
    with pytest.raises(DataError, match="images must be uint8"):
        Dataset.of(torch.rand(4, 3, 1, 8, 8), torch.zeros(4).long())


def test_frames_are_taken_evenly():
    assert evenly(16, 16) == list(range(16))
    assert evenly(10, 2) == [2, 7]
    assert evenly(9, 3) == [1, 4, 7]
    for count in (5, 17, 100):
        for frames in range(1, count + 1):
            chosen = evenly(count, frames)
            assert len(set(chosen)) == frames
            assert chosen == sorted(chosen)
            assert chosen[-1] < count
            # as many are left out on both sides, up to the rounding
            assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1
    with pytest.raises(ValueError, match=r"frames must be in \[1, 3\]"):
        evenly(3, 4)


def test_a_picture_of_a_clip_is_some_frames_side_by_side():
    clip = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, 3, 2, 4)
    strip = film_strip(clip, 4)
    assert strip.shape == (3, 2, 16)
    assert strip[0, 0].tolist() == [2] * 4 + [6] * 4 + [10] * 4 + [14] * 4
    assert film_strip(clip[:3]).shape == (3, 2, 12)
    data = load("clips:4")
    pictures = data.pictures(torch.arange(2))
    assert pictures.shape == (2, 1, 24, 8 * 24)


COLOURS = {"up": (255, 0, 0), "down": (0, 0, 255)}


def picture(value: int, colour: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    pixels = np.empty((size[1], size[0], 3), dtype=np.uint8)
    pixels[:] = colour
    pixels[:, :, 1] = value
    return Image.fromarray(pixels)


def write_frames(folder, count: int, colour=(255, 0, 0), size=(12, 10), ending="png"):
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number, colour, size).save(folder / f"frame{number}.{ending}")


def write_animation(path, count: int, colour=(255, 0, 0), size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [picture(10 * number, colour, size) for number in range(count)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, **options)


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        for clip in range(3):
            write_frames(tmp_path / "clips" / name / f"clip{clip}", 12, colour)
        write_animation(tmp_path / "clips" / name / "clip10.webp", 12, colour)
        write_animation(tmp_path / "clips" / name / "clip9.gif", 12, colour)
    return tmp_path / "clips"


def test_folders_of_frames_and_animations_are_read_in_order(folder):
    data = load(f"clip-folder:{folder}:frames=4")
    assert data.inputs.shape == (4, 3, 10, 12)
    assert data.class_names == ("down", "up")
    assert data.labels.tolist() == [0] * 5 + [1] * 5
    x = data.inputs.fetch(torch.arange(10))
    # frame10 comes after frame9; of 12 frames those in the middle of each three
    assert x[5, :, 1, 0, 0].tolist() == [1, 4, 7, 10]
    assert x[5:, :, 0].min() >= 250
    assert x[5:, :, 2].max() <= 5
    # the gif, then the webp
    for row in (8, 9):
        assert (x[row, :, 1, 0, 0].int() - torch.tensor([10, 40, 70, 100])).abs().max() <= 5
    assert "Of each clip 4 frames were taken, evenly over its length." in data.notes
    assert load(f"clip-folder:{folder}:frames=12", image_size=8).inputs.shape == (12, 3, 8, 8)


def test_names_sort_by_their_numbers():
    names = ["b", "a10", "a9", "a9b", "9", "10"]
    assert sorted(names, key=by_number) == ["9", "10", "a9", "a9b", "a10", "b"]


def test_clips_above_the_memory_limit_are_decoded_as_they_are_wanted(folder):
    whole = load(f"clip-folder:{folder}:frames=4")
    streamed = load(f"clip-folder:{folder}:frames=4", memory_limit_bytes=100)
    assert whole.inputs.in_memory
    assert not streamed.inputs.in_memory
    index = torch.tensor([7, 0, 9])
    assert torch.equal(streamed.inputs.fetch(index), whole.inputs.fetch(index))
    chosen = streamed.select(index).inputs
    assert torch.equal(chosen.fetch(torch.arange(3)), whole.inputs.fetch(index))


def test_what_is_no_clip_is_said(folder, tmp_path):
    cases = [
        (folder, "13", r"clip\d+.*has 12 frames, fewer than the 13 asked for with frames=13"),
        (folder, "0", r"frames must be a whole number in \[1, 10000\], got '0'"),
        (folder, "few", "frames must be a whole number"),
        (tmp_path / "none", "4", "there is no such folder"),
    ]
    for root, frames, message in cases:
        with pytest.raises(DataError, match=message):
            load(f"clip-folder:{root}:frames={frames}")
    with pytest.raises(DataError, match="'clip-folder' needs a path"):
        load("clip-folder:")
    (folder / "still").mkdir()
    with pytest.raises(DataError, match="the class 'still' is empty"):
        load(f"clip-folder:{folder}:frames=4")
    (folder / "still" / "clip").mkdir()
    with pytest.raises(DataError, match="holds no frame"):
        load(f"clip-folder:{folder}:frames=4")
    write_frames(folder / "still" / "clip" / "deeper", 4)
    with pytest.raises(DataError, match="holds the folder 'deeper'"):
        load(f"clip-folder:{folder}:frames=4")


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    write_frames(tmp_path / "secret", 12)
    (folder / "up" / "clip1" / "frame99.png").symlink_to(tmp_path / "secret" / "frame0.png")
    with pytest.raises(DataError, match="leads out of this folder"):
        load(f"clip-folder:{folder}:frames=4")
    (folder / "up" / "clip1" / "frame99.png").unlink()
    (folder / "up" / "linked").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leads out of this folder"):
        load(f"clip-folder:{folder}:frames=4")


def test_broken_clips_are_named_and_may_be_left_out(folder):
    (folder / "up" / "clip9.gif").write_bytes(b"GIF89a broken")
    with pytest.raises(DataError, match=r"clip9\.gif.*--skip-bad"):
        load(f"clip-folder:{folder}:frames=4")
    for limit in (2 << 30, 100):
        data = load(f"clip-folder:{folder}:frames=4", skip_bad=True, memory_limit_bytes=limit)
        assert len(data) == 9
        assert "1 images could not be read" in data.notes[-1]


def test_clips_of_several_sizes_need_one(folder):
    write_frames(folder / "up" / "clip4", 12, size=(20, 10))
    with pytest.raises(
        DataError, match=r"clip4: the frames are 20 x 10 pixels, those of other clips 12 x 10; pass --image"
    ):
        load(f"clip-folder:{folder}:frames=4")
    assert load(f"clip-folder:{folder}:frames=4", image_size=6).inputs.shape == (4, 3, 6, 6)
    picture(3, (1, 1, 1), (9, 9)).save(folder / "up" / "clip4" / "frame5.png")
    with pytest.raises(DataError, match="clip4: the frames differ in size"):
        load(f"clip-folder:{folder}:frames=12", skip_bad=False)


def test_hostile_clips_are_refused(folder, monkeypatch):
    data = (folder / "up" / "clip9.gif").read_bytes()
    assert decode_animation(data, "clip", 3).shape == (3, 10, 12, 3)
    monkeypatch.setattr(clip_files, "MAX_CLIP_PIXELS", 11 * 120)
    with pytest.raises(BadImage, match="more than 1320 pixels in its frames"):
        decode_animation(data, "clip", 3)
    monkeypatch.setattr(clip_files, "MAX_CLIP_PIXELS", 10**9)
    monkeypatch.setattr(clip_files, "MAX_FRAMES", 11)
    with pytest.raises(BadImage, match="more than 11 frames"):
        decode_animation(data, "clip", 3)
    with pytest.raises(DataError, match="has 12 frames, the limit is 11"):
        load(f"clip-folder:{folder}:frames=4")
    for cut in (30, 200, len(data) // 2):
        with pytest.raises(BadImage, match="clip"):
            decode_animation(data[:cut], "clip", 12)
    with pytest.raises(BadImage, match="not an image"):
        decode_animation(b"no image at all", "clip", 1)


def test_a_changed_frame_or_another_number_of_frames_is_another_data_set(folder):
    def digest(spec):
        return data_fingerprint(DataOptions(train=spec))

    spec = f"clip-folder:{folder}:frames=4"
    first = digest(spec)
    assert digest(spec) == first
    assert digest(f"clip-folder:{folder}:frames=5") != first
    (folder / "up" / "clip1" / "frame3.png").write_bytes(b"changed")
    assert digest(spec) != first


def test_auxiliary_clips():
    like = load("clips:20")
    noise = load_auxiliary("gaussian:size=5", like, 0)
    assert noise.inputs.shape == like.inputs.shape
    assert len(load_auxiliary("clips:6", like, 0)) == 6
    shuffled = load_auxiliary("shuffled:size=4", like, 0)
    known = {
        tuple(frame.flatten().sort().values.tolist()) for clip in like.inputs.fetch(torch.arange(20)) for frame in clip
    }
    for clip in shuffled.inputs.fetch(torch.arange(4)):
        assert all(tuple(frame.flatten().sort().values.tolist()) in known for frame in clip)
    with pytest.raises(DataError, match="'patches' makes images, but clips is a set of clips; use"):
        load_auxiliary("patches:size=4", like, 0)
    with pytest.raises(DataError, match="have inputs of shape"):
        load_auxiliary("digits", like, 0)
