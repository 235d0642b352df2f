"""AstFocus: squares on a grid, agents that learn by PPO, rewards of their own."""

import pytest
import torch
from torch.testing import assert_close

from weathered.attacks.astfocus import AstFocus, frame_share, representativeness
from weathered.attacks.encoders import encode
from weathered.attacks.focus import Regions
from weathered.attacks.focus_agents import (
    FrameAgent,
    Learner,
    PlaceAgent,
    Policy,
    clipped_gain,
    ppo_loss,
    standardised_returns,
)
from weathered.attacks.random_focus import RandomFocus
from weathered.nn.network import seeded


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_grid_is_that_of_the_paper():
    regions = Regions((16, 3, 112, 112))
    assert (regions.patch, regions.places, regions.least, regions.most) == (65, 49, 2, 10)
    expected = [int((112 - 65) * step / 6) for step in range(7)]
    assert regions.corners[:, 1][:7].tolist() == expected
    assert regions.corners[::7, 0].tolist() == expected
    assert regions.squares.sum((1, 2)).tolist() == [65 * 65] * 49
    frames = torch.zeros(16, dtype=torch.bool)
    frames[:10] = True
    assert int(regions.mask(frames, torch.arange(16)).sum()) == 10 * 65 * 65 * 3


def test_a_mask_holds_the_square_at_its_place_in_chosen_frames_alone():
    regions = Regions((4, 2, 10, 8), patch=4, grid=3, frames=(1, 4))
    assert regions.corners.tolist() == [[a, b] for a in (0, 3, 6) for b in (0, 2, 4)]
    mask = regions.mask(torch.tensor([False, True, False, True]), torch.tensor([0, 5, 0, 8]))
    expected = torch.zeros(4, 2, 10, 8, dtype=torch.bool)
    expected[1, :, 3:7, 4:8] = True
    expected[3, :, 6:10, 4:8] = True
    assert torch.equal(mask, expected)


def test_edges_are_found_where_they_are():
    clip = torch.full((3, 1, 10, 10), 0.5)
    clip[1, 0, 7:, 7:] = 1.0
    regions = Regions(clip.shape, patch=4, grid=3, frames=(2, 3))
    found = regions.edges(clip)
    assert int(found.argmax()) == 1 * 9 + 8
    assert float(found.max()) == 1
    assert not found[0].any()
    assert not regions.edges(torch.full((3, 1, 10, 10), 0.5)).any()


def test_frames_that_stand_for_others_are_rewarded():
    features = torch.tensor([[0.0], [0.0], [16.0]])
    own, far = 1.0, torch.tensor(-1.0).exp()
    assert_close(representativeness(features), torch.tensor([2 * own + far, 2 * own + far, own + 2 * far]) / 3)


def test_the_share_of_the_frames_agent_falls_away_from_the_wanted_number():
    assert frame_share(1.0, 10, 10, 16) == pytest.approx(0.8)
    assert frame_share(1.0, 2, 10, 16) == pytest.approx(0.8 - 0.2 * 0.25)


def test_returns_are_discounted_and_standardised():
    rewards = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    returns = torch.tensor([1 + 0.5 * 0 + 0.25 * 2, 1.0, 2.0], dtype=torch.float64)
    expected = (returns - returns.mean()) / returns.std(correction=0)
    assert_close(standardised_returns(rewards, 0.5), expected)
    assert not standardised_returns(torch.zeros(4)).any()


def test_gains_are_clipped_on_the_side_that_would_be_overdone():
    ratio = torch.tensor([0.5, 0.9, 1.5])
    assert_close(clipped_gain(ratio, 2.0), torch.tensor([1.0, 1.8, 2.4]))
    assert_close(clipped_gain(ratio, -2.0), torch.tensor([-1.6, -1.8, -3.0]))


