"""RISDA in a run: before, at and after its start, what it learns of the data, resuming, recipes and refusals."""

import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import resolve
from weathered.core.class_statistics import confusion_graph
from weathered.core.errors import Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.loaded_run import load_run
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.nn.build import build_model
from weathered.procedures.classifier_retraining import ClassifierRetraining
from weathered.procedures.risda import RISDA, mean_shift
from weathered.recipe import DataOptions, Recipe
from weathered.training import train
from weathered.weighting.base import class_weights
from weathered.weighting.class_balanced import ClassBalanced

SETTINGS = Settings(epochs=4, batch_size=12, lr=0.05)


@pytest.fixture
def tailed(images):
    """16, 12 and 6 images of the three classes."""
    rows = [(images.labels == label).nonzero()[:, 0][:count] for label, count in enumerate((16, 12, 6))]
    return images.select(torch.cat(rows))


def make(images, procedure=None, model="cnn_small:width=8", settings=SETTINGS, **changes) -> Run:
    return Run(build_model(model, images), images, procedure=procedure, settings=settings, **changes)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def features(run: Run, images) -> torch.Tensor:
    with torch.no_grad():
        model = run.model.eval()
        return model.forward_head(model.forward_features(images.floats(torch.arange(len(images)))), pre_logits=True)


def test_a_start_at_the_end_is_plain_training(tailed):
    plain, never = state(fit(make(tailed))), state(fit(make(tailed, RISDA(start=1.0))))
    assert all(plain[name].equal(never[name]) for name in plain)


@pytest.mark.filterwarnings("ignore:classes are confused too little")
def test_from_its_start_on_only_the_classifier_moves(tailed):
    run, plain = make(tailed, RISDA(start=0.5)), make(tailed)
    half = run.total_steps // 2
    fit(plain, max_steps=half)
    fit(run, max_steps=half)
    before = state(run)
    assert all(before[name].equal(value) for name, value in state(plain).items())
    fit(run)
    after = state(run)
    assert {name for name in before if not before[name].equal(after[name])} == {"head.weight", "head.bias"}


