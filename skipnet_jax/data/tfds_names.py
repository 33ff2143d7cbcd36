"""Finds data sets of TensorFlow Datasets (TFDS) by name, or in the folder where they are prepared."""

import difflib
import re
from typing import Any

from etils import epath

from skipnet_jax.data import storage
from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

# Values of `data.name` that are not data sets of TFDS.
OTHERS = ("digits", "folder", "tfrecords", "webdataset")
# The `data.name` of a data set that is prepared in the folder `data.dir`.
FOLDER = "tfds"
FORMATS = ("folder", "tfrecords", "webdataset", FOLDER)  # these name a file format, not the images
# Files in such a folder.
_INFO, _FEATURES = "dataset_info.json", "features.json"
_NAME = re.compile(r"(?P<name>[A-Za-z]\w*)(/(?P<variant>[^/:]+))?(:(?P<version>[\d*][\d.*]*))?")
_NEAREST = 5  # names in a message


def find_builder(spec: DataSpec) -> Any:
    """Returns the TFDS builder, of a prepared version if there is one. Makes no folder and does not import TensorFlow.

    Raises:
      UserError: there is no data set, variant or version of this name.
      DataError: `data.dir` should be a prepared folder but is not.
    """
    import tensorflow_datasets as tfds

    if spec.name == FOLDER:
        return _open_folder(spec.dir, _find_prepared(spec.dir))
    match = _NAME.fullmatch(spec.name)
    if match is None:
        raise unknown_name(spec)
    name, variant, version = match["name"], match["variant"], match["version"]
    if spec.dir and (epath.Path(spec.dir) / _INFO).exists():
        found = _open_folder(spec.dir, epath.Path(spec.dir))
        if name != found.name:
            expected = f"{name}, or the folder that holds {name}/"
            raise UserError("data.dir", f"{spec.dir}, which holds {found.name}", expected, "Change `data.dir`.")
        return found
    try:
        newest = tfds.builder(spec.name, data_dir=spec.dir or None)
    except tfds.core.DatasetNotFoundError:
        raise unknown_name(spec) from None
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: TFDS wraps TensorFlow's
        got = f"{storage.reason(error)} while opening it"
        mend = f"Run: pip install {error.name}" if isinstance(error, ImportError) else "Choose another `data.name`."
        raise DataError(spec.name, got, "a data set that can be opened here", mend) from error
    except (ValueError, AssertionError) as error:
        raise _wrong_variant(spec, name, variant, version, error) from None
    if not newest.is_prepared() and not version:
        for other in newest.supported_versions:
            older = tfds.builder(f"{spec.name}:{other}", data_dir=spec.dir or None)
            if older.is_prepared():
                return older
    return newest


def unknown_name(spec: DataSpec) -> UserError:
    """The error for a name that no data set has; it lists the nearest names."""
    import tensorflow_datasets as tfds

    here = epath.Path(spec.dir) if spec.dir else None
    prepared = [path.name for path in here.iterdir() if path.is_dir()] if here is not None and here.exists() else []
    own = [*OTHERS, FOLDER]
    known = [*own, *tfds.list_builders(with_community_datasets=False), *filter(_NAME.fullmatch, prepared)]
    asked = re.split("[/:]", spec.name)[0]
    near = difflib.get_close_matches(asked, sorted(set(known)), n=_NEAREST, cutoff=0.5)
    expected = f"{', '.join(own)}, or a data set of TensorFlow Datasets"
    if near:
        expected = f"one of {', '.join(near)}, or another data set of TensorFlow Datasets, or {', '.join(own)}"
    return UserError("data.name", repr(spec.name), expected, "Change `data.name`.")


def name_of(builder: Any, spec: DataSpec) -> str:
    """The name of a data set in messages."""
    return builder.info.full_name if spec.name == FOLDER else spec.name


def _wrong_variant(spec: DataSpec, name: str, variant: str | None, version: str | None, error: Exception) -> UserError:
    """The error for a variant or version that a known data set lacks."""
    import tensorflow_datasets as tfds

    variants = tuple(tfds.builder_cls(name).builder_configs)
    if variant and variant not in variants:
        expected = " or ".join(f"{name}/{known}" for known in variants) or name
    elif version:
        known = tfds.builder(spec.name.partition(":")[0], data_dir=spec.dir or None)
        versions = " or ".join(map(str, [known.version, *known.supported_versions]))
        expected = f"version {versions}, or one that is prepared"
    else:
        got = f"{spec.name} ({storage.reason(error)})"
        return UserError("data.name", got, "a data set that opens by its name alone", "Change `data.name`.")
    return UserError("data.name", repr(spec.name), expected, "Change `data.name`.")


def _find_prepared(directory: str) -> epath.Path:
    """The folder itself, or the only one below it, that TFDS has prepared."""
    root = epath.Path(directory)
    if (root / _INFO).exists():
        return root
    levels = ("*", "*/*", "*/*/*")  # NAME/CONFIG/VERSION
    found = [path.parent for level in levels for path in root.glob(f"{level}/{_INFO}")]
    if len(found) == 1:
        return found[0]
    several = f"{len(found)} prepared data sets below it: {storage.some(sorted(map(str, found)))}"
    got = several if found else f"no {_INFO}"
    expected = "a folder that TensorFlow Datasets has prepared, such as cifar10/3.0.2"
    raise DataError(directory, got, expected, "Change `data.dir`.")


def _open_folder(directory: str, folder: epath.Path) -> Any:
    import tensorflow_datasets as tfds

    if not (folder / _FEATURES).exists():
        mend = "Prepare it again, or write the file with tfds.folder_dataset.write_metadata."
        raise DataError(directory, f"no {_FEATURES} in {folder}", "one, which describes the features", mend)
    return tfds.builder_from_directory(folder)
