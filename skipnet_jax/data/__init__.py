"""Images on the host, from archives to the batches that a device gets.

    sources.py          data sets by name: `load` opens a split
        tfds_sources.py                         of TensorFlow Datasets
        tfds_names.py, tfds_builders.py         which one; how it is prepared
        tfds_features.py, tfds_splits.py        its image and label; which records train and test
        tfds_records.py                         how its records are read
        tfrecords.py, record_format.py          your own, in shards described by dataset.json; the keys of a record
        folders.py, layout.py, walk.py          your own, one folder of images per class
        tars.py, webdataset.py                  your own, in WebDataset's tars
    holdout.py          the training images that choose the best checkpoint
    statistics.py       what each data set is normalised with
    pipeline.py         batches for training and evaluation; with sources.load the public entry
        splits.py                               what all splits have in common
        in_memory.py                            decoded images
        encoded.py                              images that are decoded on the way, and what happens to corrupt ones
        listed.py                               those that can be read in any order, in files and tars
        shards.py, streams.py                   records of shards, and their order
    augment.py          what happens to a training image
        keys.py                                 where its random numbers come from
        decoding.py, pillow_images.py           from a file's bytes to the pixels that a viewer shows
        image_ops.py, crops.py                  crop, flip, jitter
        auto_augment.py, rand_augment.py, pillow_ops.py, pillow_geometry.py
    image_files.py      single images, as evaluation shows them
    archives.py, shard_plan.py, shard_writer.py, shard_beam.py          scripts/make_tfrecords.py makes shards,
        shard_checker.py, shard_records.py, tfds_metadata.py            checks and describes them
    storage.py          buckets, local copies and checksums

TensorFlow is imported inside functions, so importing the package stays free of it.
"""
