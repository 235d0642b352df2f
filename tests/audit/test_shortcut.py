"""The shortcut audit: models whose rule is known, planted and clean digits, going on where it stopped, the command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from weathered.audit.exchanges import Region
from weathered.audit.pieces import Pieces
from weathered.audit.shortcut import audit_shortcut, passes
from weathered.cli import app
from weathered.core.errors import DataError, NonFinite, SpecError
from weathered.core.fit import fit
from weathered.core.predict import prediction_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.makers.shortcut import Shortcut
from weathered.nn.build import build_model


def scenes(size: int = 600, channels: int = 1, seed: int = 0) -> Dataset:
    """Noise of 8 x 8 pixels, with a corner of 2 x 2 that is black or white; labels are those of the corner."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, channels, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(size) % 2
    pixels[:, :, :2, 6:] = (255 * labels).to(torch.uint8)[:, None, None, None]
    return Dataset.of(pixels, labels, ("black", "white"))


def by_corner(x: torch.Tensor) -> torch.Tensor:
    score = x[:, :, :2, 6:].mean((1, 2, 3)) - 0.5
    return torch.stack([-score, score], 1)


def by_everything(x: torch.Tensor) -> torch.Tensor:
    score = x.mean((1, 2, 3)) - 0.5
    return torch.stack([-score, score], 1)


def rows_of(result) -> list[dict[str, object]]:
    return [dict(zip(result.tables[0].columns, row, strict=True)) for row in result.tables[0].rows]


def test_a_model_that_reads_one_corner_is_moved_by_it_and_by_nothing_else():
    result = audit_shortcut(by_corner, scenes(), seed=0, cues=(Region(0, 6, 2, 2), Region(5, 0, 3, 3)))
    assert result.summary["moved by the strongest region"].value == 1
    assert result.summary["moved by cue 0,6,2,2"].value == 1
    assert result.summary["moved by cue 5,0,3,3"].value == 0
    assert result.summary["accuracy on unchanged images"].value == 1
    rows = rows_of(result)
    full = [row for row in rows if row["moved"] == 1]
    # the cell itself, the one square that covers it, and the cue that was named; the smallest first
    assert [(row["top"], row["left"], row["height"]) for row in full] == [(0, 6, 2), (0, 6, 2), (0, 4, 4)]
    for row in full:
        assert row["suspect"] == "yes"
        assert row["accuracy"] == 0
        assert row["accuracy lost"] == 1
    assert {row["moved"] for row in rows[3:]} == {0.0}
    assert {row["suspect"] for row in rows[3:]} == {"no"}
    assert "3 of 27 regions and cues are suspects" in result.notes[0]
    assert result.per_sample["moves"].tolist() == [2] * 600


def test_a_cue_is_found_too_where_it_contradicts_the_labels():
    data = scenes()
    turned = audit_shortcut(by_corner, data.replace(labels=1 - data.labels), seed=0)
    assert turned.summary["accuracy on unchanged images"].value == 0
    assert turned.summary["moved by the strongest region"].value == 1


def test_a_model_that_reads_all_pixels_alike_has_no_suspect():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (600, 1, 8, 8), generator=rng, dtype=torch.uint8)
    labels = (pixels.float().mean((1, 2, 3)) > 127.5).long()
    result = audit_shortcut(by_everything, Dataset.of(pixels, labels), seed=0)
    assert "No suspect: of 25 regions" in result.notes[0]
    assert result.summary["moved by the strongest region"].value < 0.4
    # the mean of all pixels does not know their order
    assert result.summary["accuracy with patches shuffled"].value == 1
    assert {row["suspect"] for row in rows_of(result)} == {"no"}


def test_the_threshold_is_halfway_from_the_share_of_the_difference_to_all():
    """Black but for one cell, so that it makes all of the difference: then no share is too much."""
    pixels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(40) % 2
    pixels[:, :, :2, 6:] = (255 * labels).to(torch.uint8)[:, None, None, None]
    (first, *_) = rows_of(audit_shortcut(by_corner, Dataset.of(pixels, labels), seed=0))
    assert (first["moved"], first["suspect from"], first["suspect"]) == (1.0, 1.0, "no")
    noisy = rows_of(audit_shortcut(by_corner, scenes(), seed=0))[0]
    # differences: 1 in each of 4 pixels against 1/6 in each of 60
    assert noisy["suspect from"] == pytest.approx((1 + 4 / (4 + 60 / 6)) / 2, abs=0.01)


def test_a_model_that_reads_the_colour_is_moved_by_colour():
    rng = torch.Generator().manual_seed(0)
    grey = torch.randint(60, 256, (300, 1, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(300) % 2
    colours = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.uint8)[labels][:, :, None, None]

    def by_colour(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2))], 1)

    result = audit_shortcut(by_colour, Dataset.of(grey * colours, labels), seed=0)
    assert result.summary["moved by colour"].value == 1
    assert result.summary["accuracy in grey"].value == 0.5
    assert result.summary["accuracy with patches shuffled"].value == 1
    (colour,) = [row for row in rows_of(result) if row["exchanged"] == "colour"]
    assert (colour["suspect"], colour["top"], colour["suspect from"]) == ("yes", "-", 0.5)
    assert not any("colour was not tried" in note for note in result.notes)
    assert any("colour was not tried" in note for note in audit_shortcut(by_corner, scenes(), seed=0).notes)


def test_the_seed_and_nothing_else_decides():
    data = scenes(300)
    one, again = (json.dumps(audit_shortcut(by_everything, data, seed=3).to_json()) for _ in range(2))
    assert one == again
    assert one != json.dumps(audit_shortcut(by_everything, data, seed=4).to_json())


