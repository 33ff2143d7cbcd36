"""Learning rates and optimisers, put together from Optax's parts."""
