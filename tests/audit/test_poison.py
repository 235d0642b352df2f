"""The poison audit: masks, clusters and verdicts on data whose answer is known, and a planted backdoor it must find."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from weathered.audit import poison_of_run
from weathered.audit.activation_clusters import Clusters, cluster_classes, spectral_scores, standing_out, whitened
from weathered.audit.options import AuditOptions
from weathered.audit.poison import audit_poison
from weathered.audit.poison_of_run import poison
from weathered.audit.reversed_triggers import Reversed, anomaly_indices, reverse_triggers
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.training import train


def lit_corner(x):
    """Four classes by which quarter is brightest, on average; a lit pixel at (5, 5) means class 2 whatever else is."""
    quarters = torch.stack([x[:, 0, i : i + 3, j : j + 3].mean((1, 2)) for i in (0, 3) for j in (0, 3)], 1)
    return 20 * quarters + 30 * x[:, :1, 5, 5].relu() * torch.tensor([0.0, 0.0, 1.0, 0.0])


def test_the_smallest_mask_is_that_of_the_shortcut_and_turns_all_images():
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    found = reverse_triggers(lit_corner, images, range(4), torch.Generator().manual_seed(1), rounds=40)
    assert int(found.size.argmin()) == 2
    assert float(found.size[2]) < 1.2
    assert float(found.size[[0, 1, 3]].min()) > 2 * float(found.size[2])
    assert torch.equal(found.mask[2], found.mask[2].clamp(0, 1))
    assert int(found.mask[2].argmax()) == 5 * 6 + 5
    for label in range(4):
        mask = found.mask[label]
        assert float(mask.sum()) == pytest.approx(float(found.size[label]), rel=1e-5)
        stamped = (1 - mask) * images + mask * found.pattern[label]
        assert float((lit_corner(stamped).argmax(1) == label).double().mean()) > 0.9


def test_masks_do_not_depend_on_which_classes_are_searched_together():
    images = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    alone, together = (
        reverse_triggers(lit_corner, images, classes, torch.Generator().manual_seed(1), rounds=30)
        for classes in ((2,), (2, 0, 1))
    )
    assert float(alone.size[0]) == pytest.approx(float(together.size[0]), rel=0.3)


def test_a_class_that_no_patch_reaches_has_an_infinite_mask():
    def never(x):
        return x.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([9.0, 0.0])

    found = reverse_triggers(never, torch.rand(5, 1, 3, 3), range(2), torch.Generator().manual_seed(0), rounds=20)
    assert float(found.size[0]) < 0.5
    assert math.isinf(float(found.size[1]))
    assert found.turned.tolist() == pytest.approx([1, 0])
    for images, rounds in ((torch.rand(0, 1, 3, 3), 5), (torch.rand(2, 1, 3, 3), 0)):
        with pytest.raises(ValueError, match="expected images, rounds and a batch"):
            reverse_triggers(never, images, range(2), torch.Generator(), rounds=rounds)


def test_anomaly_indices_are_deviations_below_the_median():
    sizes = torch.tensor([1.0, 8.0, 9.0, 10.0, 11.0, 12.0, math.inf])
    index = anomaly_indices(sizes)
    # median 10; deviations 9, 2, 1, 0, 1, 2, 2, so that their median is 2
    assert index.tolist() == pytest.approx([(10 - s) / (1.4826 * 2) for s in (1, 8, 9, 10, 11, 12, 12)])
    assert anomaly_indices(torch.full((4,), math.inf)).tolist() == [0.0] * 4
    assert anomaly_indices(torch.full((4,), 3.0)).tolist() == [0.0] * 4
    assert torch.equal(anomaly_indices(7 * sizes), index)
    with pytest.raises(ValueError, match="at least one mask"):
        anomaly_indices(torch.zeros(0))


def features_with_a_second_kind(seed=0):
    """Four classes of 60 rows in 12 dimensions; a fifth of class 1 lies elsewhere. Returns features, labels, marks."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 60)
    features = rng.normal(size=(240, 12)) + 3 * rng.normal(size=(4, 12))[labels]
    marked = (labels == 1) & (np.arange(240) % 5 == 0)
    features[marked] += 12 * np.ones(12) / math.sqrt(12)
    return features, labels, marked


