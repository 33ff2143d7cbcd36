"""Images on the host, from archives to the batches that a device gets.

    sources.py          data sets by name: `load` opens a split
        tfds_sources.py                         of TensorFlow Datasets
        tfds_names.py, tfds_builders.py         finding one by name; preparing it
        tfds_features.py, tfds_splits.py        its image and label; its training and test records
        tfds_records.py                         reading its records
        tfrecords.py, record_format.py          your own, in shards described by dataset.json; the keys of a record
        folders.py, layout.py, walk.py          your own, one folder of images per class
        tars.py, webdataset.py                  your own, in WebDataset's tars
    holdout.py          training images held out to choose the best checkpoint
    statistics.py       the mean and standard deviation that normalise each data set
    pipeline.py         batches for training and evaluation; with sources.load the public entry
        splits.py                               the interface of all splits
        in_memory.py                            decoded images
        encoded.py                              images that are decoded on the fly, and what happens to corrupt ones
        listed.py                               encoded images in files and tars, read in any order
        shards.py, streams.py                   encoded images in shards, and their order
    augment.py          what happens to a training image
        keys.py                                 where its random numbers come from
        decoding.py, pillow_images.py           from a file's bytes to the pixels that a viewer shows
        image_ops.py, crops.py                  crop, flip, jitter
        auto_augment.py, rand_augment.py, pillow_ops.py, pillow_geometry.py
    image_files.py      single images, prepared as in evaluation
    archives.py, shard_plan.py, shard_writer.py, shard_beam.py          scripts/make_tfrecords.py makes shards,
        shard_checker.py, shard_records.py, tfds_metadata.py            checks and describes them
    storage.py          buckets, local copies and checksums

Functions import TensorFlow and the modules built on it, so importing the package does not load TensorFlow.
"""
