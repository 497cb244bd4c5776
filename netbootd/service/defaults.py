"""What the configuration leaves open and the state decides."""

from __future__ import annotations

from netbootd.config.schema import Config
from netbootd.store.generations import Generations


def default_image(config: Config, generations: Generations) -> str:
    """The image of a node that names none: the configuration's, else the only prepared one, else noble."""
    if config.defaults.image:
        return config.defaults.image
    prepared = generations.names()
    return prepared[0] if len(prepared) == 1 else "noble"
