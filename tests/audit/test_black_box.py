"""What the robustness audit says of attacks by scores alone."""

import numpy as np
import pytest
import torch
from torch import nn

from weathered.attacks.build import build_attacks
from weathered.attacks.score_based import Attacked
from weathered.audit.black_box import Asked, asked_notes, asked_summary, asked_tables
from weathered.audit.pieces import Pieces
from weathered.audit.robustness import audit_robustness
from weathered.core.errors import Incompatible
from weathered.data.dataset import Dataset


class Means(nn.Module):
    """Two classes by the mean of a clip: dark and bright."""

    def __init__(self):
        super().__init__()
        self.asked, self.scale = 0, nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        self.asked += len(x)
        mean = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-mean, mean], 1)


def clips(size: int = 20) -> Dataset:
    """Of one grey each; half of them close to the border between the classes, two with a wrong label."""
    grey = torch.tensor([(124 if row % 2 else 60) if row % 4 < 2 else (131 if row % 2 else 200) for row in range(size)])
    pixels = grey.to(torch.uint8).view(size, 1, 1, 1, 1).expand(size, 3, 1, 4, 4).contiguous()
    labels = (grey > 127).long()
    labels[:2] = 1 - labels[:2]
    return Dataset.of(pixels, labels, name="greys")


SPEC = "nes:queries=400,samples=20,step_size=0.02"


def test_figures_are_those_of_the_attacked_clips_failures_counted(tmp_path):
    data, model = clips(), Means()
    attacks = build_attacks(["pgd:steps=3", SPEC], 0.03, "linf")
    seen: list[tuple[int, int]] = []
    result = audit_robustness(model, data, attacks, 0, Pieces(tmp_path), lambda what, done, of: seen.append((done, of)))
    # 20 clips in blocks of 32 for the gradient and the curve, of 8 for scores
    assert seen[-1] == (1 + 1 + 3, 1 + 1 + 3)
    queries, moved = result.per_sample[f"queries_of_{SPEC}"], result.per_sample[f"perturbation_by_{SPEC}"]
    near = np.arange(20) % 2 == 1
    attacked = np.arange(20) >= 2
    assert not queries[:2].any()
    assert (queries[attacked] > 1).all()
    fooled = attacked & ~result.per_sample[f"right_under_{SPEC}"]
    assert np.array_equal(fooled, attacked & near)
    assert moved.max() <= 0.03 * 255
    summary = result.summary
    assert summary[f"fooling rate of {SPEC}"].value == 0.5
    assert summary[f"fooling rate of {SPEC}"].n == 18
    assert summary[f"average queries of {SPEC}"].value == pytest.approx(queries[attacked].mean())
    assert summary[f"mean absolute perturbation by {SPEC}"].value == pytest.approx(moved[attacked].mean())
    assert result.higher_is_better[f"average queries of {SPEC}"]
    assert not result.higher_is_better[f"fooling rate of {SPEC}"]
    table = result.tables[1]
    assert table.columns[4] == "attacked clips"
    assert table.rows[0][0] == SPEC
    assert table.rows[0][6] == 400
    assert any("fooled the network on 9 of 18 clips" in note and "at most 400" in note for note in result.notes)
    # what was kept gives the same, and asks less
    before = model.asked
    again = audit_robustness(model, data, attacks, 0, Pieces(tmp_path), None)
    assert again.to_json() == result.to_json()
    assert model.asked - before == 20


def test_where_nothing_is_right_there_is_nothing_to_attack():
    data = clips(8)
    wrong = data.replace(labels=1 - (data.floats(torch.arange(8)).flatten(1).mean(1) > 0.5).long())
    result = audit_robustness(Means(), wrong, build_attacks([SPEC], 0.03, "linf"), 0)
    assert len(result.tables) == 1
    assert not any("fooling" in name for name in result.summary)


def test_a_targeted_attack_says_so():
    attacked = torch.tensor([True, True])
    found = Attacked(
        torch.zeros(2, 1), torch.tensor([5, 9]), torch.tensor([True, False]), ~attacked, torch.ones(2).double()
    )
    asked = {"nes": Asked.of(found, attacked)}
    attacks = build_attacks(["nes:targeted=true"], 0.03, "linf")
    (note,) = asked_notes({"nes:targeted=true": asked["nes"]}, attacks, "images")
    assert "on 1 of 2 images towards a class drawn at random with 7 queries each" in note
    assert asked_summary(asked)[0]["average queries of nes"].value == 7
    assert asked_tables({"nes:targeted=true": asked["nes"]}, attacks, "images")[0].rows[0][5] == 7


class Hidden(nn.Module):
    """The same behind rounded pixels, so that there is no gradient."""

    def __init__(self):
        super().__init__()
        self.inner = Means()

    def forward(self, x):
        # finer than the noise of an estimate
        return self.inner(torch.round(x * 1e4) / 1e4)


def test_scores_find_what_hidden_gradients_hide():
    attacks = build_attacks(["fgsm", SPEC], 0.03, "linf")
    notes = audit_robustness(Hidden(), clips(), attacks, 0).notes
    assert any("Scores alone" in note and "needs no gradient, turned 9 clips" in note for note in notes)


def test_attacks_that_need_other_inputs_are_refused():
    images = Dataset.of(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), name="images")
    for name, data, message in (
        ("astfocus", images, "the attack astfocus needs 'clip'.*but the data are images"),
        ("square", clips(), "the attack square needs 'image'.*but the data are clips"),
    ):
        with pytest.raises(Incompatible, match=message):
            audit_robustness(Means(), data, build_attacks([name], 0.1, "linf"), 0)