@pytest.mark.filterwarnings("ignore:classes are confused too little")
@pytest.mark.parametrize("balance", [0.0, 0.999])
def test_without_strength_it_trains_the_classifier_by_class_weighted_cross_entropy(tailed, balance):
    found = fit(make(tailed, RISDA(alpha=0, beta=0, start=0.0, balance=balance)))
    weights = ClassBalanced(tailed.class_counts, balance)
    expected = fit(make(tailed, ClassifierRetraining(start=0.0), reweight=weights))
    for name, value in state(expected).items():
        assert_close(found.model.state_dict()[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:classes are confused too little")
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_what_it_knows_is_what_the_data_say(tailed, covariance):
    procedure = RISDA(start=0.5, covariance=covariance)
    # batches of 17 of 34 rows leave none out
    run = make(tailed, procedure, settings=Settings(epochs=4, batch_size=17, lr=0.01))
    fit(run, max_steps=4)
    found = features(run, tailed)
    means = torch.stack([found[tailed.labels == label].mean(0) for label in range(3)])
    fit(run, max_steps=2)
    statistics = procedure.statistics
    assert torch.equal(statistics.counts, tailed.class_counts)
    assert_close(statistics.means, means, atol=1e-5, rtol=1e-5)
    expected = torch.stack([torch.cov(found[tailed.labels == label].T, correction=0) for label in range(3)])
    if covariance == "diagonal":
        expected = expected.diagonal(dim1=1, dim2=2)
    assert_close(statistics.covariances, expected, atol=1e-5, rtol=1e-5)
    assert_close(procedure.shift, mean_shift(procedure.confusions, means), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:classes are confused too little")
@pytest.mark.parametrize(("graph", "soft"), [("train", False), ("validation", False), ("validation", True)])
def test_the_graph_is_of_the_most_accurate_epoch_before_the_start(images, graph, soft):
    run = make(images, RISDA(start=0.75, graph=graph, soft=soft), validation=images.select(torch.arange(9, 48)))
    data = images if graph == "train" else run.validation
    graphs, accuracies = [], []

    def look(run, loss):
        logits = run.predict(data)
        accuracies.append(float((logits.argmax(1) == data.labels).double().mean()))
        graphs.append(confusion_graph(logits.softmax(1) if soft else logits.argmax(1), data.labels, 3))

    fit(run, after_epoch=look)
    best = max(range(3), key=lambda epoch: accuracies[epoch])
    assert torch.equal(run.procedure.confusions, graphs[best])


def test_the_loss_of_a_step_is_the_formula(tailed):
    procedure = RISDA(alpha=0.5, beta=0.5, head=0.34, start=0.5, balance=0.99)
    run = make(tailed, procedure, loss=LabelSmoothing(0.1), settings=Settings(epochs=4, batch_size=34))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(run, max_steps=3)
    batch = run.prepare(tailed.floats(torch.arange(34)), tailed.labels, torch.arange(34))
    found, labels, head = features(run, tailed), tailed.labels, run.model.head
    graph, covariances = procedure.confusions.float(), procedure.statistics.covariances
    mixed = torch.einsum("cj,jde->cde", graph, covariances)
    mixed[0] = covariances[0]
    apart = head.weight[None] - head.weight[labels][:, None]
    strength = 0.5 * 0.75
    added = strength / 2 * torch.einsum("nkd,nde,nke->nk", apart, mixed[labels], apart)
    added = added + strength * torch.einsum("nkd,nd->nk", apart, procedure.shift[labels])
    weights = class_weights(tailed.class_counts, 0.99)[labels].float()
    losses = F.cross_entropy(head(found) + added, labels, label_smoothing=0.1, reduction="none")
    assert_close(procedure.augmented_loss(run, batch, found), (weights * losses).sum() / weights.sum())


@pytest.mark.filterwarnings("ignore:classes are confused too little")
def test_the_first_step_of_the_classifier_knows_the_covariances_of_its_batch(tailed):
    seen = []

    class Watched(RISDA):
        def augmented_loss(self, run, batch, features):
            seen.append(self.statistics.counts.clone())
            return super().augmented_loss(run, batch, features)

    fit(make(tailed, Watched(start=0.0), settings=Settings(epochs=1, batch_size=34)))
    assert torch.equal(seen[0], tailed.class_counts)


@pytest.mark.filterwarnings("ignore:classes are confused too little")
@pytest.mark.parametrize("start", [0.0, 0.125, 0.1875])
def test_resumes_bit_for_bit(images, assert_resumes, start):
    """Of 16 steps it begins before, at and after the third, where the run goes on."""
    assert_resumes(lambda: make(images, RISDA(start=start)))


def test_warns_where_nothing_is_confused_and_not_otherwise(images):
    with pytest.warns(UserWarning, match=r"confused too little .* 100.0% .* use graph=validation or soft=true"):
        fit(make(images, RISDA(start=0.75), settings=Settings(epochs=12, batch_size=12, lr=0.1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make(images, RISDA(start=0.0), settings=Settings(epochs=1, batch_size=12)))


@pytest.mark.filterwarnings("ignore:classes are confused too little")
def test_warns_of_classes_that_never_came(images):
    class Only:
        """Draws the first two classes alone."""

        def weights(self, labels, progress):
            return (labels < 2).double()

    with pytest.warns(UserWarning, match=r"classes without a row since start=0.5 have covariance 0: \[2\]"):
        run = fit(make(images, RISDA(start=0.5), sampler=Only()))
    assert torch.isfinite(run.predict(images)).all()


def test_bad_use_is_refused(images):
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, infinity\), got -0.5"):
            RISDA(**{name: -0.5})
    for name in ("head", "start"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got 20"):
            RISDA(**{name: 20})
    with pytest.raises(ValueError, match=r"balance must be in \[0, 1\), got 1"):
        RISDA(balance=1)
    with pytest.raises(ValueError, match="graph must be 'train' or 'validation', got 'test'"):
        RISDA(graph="test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be 'full' or 'diagonal'"):
        RISDA(covariance="half")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Incompatible, match="validation"):
        make(images, RISDA(graph="validation"))
    with pytest.raises(Incompatible, match="augments along the class vectors"):
        Run(build_model("cnn_small:width=8", images, head="cosine"), images, procedure=RISDA())
    with pytest.raises(Incompatible, match="fills the slot 'reweight'"):
        make(images, RISDA(), reweight=ClassBalanced(images.class_counts))
    with pytest.raises(SpecError, match="Did you mean 'alpha'"):
        resolve(["risda:alhpa=1"])


@pytest.mark.filterwarnings("ignore:classes are confused too little")
def test_a_recipe_trains_and_predicts_by_plain_logits(tmp_path):
    recipe = Recipe(
        data=DataOptions(train="digits", limit=300, make=("long-tail:imbalance=10",), validation=0.2),
        model="mlp:width=32",
        use=("risda:start=0.5,graph=validation,covariance=diagonal",),
        settings=Settings(epochs=6, batch_size=50),
    )
    loaded = load_run(train(recipe, tmp_path).path)
    procedure = loaded.run.procedure
    assert isinstance(procedure, RISDA)
    assert (procedure.start, procedure.graph, procedure.covariance) == (0.5, "validation", "diagonal")
    x = loaded.splits.test.floats(torch.arange(len(loaded.splits.test)))
    with torch.no_grad():
        model = loaded.model.eval()
        plain = model.get_classifier()(model.forward_head(model.forward_features(x), pre_logits=True))
    assert_close(loaded.predict(loaded.splits.test), plain)
