"""Images on the host: from archives to the batches that a device gets.

    sources.py          data sets by name: what `load` opens, in one of the three forms of kinds.py
        tfds_sources.py, tfds_builders.py       of TensorFlow Datasets
        tfrecords.py                            your own, in shards (dataset.json)
        folders.py                              your own, a folder of images per class
    statistics.py       what each is normalised with
    pipeline.py         batches for training and evaluation; the public entry, beside sources.load
        in_memory.py                            of images that are decoded already
        records.py, streams.py, encoded.py      of image files: which, in which order, decoded how
        checked.py                              what cannot be read is named or counted
    augment.py          what happens to a training image
        image_ops.py, crops.py                  decode, crop, flip, jitter
        auto_augment.py, rand_augment.py, pillow_ops.py, pillow_geometry.py
    image_files.py      single images, as evaluation shows them
    shard_plan.py, archives.py, shard_writer.py, shard_checker.py       what scripts/make_tfrecords.py does

TensorFlow is imported inside functions, so that importing the package stays free of it.
"""
