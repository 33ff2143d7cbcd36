"""Images on the host, from archives to the batches that a device gets.

    sources.py          data sets by name: `load` opens a split
        tfds_sources.py                         of TensorFlow Datasets
        tfds_names.py, tfds_builders.py         which one; how it is prepared
        tfds_features.py, tfds_splits.py        its image and label; which records train and test
        tfds_records.py                         what is read of a record
        tfrecords.py                            your own, in shards described by dataset.json
        folders.py, layout.py, walk.py          your own, one folder of images per class
    holdout.py          the training images that choose the best checkpoint
    statistics.py       what each data set is normalised with
    pipeline.py         batches for training and evaluation; with sources.load the public entry
        splits.py                               what all splits have in common
        in_memory.py                            decoded images
        encoded.py                              images that are decoded on the way, and what happens to corrupt ones
        shards.py, streams.py                   records of shards, and their order
    augment.py          what happens to a training image
        keys.py                                 where its random numbers come from
        decoding.py, pillow_images.py           from a file's bytes to the pixels that a viewer shows
        image_ops.py, crops.py                  crop, flip, jitter
        auto_augment.py, rand_augment.py, pillow_ops.py, pillow_geometry.py
    image_files.py      single images, as evaluation shows them
    archives.py, shard_plan.py, shard_writer.py, shard_checker.py       the work of scripts/make_tfrecords.py
    storage.py          buckets, local copies and checksums

TensorFlow is imported inside functions, so importing the package stays free of it.
"""
