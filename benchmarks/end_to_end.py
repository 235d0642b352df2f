"""Training on 20,000 images of the CIFAR-10 parquet, decoding included, against torchvision, DataLoader and a loop."""

import io
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from timing import Row
from weathered import CropFlip, Run, Settings, build_model, fit, load
from weathered.core.precision import bfloat16_is_native

DATA = Path(__file__).parents[2] / "shared" / "data" / "cifar10-train.parquet"
TEST = DATA.with_name("cifar10-test.parquet")
ROWS, BATCH, REPEATS = 20_000, 128, 3
SIZES = {"cnn_small:width=16": 3, "cnn_small": 1}
"""Model -> epochs: in the narrow one the data path weighs more, as on a GPU; the default one is bound by arithmetic."""


class Encoded(TorchDataset):
    """Decode with Pillow, augment with torchvision, sample by sample in worker processes."""

    def __init__(self, path: Path):
        table = pq.read_table(path, columns=["image", "label"])
        self.images = [row["bytes"] for row in table["image"].to_pylist()]
        self.labels = table["label"].to_pylist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.open(io.BytesIO(self.images[index]))), self.labels[index]


def ours(path: Path, test, model: str, epochs: int) -> tuple[float, float]:
    """Seconds and test accuracy of our path, decoding included: the cache folder is new."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train = load(f"parquet:{path}", cache_dir=Path(folder))
        precision = "bf16-mixed" if bfloat16_is_native(torch.device("cpu")) else "32-true"
        settings = Settings(epochs=epochs, batch_size=BATCH, precision=precision, channels_last=True)
        run = fit(Run(build_model(model, train), train, transforms=[CropFlip()], settings=settings))
    return time.perf_counter() - begun, accuracy(run.model, test)


def theirs(path: Path, test, model: str, epochs: int) -> tuple[float, float]:
    """Seconds and test accuracy of the usual path, in float32 with two workers."""
    torch.manual_seed(0)
    begun = time.perf_counter()
    data = Encoded(path)
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    settings = Settings(epochs=epochs, batch_size=BATCH)
    network = build_model(model, test).train()
    optimizer = settings.build_optimizer(list(network.parameters()))
    total, step = epochs * len(loader), 0
    for _ in range(epochs):
        for x, y in loader:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate(step / total)
            loss = nn.functional.cross_entropy(network(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return time.perf_counter() - begun, accuracy(network, test)


@torch.no_grad()
def accuracy(model: nn.Module, test) -> float:
    model.eval()
    parts = torch.arange(len(test)).split(1000)
    return sum(float((model(test.floats(p)).argmax(1) == test.labels[p]).sum()) for p in parts) / len(test)


def rows() -> list[Row]:
    if not DATA.exists():
        return []
    test = load(f"parquet:{TEST}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        pq.write_table(pq.read_table(DATA).slice(0, ROWS), path)
        return [_row(path, test, model, epochs) for model, epochs in SIZES.items()]


def _row(path: Path, test, model: str, epochs: int) -> Row:
    measured = [(ours(path, test, model, epochs), theirs(path, test, model, epochs)) for _ in range(REPEATS)]
    ratios = sorted(b[0] / a[0] for a, b in measured)
    mean = [sum(pair[side][1] for pair in measured) / REPEATS for side in (0, 1)]
    mine, peer = (sorted(pair[side][0] for pair in measured)[REPEATS // 2] for side in (0, 1))
    what = f"CIFAR-10 end to end, {model}, {epochs} epochs (test accuracy {mean[0]:.3f}, peer {mean[1]:.3f})"
    return Row(what, "torchvision + DataLoader", 1000 * mine, 1000 * peer, ratios[REPEATS // 2], 1.8, REPEATS)