def drawn(agent, features):
    """An agent's choices and their logarithms."""
    with torch.no_grad():
        policy = agent(features)
    choices = torch.multinomial(policy.probabilities, 1, generator=rng(2))[:, 0]
    return choices, policy.log_of(choices)


@pytest.mark.parametrize("kind", ["places", "frames"])
def test_without_own_rewards_one_epoch_is_reinforce_with_a_baseline(kind):
    features = torch.randn(6, 5, generator=rng(), dtype=torch.float64)
    with seeded(1):
        agent = (PlaceAgent(5, 4, 7) if kind == "places" else FrameAgent(5, 7)).double()
    choices, old = drawn(agent, features)
    loss = ppo_loss(agent(features), choices, old, torch.randn(6).double(), shared=1.7, phi=0.0, value_share=0.1)
    parameters = [p for name, p in agent.named_parameters() if "value" not in name]
    found = torch.autograd.grad(loss, parameters)
    reinforce = -1.7 * agent(features).log_of(choices).mean()
    for one, other in zip(found, torch.autograd.grad(reinforce, parameters), strict=True):
        assert_close(one, other, atol=1e-6, rtol=0)
    assert max(float(g.abs().max()) for g in found) > 1e-3


def test_the_loss_has_its_closed_form():
    policy = Policy(torch.tensor([[0.2, 0.8], [0.5, 0.5]]).double(), torch.tensor([0.3, -0.1]).double())
    choices, old = torch.tensor([1, 0]), torch.tensor([0.4, 0.5]).double().log()
    returns = torch.tensor([1.0, -1.0]).double()
    entropy = -(policy.probabilities * policy.probabilities.log()).sum(1)
    own = returns - 0.1 * policy.values
    # ratios are 2, which is cut to 1.2 where the advantage is positive, and 1
    each = -torch.stack([1.2 * own[0], own[1]]) + 0.5 * (policy.values - returns) ** 2 - 0.01 * entropy
    expected = 0.4 * each.mean() - 0.6 * torch.tensor([2 * -0.5, -0.5]).double().mean()
    assert_close(ppo_loss(policy, choices, old, returns, shared=-0.5, phi=0.4, value_share=0.1), expected)


def test_drawing_and_learning_read_an_agent_alike():
    """So that ratios begin at 1; the state is carried over frames, so that a frame sees those before it alone."""
    features = torch.randn(6, 5, generator=rng())
    with seeded(1):
        agent = FrameAgent(5, 7)
    learner = Learner(agent, features, 0.6, 1.0, 0.003, 1)
    chosen = torch.tensor([1, 0, 1, 1, 0, 0])
    learner.take(chosen, learner.probabilities())
    assert_close(agent(features).log_of(chosen), learner.old)
    places = PlaceAgent(5, 4, 7)
    changed = features.clone()
    changed[3] += 1
    before, after = places(features).probabilities, places(changed).probabilities
    assert torch.equal(before[:3], after[:3])
    assert (before[4] != after[4]).any()


def test_a_frame_is_chosen_a_little_more_often_than_its_sigmoid_and_never_surely():
    agent = FrameAgent(5, 7)
    for bias, expected in ((0.0, 0.55), (50.0, 0.99), (-50.0, 1e-4)):
        with torch.no_grad():
            agent.head.weight.zero_()
            agent.head.bias.fill_(bias)
        found = agent(torch.randn(6, 5)).probabilities
        assert_close(found[:, 1], torch.full((6,), expected))
        assert_close(found.sum(1), torch.ones(6))


def test_what_is_rewarded_becomes_likely():
    attack = AstFocus(place_reward="none", patch=4, grid=3, frames=(1, 3), hidden=16)
    x = torch.rand(6, 1, 12, 12, generator=rng())
    focus = attack.focus(x, rng(1))
    start = focus.places.probabilities()[:, 4].mean()
    for _ in range(15):
        focus.choose()
        focus.learn(4 * float(focus.places.choices.eq(4).double().mean()))
    assert focus.places.probabilities()[:, 4].mean() > start + 0.2


