"""Read a finished run back: its recipe, data and the network that predicts."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from weathered.core.errors import CheckpointError, WeatheredError
from weathered.core.predict import predict_logits
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.prepare import Splits, prepare
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.nn.averaged_views import AveragedViews, View
from weathered.recipe import Recipe
from weathered.run_record import check_same_data
from weathered.store import RunFolder
from weathered.training import build_run, learner_of


@dataclass(frozen=True)
class LoadedRun:
    """A finished run: its folder, recipe, data, and the network that predicts; views: what `predict` averages over."""

    folder: RunFolder
    recipe: Recipe
    splits: Splits
    run: Run
    model: nn.Module
    views: tuple[View, ...] = ()

    def predict(self, dataset: Dataset) -> Tensor:
        """Test-time logits (N, C) on a data set; log probabilities where it has several views."""
        if self.views:
            averaged = AveragedViews(self.model, self.views, self.run.test_logits)
            return predict_logits(averaged, dataset, run=self.run)
        return self.run.test_logits(predict_logits(self.model, dataset, run=self.run))


def load_run(path: Path | str) -> LoadedRun:
    """Read a finished run back, with its data. Raises a WeatheredError if it is unfinished or damaged."""
    folder = RunFolder(Path(path))
    record = folder.read_json("run.json")
    if folder.state != "done":
        raise WeatheredError(f"{folder.path} is not finished. Go on with it by 'weathered train ... --resume'.")
    recipe = Recipe.from_tree(record["recipe"], str(folder.path / "run.json"))
    check_same_data(folder, data_fingerprint(recipe.data))
    splits = prepare(recipe)
    run = build_run(recipe, splits)
    model = run.procedure.predictor(run)
    try:
        state = load_file(folder.weights)
        if learner_of(recipe) is not None:
            width, expansion = state["expansion"].shape
            model = AnalyticClassifier(model, None, width, expansion, splits.train.num_classes)
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder.weights} is damaged or belongs to another recipe.") from error
    return LoadedRun(folder, recipe, splits, run, model)