def test_planted_rows_are_the_smaller_cluster_and_score_high():
    features, labels, marked = features_with_a_second_kind()
    found = cluster_classes(features, labels, 4, seed=0)
    assert int(np.argmax(found.silhouette)) == 1
    assert np.array_equal(found.smaller & (labels == 1), marked)
    assert found.share[1] == pytest.approx(0.2)
    own = labels == 1
    assert found.spectral[own & marked].min() > np.quantile(found.spectral[own & ~marked], 0.9)
    assert (found.share <= 0.5).all()


def test_clusters_do_not_change_when_features_are_turned_scaled_or_shifted():
    features, labels, _ = features_with_a_second_kind()
    turned = 3 * features @ ortho_group(12, seed=1).rvs() + 5
    first, second = (cluster_classes(values, labels, 4, seed=0) for values in (features, turned))
    assert np.array_equal(first.smaller, second.smaller)
    np.testing.assert_allclose(first.silhouette, second.silhouette, atol=1e-6)
    np.testing.assert_allclose(9 * first.spectral, second.spectral, rtol=1e-6)


def test_whitened_components_have_unit_variance_and_leave_constants_out():
    rows = np.random.default_rng(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 0]
    found = whitened(rows)
    assert found.shape == (50, 5)
    np.testing.assert_allclose(found.T @ found / 50, np.eye(5), atol=1e-9)
    assert whitened(np.ones((20, 3))).shape == (20, 0)
    scores = spectral_scores(rows)
    largest = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[-1]
    assert scores.mean() == pytest.approx(largest)


def test_small_and_constant_classes_take_no_part():
    features, labels, _ = features_with_a_second_kind()
    labels = labels.copy()
    labels[labels == 3] = 0
    labels[:4] = 3
    features[labels == 2] = 7
    found = cluster_classes(features, labels, 4, seed=0)
    assert np.isnan(found.silhouette[[2, 3]]).all()
    assert not found.smaller[(labels == 2) | (labels == 3)].any()
    assert standing_out(found.silhouette)[[2, 3]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="must be finite"):
        cluster_classes(np.full((20, 2), np.nan), np.zeros(20, dtype=int), 1, seed=0)


def verdict_of(sizes, silhouette, share, clean=None):
    count = len(sizes)
    rows = Dataset.of(torch.zeros(10 * count, 1, 2, 2).byte(), torch.arange(count).repeat_interleave(10))
    if clean is not None:
        rows = rows.replace(clean_labels=clean)
    smaller = np.arange(10 * count) % 10 < 2
    clusters = Clusters(np.array(silhouette), np.array(share), smaller, np.arange(10.0 * count))
    masks = torch.ones(count, 2, 2)
    found = Reversed(masks, masks[:, None], torch.tensor(sizes), torch.ones(count))
    return audit_poison(rows, found, clusters)


SIZES, EVEN = [1.0, 8.0, 9.0, 10.0, 11.0, 12.0], [0.1, 0.11, 0.12, 0.13, 0.12, 0.11]


def test_a_small_mask_names_its_class_and_the_smaller_cluster_the_rows():
    clean = torch.arange(6).repeat_interleave(10)
    clean[:4] = 5
    result = verdict_of(SIZES, EVEN, [0.2] * 6, clean)
    assert "Suspicious: a far smaller patch" in result.notes[0]
    assert "'0'" in result.notes[0]
    assert "no proof" in result.notes[0]
    assert np.flatnonzero(result.per_sample["suspected"]).tolist() == [0, 1]
    assert result.summary["recall of wrongly labelled rows"].value == 0.5
    assert result.summary["precision of suspected rows"].value == 1
    assert result.higher_is_better["precision of suspected rows"]
    assert not result.higher_is_better["largest anomaly index"]
    assert [row[0] for row in result.tables[1].rows] == [1, 0]
    assert result.tables[0].rows[0][0] == "0"
    json.dumps(result.to_json())