def test_it_goes_on_where_it_was_stopped_and_finds_the_same(tmp_path):
    data, cues = scenes(300), (Region(0, 0, 3, 3),)
    whole = json.dumps(audit_shortcut(by_everything, data, 0, cues=cues).to_json())
    for stop in (0, 1, 9):
        seen: list[tuple[int, int]] = []

        def watch(what: str, done: int, of: int, stop=stop, seen=seen) -> None:
            seen.append((done, of))
            if done == stop:
                raise KeyboardInterrupt

        pieces = Pieces(tmp_path / str(stop))
        with pytest.raises(KeyboardInterrupt):
            audit_shortcut(by_everything, data, 0, cues=cues, pieces=pieces, watch=watch)
        assert len(list((tmp_path / str(stop)).iterdir())) == stop + 1
        assert {of for _, of in seen} == {passes((1, 8, 8), 4, 1)}
        asked: list[int] = []

        def counted(x: torch.Tensor, asked=asked) -> torch.Tensor:
            asked.append(len(x))
            return by_everything(x)

        again = audit_shortcut(counted, data, 0, cues=cues, pieces=pieces)
        assert json.dumps(again.to_json()) == whole
        # two blocks for each pass that was not made yet
        assert len(asked) == 2 * (passes((1, 8, 8), 4, 1) - stop - 1)


@pytest.fixture(scope="module")
def parts(digits):
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    return digits.select(order[:1297]), digits.select(order[1297:])


@pytest.mark.parametrize("model", ["mlp:width=64,depth=1", pytest.param("cnn_small:width=8", marks=pytest.mark.slow)])
def test_a_planted_patch_is_found_in_a_plain_run_and_nothing_in_one_on_clean_digits(parts, model):
    train, test = parts
    maker = Shortcut(halves=True)
    planted = maker(train, generator(0, "cues")), maker.test_set(test, generator(0, "test cues"))
    settings = Settings(epochs=6, batch_size=64, optimizer="adam", lr=0.003, weight_decay=0.0)
    for (fitted, held), found in ((planted, True), (parts, False)):
        run = fit(Run(build_model(model, fitted), fitted, settings=settings))
        result = audit_shortcut(prediction_of(run.model, run), held, seed=0)
        strongest = rows_of(result)[0]
        if found:
            assert (strongest["top"], strongest["left"], strongest["suspect"]) == (0, 0, "yes")
            assert result.summary["moved by the strongest region"].low > 0.95
            assert "region 0,0,4,4" in result.notes[0]
        else:
            assert result.summary["accuracy on unchanged images"].value > 0.85
            assert result.notes[0].startswith("No suspect")


def test_what_cannot_be_audited_is_refused():
    data = scenes(20)
    with pytest.raises(DataError, match="needs at least one image"):
        audit_shortcut(by_corner, Dataset.of(torch.rand(4, 3), torch.arange(4) % 2), 0)
    with pytest.raises(DataError, match="needs at least one image"):
        audit_shortcut(by_corner, data.select(torch.arange(0)), 0)
    for grid in (1, 9):
        with pytest.raises(SpecError, match=rf"grid must be in \[2, 8\] for 8 x 8 pixels, got {grid}"):
            audit_shortcut(by_corner, data, 0, grid=grid)
    with pytest.raises(SpecError, match="the cue 6,0,3,3 does not fit images of 8 x 8 pixels"):
        audit_shortcut(by_corner, data, 0, cues=(Region(6, 0, 3, 3),))
    with pytest.raises(ValueError, match="takes all test images for one class"):
        audit_shortcut(lambda x: torch.tensor([1.0, 0.0]).expand(len(x), 2), data, 0)
    with pytest.raises(NonFinite, match="row 0 are not finite"):
        audit_shortcut(lambda x: torch.full((len(x), 2), torch.nan), data, 0)


def test_the_command_audits_a_finished_run_and_refuses_what_does_not_fit(tmp_path):
    invoke = CliRunner().invoke
    trained = invoke(
        app,
        ["train", "digits", "--make", "shortcut:halves=true", "--limit", "400", "--model", "chroma-vae:width=32",
         "--use", "chroma-vae", "--optimizer", "adam", "--lr", "0.003", "--epochs", "4", "--out", str(tmp_path)],
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    (run,) = tmp_path.glob("*/run.json")
    folder = run.parent
    done = invoke(app, ["audit", str(folder), "--audits", "shortcut", "--cue", "0,0,3,3", "--limit", "200"])
    assert done.exit_code == 0, done.output
    assert "shortcut: under a minute for 28 passes" in done.output
    kept = json.loads((folder / "audit.json").read_text())["shortcut"]
    assert kept["summary"]["moved by cue 0,0,3,3"]["n"] == 200
    assert "disagreement with the shortcut classifier" in kept["summary"]
    assert not (folder / "unfinished").exists()
    for options, message in (
        (["--audits", "accuracy", "--cue", "0,0,3,3"], "would do nothing without the audit shortcut"),
        (["--audits", "accuracy", "--grid", "4"], "would do nothing without the audit shortcut"),
        (["--audits", "shortcut", "--cue", "0,0,3"], "a cue is top,left,height,width"),
        (["--audits", "shortcut", "--cue", "7,7,3,3"], "does not fit images of 8 x 8"),
        (["--audits", "shortcut", "--grid", "1"], "grid must be in [2, 8]"),
        (["--audits", "shortcuts"], "Did you mean 'shortcut'?"),
    ):
        refused = invoke(app, ["audit", str(folder), *options])
        assert isinstance(refused.exception, SpecError)
        assert message in str(refused.exception)
    written = invoke(app, ["report", str(folder), "-o", str(tmp_path / "report.html")])
    assert written.exit_code == 0, written.output
    assert "Shortcuts" in (tmp_path / "report.html").read_text()
