"""Previews: a picture of changed images under their targets, the same for the same seed."""

import torch
from PIL import Image

from weathered.cli.preview import caption


def test_a_preview_is_a_picture_and_the_same_each_time(weathered, tmp_path):
    for name in ("a.png", "b.png"):
        code, out, err = weathered("show", "cutmix:per_sample=true", "--preview", name)
        assert code == 0, err
        assert name in out
    first, second = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert first.format == "PNG"
    assert min(first.size) > 400
    assert first.tobytes() == second.tobytes()
    code, *_ = weathered("show", "mixup", "--preview", "c.png")
    assert code == 0
    assert Image.open(tmp_path / "c.png").tobytes() != first.tobytes()


def test_targets_are_named_with_their_shares():
    names = ("cat", "dog", "cow", "hen")
    assert caption(torch.tensor([0.0, 1.0, 0.0, 0.0]), names) == "dog"
    assert caption(torch.tensor([0.1, 0.25, 0.65, 0.0]), names) == "cow 65%, dog 25%, cat 10%"
    assert caption(torch.full((4,), 0.25), names).count(",") == 2


def test_what_has_no_preview_is_refused(weathered, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,label\n" + "1,2,x\n3,4,y\n" * 8)
    for arguments, message in (
        (("show", "gce", "--preview", "p.png"), "gce is a loss; only transforms"),
        (("show", "mixup", "--preview", "p.png", "--data", "t.csv"), "a preview needs images"),
        (("show", "mixup", "--preview", "t.csv/p.png"), "t.csv"),
        (("show", "mixpu", "--preview", "p.png"), "Did you mean 'mixup'"),
        (("show", "mixup", "--preview", "p.pdf"), "--preview p.pdf is no PNG file to write; name one, as in p.png"),
        (("show", "mixup", "--preview", "."), "is no PNG file"),
        (("show", "mixgen", "--preview", "p.png", "--data", "captions:20"), "mixgen changes captions"),
    ):
        code, _, err = weathered(*arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "p.png").exists()
