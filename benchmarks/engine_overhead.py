"""The engine against a hand-written loop: the same network, data, order, optimizer and number of steps."""

import torch
from torch import nn

from timing import Row, side_by_side
from weathered import Dataset, Run, Settings, build_model, fit

BATCH, STEPS = 128, 12


def rows() -> list[Row]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH * STEPS, 3, 32, 32), generator=rng, dtype=torch.uint8)
    data = Dataset.of(images, torch.randint(10, (len(images),), generator=rng))

    def ours() -> torch.Tensor:
        run = Run(build_model("cnn_small", data), data, settings=Settings(epochs=1, batch_size=BATCH))
        return _weights(fit(run).model)

    def theirs() -> torch.Tensor:
        model = build_model("cnn_small", data)
        settings = Settings(epochs=1, batch_size=BATCH)
        optimizer = settings.build_optimizer(list(model.parameters()))
        order = Run(model, data, settings=settings).order(0)
        model.train()
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate(step / STEPS)
            index = order[step * BATCH : (step + 1) * BATCH]
            loss = nn.functional.cross_entropy(model(images[index].float().div_(255)), data.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return _weights(model)

    # the same steps up to the rounding of two ways to take a mean
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    return [side_by_side("training loop, cnn_small at 128x3x32x32", "hand-written loop", ours, theirs, 1 / 1.03, 15)]


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