def test_frames_are_between_the_least_and_the_most_even_when_the_agent_wants_all_or_none():
    attack = AstFocus(patch=4, grid=3, frames=(2, 3), hidden=4)
    focus = attack.focus(torch.rand(6, 1, 12, 12, generator=rng()), rng(1))
    for bias in (50.0, -50.0):
        with torch.no_grad():
            focus.frames.agent.head.weight.zero_()
            focus.frames.agent.head.bias.fill_(bias)
        counts = [int(focus.choose().any(3).any(2).any(1).sum()) for _ in range(10)]
        assert counts == [3] * 10
        assert int(focus.frames.choices.sum()) == 3
    drawn = RandomFocus(patch=4, grid=3, frames=(2, 3)).focus(torch.rand(6, 1, 12, 12), rng(1))
    assert {int(drawn.choose().any(3).any(2).any(1).sum()) for _ in range(30)} == {2, 3}


def test_the_advantage_is_what_was_gained_above_the_running_mean():
    attack = AstFocus(patch=4, grid=3, frames=(2, 3), hidden=4)
    focus = attack.focus(torch.rand(6, 1, 12, 12, generator=rng()), rng(1))
    told = []
    focus.places.learn = lambda rewards, shared: told.append(shared)
    for reward in (1.0, 3.0):
        focus.choose()
        focus.learn(reward)
    first = 0.1 * 1.0
    assert told == pytest.approx([1 - first, 3 - (0.9 * first + 0.1 * 2.0)])


def test_rewards_and_encoders_are_any_function():
    x = torch.rand(5, 1, 12, 12, generator=rng())
    shapes = []

    def features(clip):
        shapes.append(tuple(clip.shape))
        return clip.flatten(1)[:, :3]

    attack = AstFocus(
        patch=4, grid=2, frames=(2, 3), hidden=4, encoder=features,
        place_reward=lambda clip, regions: torch.arange(20.0).view(5, regions.places),
        frame_reward=lambda f: f[:, 0],
    )  # fmt: skip
    focus = attack.focus(x, rng())
    assert shapes == [(5, 1, 12, 12)]
    assert torch.equal(focus.place_rewards, torch.arange(20.0).view(5, 4))
    assert torch.equal(focus.frame_rewards, x.flatten(1)[:, 0])
    silent = AstFocus(patch=4, grid=2, frames=(2, 3), hidden=4, place_reward="none", frame_reward="none").focus(
        x, rng()
    )
    assert not silent.place_rewards.any()
    assert not silent.frame_rewards.any()
    assert encode("pixels", torch.full((5, 3, 16, 16), 0.25)).tolist() == [[0.25] * 192] * 5
    assert encode("timm:test_resnet", torch.rand(3, 1, 32, 32)).shape[0] == 3
    wrong = AstFocus(patch=4, grid=2, hidden=4, place_reward=lambda clip, regions: torch.zeros(3))
    with pytest.raises(ValueError, match=r"place_reward must give \(5, 4\), got \(3,\)"):
        wrong.focus(x, rng())
    for encoder in ("timm:no_such_model", "timm:test_resnet:size=3"):
        with pytest.raises(ValueError, match="is no model of timm"):
            encode(encoder, x)
    with pytest.raises(ValueError, match="a finite row for each of 5 frames"):
        encode(lambda clip: clip, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"patch": 0}, "patch must be at least 1"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"frames": (3, 2)}, "frames must be the least and the most"),
        ({"frames": (0, 2)}, "frames must be the least and the most"),
        ({"encoder": "resnet"}, "encoder must be pixels, timm:NAME or a function, got 'resnet'"),
        ({"place_reward": "boxes"}, "place_reward must be edges, none"),
        ({"frame_reward": "boxes"}, "frame_reward must be representativeness, none"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AstFocus(**arguments)
