"""A network as a TensorFlow SavedModel, which needs neither JAX nor this project to run."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, PyTree

from skipnet_jax.exports import INPUT, OUTPUT


def save(
    function: Callable[[PyTree, Float[Array, "b h w 3"]], Float[Array, "b k"]],
    variables: PyTree,
    image_size: int,
    platforms: tuple[str, ...],
    directory: str,
) -> None:
    """Writes a SavedModel with one signature, from "images" [b, h, w, 3] to "logits" [b, k] for any b.

    Args:
      function: from variables and normalised images to logits.
      variables: they become variables of the model, so they lie in its variable files and not in the program.
      image_size: side of the images, in pixels.
      platforms: where the program can run, by JAX's names.
      directory: an existing folder.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(
        function,
        polymorphic_shapes=[None, "(b, _, _, _)"],
        with_gradient=False,
        native_serialization_platforms=platforms,
    )
    module = tf.Module()
    module.parameters = tf.nest.map_structure(lambda array: tf.Variable(array, trainable=False), variables)
    module.run = tf.function(
        lambda images: {OUTPUT: converted(module.parameters, images)},
        input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name=INPUT)],
        autograph=False,
    )
    tf.saved_model.save(module, directory, signatures=module.run)


def load(directory: str) -> Callable[[Float32[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b k"]]:
    """Reads what `save` wrote, as a function from normalised images to logits."""
    import tensorflow as tf

    model = tf.saved_model.load(directory)
    signature = model.signatures["serving_default"]

    def run(images: Any) -> Any:
        return signature(**{INPUT: tf.constant(images)})[OUTPUT].numpy()

    return run
