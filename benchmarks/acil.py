"""One ACIL update at D = 2048, batch 256, against the published formula with its explicit inverse."""

import torch
from torch.nn import functional as F

from timing import Row, side_by_side
from weathered import ACIL

WIDTH, EXPANSION, BATCH, CLASSES, GAMMA = 64, 2048, 256, 100, 0.1


def published(R, W, H, Y):
    """The recursion as printed: R <- R - R H'(I + H R H')^-1 H R, then W <- W + R H'(Y - H W)."""
    inverse = torch.inverse(torch.eye(len(H), dtype=H.dtype) + H @ R @ H.T)
    R = R - R @ H.T @ inverse @ H @ R
    return R, W + R @ H.T @ (Y - H @ W)


def rows() -> list[Row]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(4 * BATCH, WIDTH, generator=rng)
    labels = torch.randint(CLASSES, (len(features),), generator=rng)
    labels[:CLASSES] = torch.arange(CLASSES)
    start = ACIL(gamma=GAMMA, expansion=EXPANSION).fit(features[:BATCH], labels[:BATCH])
    state = start.state_dict()
    x, y = features[BATCH : 2 * BATCH], labels[BATCH : 2 * BATCH]

    def ours():
        return learner.partial_fit(x, y)

    def theirs():
        H = (x.double() @ start.V_).relu()
        return published(start.R_, start.W_, H, F.one_hot(y, CLASSES).double())

    learner = ACIL(gamma=GAMMA, expansion=EXPANSION)
    learner.load_state_dict(state)
    R, W = theirs()
    ours()
    torch.testing.assert_close(learner.W_, W, rtol=0, atol=1e-8 * float(W.abs().max()))
    torch.testing.assert_close(learner.R_, R, rtol=0, atol=1e-8 * float(R.abs().max()))
    return [side_by_side("ACIL update, D=2048, batch 256", "published formula", ours, theirs, 4.0, 15)]
