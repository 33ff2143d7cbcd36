"""Random numbers of the input: pure functions of (seed, epoch, index), from TensorFlow's stateless generators.

Every call names the generator "philox", since "auto_select" would choose another one on another device.
"""

from typing import Any

import tensorflow as tf
from jaxtyping import Int64

# The part of a key that tells the kinds of draw apart: the order of the examples; the crops and mirrors of a whole
# epoch of images in memory; and all draws for a single example.
ORDER, EPOCH, EXAMPLE = 0, 1, 2


def epoch_key(seed: int, draw: int, epoch: Any) -> Int64[Any, "2"]:
    """The key of one kind of draw in an epoch."""
    return tf.random.experimental.stateless_fold_in(tf.constant([seed, draw], tf.int64), epoch, alg="philox")


def example_key(seed: int, epoch: Any, index: Any) -> Int64[Any, "2"]:
    """The key of all draws for an example in an epoch."""
    return tf.random.experimental.stateless_fold_in(epoch_key(seed, EXAMPLE, epoch), index, alg="philox")


def permutation(seed: int, epoch: Any, count: int) -> Int64[Any, "{count}"]:
    """The order of an epoch, which takes a millisecond for 50,000 examples.

    TensorFlow's `index_shuffle` would need no memory, but reads only 8 bits of each half of its key: epochs 0 and 256
    would have the same order.
    """
    examples = tf.range(count, dtype=tf.int64)
    return tf.random.experimental.stateless_shuffle(examples, epoch_key(seed, ORDER, epoch), alg="philox")
