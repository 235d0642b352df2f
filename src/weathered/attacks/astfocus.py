"""AstFocus: a black-box attack on video clips that learns, while it attacks, in which frames and squares to search.

Source: Wei et al., "Efficient Robustness Assessment via Adversarial Spatial-Temporal Focus on Videos", TPAMI 2023.
A step searches one square in each of a few frames. One agent chooses the places, another the frames; both learn from
the queries that the attack makes anyway, by PPO on a reward that they share, `score_based.shared_reward`, less its
running mean b:
    b <- 0.9 b + 0.1 mean of all rewards,   A = reward - b
    places: A,   frames: 0.8 A - 0.2 ((chosen frames - T_0) / T)^2,   T_0 = 10, targeted 8
and on rewards of their own for each frame: how strong the edges in the square are, and how well a chosen frame stands
for all, mean_i exp(-||f_i - f_t|| / 16). The agents are drawn anew for every clip.
Limits: without agents it is `random-focus`; with the whole frame as the square and all frames it is `nes`.
The authors take the objectness of boxes in one frame in place of edges and features of a MobileNetV2 in place of
pixels, both of which any function may give here. Their agents are read otherwise when they learn than when they draw;
these are read alike, with the state of the LSTM carried over the frames. Their rule of steps: see `score_based`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weathered.attacks.base import Norm, check_count
from weathered.attacks.encoders import Encoder, encode
from weathered.attacks.focus import FocusedAttack, Regions
from weathered.attacks.focus_agents import FrameAgent, Learner, PlaceAgent
from weathered.attacks.score_based import Focus
from weathered.nn.network import seeded

PlaceReward = Callable[[Tensor, Regions], Tensor]
"""(clip (T, C, H, W), regions) to the reward (T, places) of a square at each place of each frame."""

FrameReward = Callable[[Tensor], Tensor]
"""Features (T, D) to the reward (T,) of choosing each frame."""

TRIES = 3
"""Draws of frames before so many as are allowed are taken at random."""

LIKE = 16.0
"""Distance of features at which a frame stands for another by exp(-1)."""


def representativeness(features: Float[Tensor, "T D"]) -> Float[Tensor, "T"]:
    """mean_i exp(-||f_i - f_t|| / 16), in (0, 1], 1 where all frames are alike."""
    return (-torch.cdist(features, features) / LIKE).exp().mean(1)


def frame_share(advantage: float, chosen: int, wanted: int, count: int) -> float:
    """The shared advantage as the agent of the frames sees it, less for numbers of frames other than wanted."""
    return 0.8 * advantage - 0.2 * ((chosen - wanted) / count) ** 2


class Learned:
    """The focus of one clip: two agents, the rewards of their choices, and the mean of what was gained."""

    def __init__(
        self,
        regions: Regions,
        features: Float[Tensor, "T D"],
        place_rewards: Float[Tensor, "T places"],
        frame_rewards: Float[Tensor, "T"],
        wanted: int,
        agents: tuple[Learner, Learner],
        rng: torch.Generator,
    ):
        self.regions, self.device, self.rng, self.wanted = regions, features.device, rng, wanted
        self.place_rewards, self.frame_rewards = place_rewards, frame_rewards
        self.places, self.frames = agents
        self.rewards: list[float] = []
        self.baseline = 0.0

    def choose(self) -> Tensor:
        probabilities = self.places.probabilities()
        places = torch.multinomial(probabilities.cpu(), 1, generator=self.rng)[:, 0]
        self.places.take(places, probabilities)
        probabilities = self.frames.probabilities()
        frames = self._frames(probabilities[:, 1].cpu())
        self.frames.take(frames.long(), probabilities)
        return self.regions.mask(frames, places).to(self.device)

    def _frames(self, probabilities: Float[Tensor, "T"]) -> Tensor:
        for _ in range(TRIES):
            chosen = torch.bernoulli(probabilities, generator=self.rng).bool()
            if self.regions.least <= int(chosen.sum()) <= self.regions.most:
                return chosen
        return self.regions.some_frames(self.regions.most, self.rng)

    def learn(self, reward: float) -> None:
        self.rewards.append(reward)
        self.baseline = 0.9 * self.baseline + 0.1 * sum(self.rewards) / len(self.rewards)
        advantage, chosen = reward - self.baseline, self.frames.choices
        own = self.place_rewards.gather(1, self.places.choices[:, None])[:, 0]
        self.places.learn(own, advantage)
        share = frame_share(advantage, int(chosen.sum()), self.wanted, self.regions.count)
        self.frames.learn(chosen * self.frame_rewards, share)


class AstFocus(FocusedAttack):
    """Noise in one square of each of a few frames, chosen by two agents that learn during the attack. Clips only.

    patch, grid, frames: as in `FocusedAttack`. hidden: units of the LSTMs; lr: of their Adam; epochs: of PPO after each
    step. encoder: what the agents see of each frame: `pixels`, its 8x8 means, `timm:NAME[:pretrained=true]`, or a
    function (T, C, H, W) -> (T, D). place_reward: `edges`, `none`, or a function (clip, regions) -> (T, places).
    frame_reward: `representativeness`, `none`, or a function of features (T, D) -> (T,).
    The rest as in `ScoreAttack`. The first agent weighs its own rewards by 0.4, targeted 0.1, the second by 0.6, 0.8.
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        norm: Norm = "linf",
        queries: int | None = None,
        samples: int = 60,
        sigma: float = 1e-3,
        step_size: float | None = None,
        min_step_size: float | None = None,
        targeted: bool = False,
        patch: int | None = None,
        grid: int = 7,
        frames: Sequence[int] = (2, 10),
        hidden: int = 512,
        lr: float = 0.003,
        epochs: int = 10,
        encoder: str | Encoder = "pixels",
        place_reward: str | PlaceReward = "edges",
        frame_reward: str | FrameReward = "representativeness",
    ):
        super().__init__(
            epsilon, norm, queries, samples, sigma, step_size, min_step_size, targeted, patch, grid, frames
        )
        check_count("hidden", hidden)
        check_count("epochs", epochs)
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if not (callable(encoder) or encoder == "pixels" or str(encoder).startswith("timm:")):
            raise ValueError(f"encoder must be pixels, timm:NAME or a function, got '{encoder}'")
        if not callable(place_reward) and place_reward not in ("edges", "none"):
            raise ValueError(f"place_reward must be edges, none or a function, got '{place_reward}'")
        if not callable(frame_reward) and frame_reward not in ("representativeness", "none"):
            raise ValueError(f"frame_reward must be representativeness, none or a function, got '{frame_reward}'")
        self.hidden, self.lr, self.epochs = hidden, lr, epochs
        self.encoder, self.place_reward, self.frame_reward = encoder, place_reward, frame_reward

    def focus(self, x: Tensor, rng: torch.Generator) -> Focus:
        regions = self.regions(x.shape)
        features = encode(self.encoder, x)
        seen = features - features.mean(0)
        seen = seen / seen.square().mean().sqrt().clamp_min(1e-6)
        with seeded(int(torch.randint(2**62, (), generator=rng))):
            places = PlaceAgent(seen.shape[1], regions.places, self.hidden).to(seen)
            frames = FrameAgent(seen.shape[1], self.hidden).to(seen)
        phi_places, phi_frames = (0.1, 0.8) if self.targeted else (0.4, 0.6)
        agents = (
            Learner(places, seen, phi_places, 0.1, self.lr, self.epochs),
            Learner(frames, seen, phi_frames, 1.0, self.lr, self.epochs),
        )
        rewards = self._place_rewards(x, regions), self._frame_rewards(features)
        return Learned(regions, features, *rewards, 8 if self.targeted else 10, agents, rng)

    def _place_rewards(self, x: Tensor, regions: Regions) -> Tensor:
        if callable(self.place_reward):
            found = self.place_reward(x, regions).to(x)
        else:
            found = regions.edges(x) if self.place_reward == "edges" else x.new_zeros(regions.count, regions.places)
        return _of_shape(found, (regions.count, regions.places), "place_reward")

    def _frame_rewards(self, features: Tensor) -> Tensor:
        if callable(self.frame_reward):
            found = self.frame_reward(features).to(features)
        else:
            like = self.frame_reward == "representativeness"
            found = representativeness(features) if like else features.new_zeros(len(features))
        return _of_shape(found, (len(features),), "frame_reward")


def _of_shape(found: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if found.shape != shape:
        raise ValueError(f"{name} must give {shape}, got {tuple(found.shape)}")
    return found
