"""The two agents of AstFocus, which choose frames and places, and how PPO trains them.

Both are LSTMs over the features of the frames, with a head of choices and a head of values. One pass gives the choices
of all frames, since none is read by the next; the same pass is used to draw and to learn, so that ratios begin at 1.
    ratio_t = p(choice_t) / p_old(choice_t)
    loss = phi mean_t[ -min(ratio A_t, clip(ratio) A_t) + (V_t - R_t)^2 / 2 - 0.01 entropy_t ]
         + (1 - phi) mean_t[ -min(ratio A, clip(ratio) A) ]
R_t: discounted rewards of the steps, standardised; A_t = R_t - c V_t; A: the advantage that both agents share.
Limits: phi = 0 and one epoch is REINFORCE with a baseline on A.
Source: Schulman et al., "Proximal Policy Optimization Algorithms", 2017; rewards and weights: Wei et al., TPAMI 2023.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CLIP, ENTROPY, DISCOUNT = 0.2, 0.01, 0.7
LIKELIER, SUREST, LEAST = 1.1, 0.99, 1e-4
"""A frame's probability is 1.1 times the sigmoid, at most 0.99, at least 0.0001, so that its logarithm is finite."""


class Policy(NamedTuple):
    """What an agent says of T frames: probabilities (T, K) of its K choices in each, and values (T,)."""

    probabilities: Float[Tensor, "T K"]
    values: Float[Tensor, "T"]

    def log_of(self, choices: Int[Tensor, "T"]) -> Float[Tensor, "T"]:
        """The logarithm of the probability of each choice."""
        return self.probabilities.gather(1, choices[:, None])[:, 0].log()

    @property
    def entropy(self) -> Float[Tensor, "T"]:
        """In nats, of each frame."""
        return torch.special.entr(self.probabilities).sum(1)


class Agent(nn.Module):
    """An LSTM of `hidden` units over frames with heads of `outputs` choices and of values."""

    def __init__(self, inputs: int, outputs: int, hidden: int):
        super().__init__()
        self.memory = nn.LSTM(inputs, hidden)
        self.head, self.value = nn.Linear(hidden, outputs), nn.Linear(hidden, 1)

    def read(self, features: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T K"], Float[Tensor, "T"]]:
        """Scores of choices, and values."""
        states, _ = self.memory(features)
        return self.head(states), self.value(states)[:, 0]

    def forward(self, features: Float[Tensor, "T D"]) -> Policy:
        raise NotImplementedError


class PlaceAgent(Agent):
    """Chooses one of `places` in each frame."""

    def __init__(self, features: int, places: int, hidden: int):
        super().__init__(features, places, hidden)

    def forward(self, features: Float[Tensor, "T D"]) -> Policy:
        scores, values = self.read(features)
        return Policy(scores.softmax(1), values)


class FrameAgent(Agent):
    """Chooses each frame or not, from its features and a mean of those of all frames, weighted by attention."""

    def __init__(self, features: int, hidden: int):
        super().__init__(2 * features, 1, hidden)
        self.attention = nn.Linear(features, 1)

    def forward(self, features: Float[Tensor, "T D"]) -> Policy:
        pooled = self.attention(features).softmax(0).T @ features
        scores, values = self.read(torch.cat([pooled.expand_as(features), features], 1))
        chosen = (LIKELIER * scores.sigmoid()).clamp(LEAST, SUREST)
        return Policy(torch.cat([1 - chosen, chosen], 1), values)


def clipped_gain(ratio: Float[Tensor, "T"], advantage: Float[Tensor, "T"] | float) -> Float[Tensor, "T"]:
    """min(ratio A, clip(ratio, 0.8, 1.2) A)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)


def standardised_returns(rewards: Float[Tensor, "T"], discount: float = DISCOUNT) -> Float[Tensor, "T"]:
    """sum_k discount^k reward_(t+k), without their mean and over their deviation; 0 where all are equal."""
    ages = torch.arange(len(rewards), device=rewards.device)
    ahead = ages[None] - ages[:, None]
    returns = torch.where(ahead >= 0, discount ** ahead.clamp_min(0).to(rewards), 0.0) @ rewards
    away = returns - returns.mean()
    return away / away.square().mean().sqrt().clamp_min(1e-8)


def ppo_loss(
    policy: Policy,
    choices: Int[Tensor, "T"],
    old: Float[Tensor, "T"],
    returns: Float[Tensor, "T"],
    shared: float,
    phi: float,
    value_share: float,
) -> Float[Tensor, ""]:
    """See the module. old: log-probabilities of the choices when they were drawn. value_share: c."""
    ratio = (policy.log_of(choices) - old).exp()
    own = returns - value_share * policy.values.detach()
    each = -clipped_gain(ratio, own) + 0.5 * (policy.values - returns).square() - ENTROPY * policy.entropy
    return phi * each.mean() - (1 - phi) * clipped_gain(ratio, shared).mean()


class Learner:
    """An agent with its optimizer and its last choices. phi, value_share: as in `ppo_loss`. epochs: of one update."""

    def __init__(self, agent: Agent, features: Tensor, phi: float, value_share: float, lr: float, epochs: int):
        self.agent, self.features = agent, features
        self.phi, self.value_share, self.epochs = phi, value_share, epochs
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=lr, fused=features.device.type in ("cpu", "cuda"))
        self.choices, self.old = torch.empty(0, dtype=torch.int64), torch.empty(0)

    def probabilities(self) -> Float[Tensor, "T K"]:
        """Of the choices as the agent is now."""
        with torch.no_grad():
            return self.agent(self.features).probabilities

    def take(self, choices: Int[Tensor, "T"], probabilities: Float[Tensor, "T K"]) -> None:
        """Remember choices drawn from probabilities until they are learnt from."""
        self.choices = choices.to(self.features.device)
        self.old = Policy(probabilities, probabilities[:, 0]).log_of(self.choices)

    def learn(self, rewards: Float[Tensor, "T"], shared: float) -> None:
        """One update by the last choices. rewards: of each frame. shared: the advantage of the whole step."""
        returns = standardised_returns(rewards)
        with torch.enable_grad():
            for _ in range(self.epochs):
                self.optimizer.zero_grad()
                policy = self.agent(self.features)
                ppo_loss(policy, self.choices, self.old, returns, shared, self.phi, self.value_share).backward()
                self.optimizer.step()
