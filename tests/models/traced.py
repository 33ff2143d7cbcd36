"""Facts of networks that several suites need; each network is traced once per process."""

import functools

from skipnet_jax.models import abstract_variables, complexity, create_model, model_info

count = functools.cache(complexity.count)


@functools.cache
def shapes(name):
    """Shapes of the network's variables at its own size."""
    return abstract_variables(create_model(name), model_info(name).image_size)
