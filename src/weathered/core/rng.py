"""Named random generators: every draw comes from (seed, name, rank, step), so a part never shifts another's draws."""

import hashlib

import torch


def derive_seed(seed: int, *key: str | int) -> int:
    """Hash a run's seed and a name into an independent 63-bit seed.

    seed: the run's seed, any integer. key: names and counters, for example ("cutmix", rank, step).
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one name, seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *key))


def draw_beta(alpha: float, rng: torch.Generator, size: tuple[int, ...] = ()) -> torch.Tensor:
    """Draws from Beta(alpha, alpha), float64 of shape `size`, on the CPU.

    The gamma draws are taken in float64: in float32 both underflow to 0 for alpha below about 0.01.
    """
    shape = torch.full((2, *size), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=rng)  # pyright: ignore[reportPrivateImportUsage]
    total = gamma[0] + gamma[1]
    share = gamma[0] / total
    coin = torch.randint(2, size, generator=rng, dtype=torch.float64)
    # both gammas underflow for a very small alpha, to the smallest number and not to 0; Beta has its mass on 0 and 1
    return share if alpha >= 0.1 else torch.where(total > 2 * torch.finfo(torch.float64).tiny, share, coin)
