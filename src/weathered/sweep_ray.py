"""The Ray launcher: one task per run, on a local instance or on the cluster that Ray is told to join."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weathered.core.errors import WeatheredError
from weathered.recipe import Recipe
from weathered.sweep import train_quietly


def launch_ray(recipes: Sequence[Recipe], out: Path, threads: int = 1) -> dict[str, str | None]:
    """Train recipes as Ray tasks of `threads` cores each; the error of each run by its hash, or None.

    Joins the cluster named by RAY_ADDRESS, or starts a local instance. `out` must be the same folder on all nodes.
    Raises WeatheredError if Ray is not installed.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise WeatheredError("the ray launcher needs Ray: pip install 'weathered[ray]'.") from error
    mine = not ray.is_initialized()
    if mine:
        ray.init(include_dashboard=False, log_to_driver=False)

    def work(tree: dict[str, Any], folder: str) -> str | None:
        import torch

        torch.set_num_threads(threads)
        return train_quietly(tree, folder)

    task = ray.remote(num_cpus=threads, max_retries=2)(work)
    try:
        pending = {recipe.hash: task.remote(recipe.to_tree(), str(out.resolve())) for recipe in recipes}
        errors: dict[str, str | None] = {}
        for name, reference in pending.items():
            try:
                errors[name] = ray.get(reference)
            except RayError as error:
                errors[name] = f"Ray lost the run: {str(error).splitlines()[0]}"
        return errors
    finally:
        if mine:
            ray.shutdown()