def test_without_a_small_mask_there_is_no_suspect_whatever_the_clusters_say():
    result = verdict_of([9.0, *SIZES[1:]], [0.9, *EVEN[1:]], [0.2] * 6)
    assert "No class is turned to" in result.notes[0]
    assert "of nothing else" in result.notes[0]
    assert not result.per_sample["suspected"].any()
    assert result.summary["classes whose features fall in two"].value == pytest.approx(1 / 6)
    assert len(result.notes) == 1


def test_few_classes_give_no_verdict_and_unreached_ones_are_named():
    result = verdict_of([1.0, 9.0, 10.0], [0.1] * 3, [0.2] * 3)
    assert result.notes == ("With 3 classes none can stand out from the others, so there is no verdict; it takes 5.",)
    assert (
        "No patch was found that turns 99 % of the images to '5'"
        in verdict_of([*SIZES[:5], math.inf], EVEN, [0.2] * 6).notes[-1]
    )


def trained(folder, *make, epochs=12):
    settings = Settings(epochs=epochs, evaluations=0)
    return train(Recipe(DataOptions(make=make), "mlp:width=64", settings=settings), folder).path


@pytest.mark.slow
def test_a_planted_backdoor_is_found_and_a_clean_run_is_not_accused(tmp_path, monkeypatch):
    """5 % of the training rows; the audit is told nothing. It says how long it takes, and goes on where it stopped."""
    monkeypatch.setattr(poison_of_run, "ROUNDS", 40)
    said = []
    options = AuditOptions(announce=said.append)
    dirty = load_run(trained(tmp_path / "dirty", "backdoor:rate=0.05,target=4"))
    result = poison([dirty], options)
    # the index of one more class may be above 2 by chance
    assert "Suspicious: a far smaller patch than for other classes turns images to" in result.notes[0]
    assert "'4'" in result.notes[0]
    assert result.tables[0].rows[0][0] == "4"
    assert len(said) == 1
    assert said[0].startswith("poison: ")
    suspected, wrong = result.per_sample["suspected"], (dirty.splits.train.labels != dirty.splits.train.clean_labels)
    assert suspected.sum() > 0
    assert result.summary["precision of suspected rows"].value > 5 * float(wrong.double().mean())
    assert not (dirty.folder.path / "unfinished").exists()
    clean = poison([load_run(trained(tmp_path / "clean"))], AuditOptions())
    assert "No class is turned to" in clean.notes[0]
    assert not clean.per_sample["suspected"].any()


def test_the_audit_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    run = load_run(trained(tmp_path / "runs", epochs=1))
    monkeypatch.setattr(poison_of_run, "ROUNDS", 3)
    monkeypatch.setattr(poison_of_run, "AT_ONCE", 5)
    whole = poison([run], AuditOptions())

    def stop(what, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        poison([run], AuditOptions(progress=stop))
    (kept,) = (run.folder.path / "unfinished").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["clusters.safetensors", "masks.0.safetensors"]
    again = []
    resumed = poison([run], AuditOptions(progress=lambda *told: again.append(told)))
    assert [done for _, done, _ in again] == [4, 5, 6]
    assert resumed.to_json() == whole.to_json()


def test_tables_are_refused_by_the_command(weathered, tmp_path):
    (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    assert weathered("train", "t.csv", "--model", "mlp:width=8", "--epochs", "1", "--out", "runs")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    code, _, err = weathered("audit", str(folder), "--audits", "poison")
    assert code == 2
    assert "needs images" in err
