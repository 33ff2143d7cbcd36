"""Prepares the data sets of TensorFlow Datasets (TFDS), or tells the user what to do.

TFDS prepares a data set from the official archives, which it downloads or finds in its manual directory. ImageNet's
own two archives need an account, so the user has to put them into that directory.
"""

import contextlib
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from skipnet_jax.data import storage
from skipnet_jax.errors import DataError, UserError

# Archives that no program can download, since they need an account at image-net.org.
_BY_HAND = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "imagenet2012_real": ("ILSVRC2012_img_val.tar",),
}

# A server that has not answered within this many seconds counts as out of reach.
_REACH_SECONDS = 2.5


def require_available(builder: Any) -> None:
    """Raises a DataError within 5 seconds if the data set is not prepared and cannot be prepared."""
    if builder.is_prepared():
        return
    _require_version(builder)
    if builder.name in _BY_HAND:
        missing = [file for file in _BY_HAND[builder.name] if not (_manual(builder) / file).exists()]
        if missing:
            raise _needs_account(builder, missing)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = _manual(builder)
        if not manual.exists() or not any(manual.iterdir()):
            raise _needs_hands(builder, "no prepared data set")
        return
    for url, archive in _archives(builder).items():
        if archive.exists():
            continue
        trouble = _why_unreachable(url)
        if trouble is not None:
            raise _needs_archive(builder, f"no prepared data set, and no download ({trouble})")
        return  # one answer is enough: some data sets have hundreds of files


def _require_version(builder: Any) -> None:
    """Refuses a version that TFDS can read but no longer prepare."""
    possible = {builder.canonical_version, max(builder.versions)}
    if builder.version in possible and not builder.version.tfds_version_to_prepare:
        return
    expected = f"version {builder.canonical_version}, or a prepared one, since TFDS cannot prepare this one any more"
    raise UserError("data.name", builder.info.full_name, expected, "Change `data.name` or `data.dir`.")


def require_records(builder: Any) -> None:
    """Refuses a prepared data set whose files are not TFRecords."""
    found = builder.info.file_format.value
    if found != "tfrecord":
        mend = "Prepare it again with file_format='tfrecord'."
        raise DataError(f"{builder.data_dir}", f"files of format {found}", "tfrecord", mend)


def require_files(builder: Any, names: Sequence[str]) -> None:
    """Refuses a prepared data set that has lost some of these files."""
    wanted = sorted(set(names))
    present = {path.name for path in builder.data_path.iterdir()}
    missing = [name for name in wanted if name not in present]
    if missing:
        got = f"{len(wanted) - len(missing)} of {len(wanted)} shards"
        expected = f"all; missing are {storage.some(missing)}"
        raise DataError(f"{builder.data_dir}", got, expected, how_to_mend(builder))


@contextlib.contextmanager
def reported_as_damage(builder: Any) -> Iterator[None]:
    """Turns TensorFlow's errors while reading into DataErrors."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        got = storage.reason(error)
        raise DataError(builder.info.full_name, got, "data that can be read", how_to_mend(builder)) from None


def _manual(builder: Any) -> Any:
    """The folder where TFDS looks for archives before it downloads them."""
    return builder.data_path.parents[builder.info.full_name.count("/")] / "downloads" / "manual"


def _archives(builder: Any) -> dict[str, Any]:
    """Addresses of archives that can be downloaded -> paths where TFDS looks for them before it downloads."""
    infos = {url: info.filename or url.rpartition("/")[2] for url, info in builder.url_infos.items()}
    kept = {url: file for url, file in infos.items() if file not in _BY_HAND["imagenet2012"]}
    if builder.builder_config is not None:  # an archive's name holds its variant, spelt differently
        own = {url: file for url, file in kept.items() if _letters(builder.builder_config.name) in _letters(file)}
        kept = own or kept
    return {url: _manual(builder) / file for url, file in kept.items()}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name))


def prepare(builder: Any) -> None:
    """Prepares the data set from its archive, unless another process does; the builder may be out of date then.

    TFDS shows the progress and removes anything unfinished.
    """
    from tensorflow_datasets.core.download import download_manager, downloader, util

    # Otherwise TFDS would retry for minutes. There is no public setting.
    downloader.MAX_RETRIES = 2
    try:
        builder.download_and_prepare()
    except ImportError as error:  # preparing some data sets needs more packages
        got, mend = f"{error} while preparing it", f"Run: pip install {error.name or 'the package'}"
        raise DataError(builder.info.full_name, got, "the packages that it needs", mend) from error
    except (OSError, download_manager.NonMatchingChecksumError, util.DownloadError) as error:  # requests' are OSErrors
        if builder.is_prepared():  # another host, which sees the same disk, was quicker
            return
        raise _needs_archive(builder, f"{type(error).__name__} while preparing it ({error})") from error
    except AssertionError as error:  # files that the user should have provided are missing
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise _needs_hands(builder, f"{error}") from error


def _why_unreachable(url: str) -> str | None:
    """Says why a file cannot be fetched, None if it can; asks the server through TFDS's own HTTP client and proxies."""
    import requests

    answer = [f"no answer within {_REACH_SECONDS:g} s"]

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                answer[0] = "" if response.ok else f"the server answers {response.status_code} {response.reason}"
        except requests.RequestException as error:
            answer[0] = f"{type(error).__name__}: {error}"

    # In a thread, since the time-out does not cover the look-up of the server's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return answer[0] or None


def how_to_mend(builder: Any) -> str:
    """What to do about a prepared data set that is damaged, as a sentence."""
    return f"Delete {builder.data_dir} and prepare or copy {builder.name} again."


def _needs_archive(builder: Any, trouble: str) -> DataError:
    """The error that names the archives to download, the place where TFDS looks for them, and the commands."""
    lines = []
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and builder.name not in _BY_HAND:
        return _needs_hands(builder, trouble)
    archives = list(_archives(builder).items())
    for url, archive in archives[: storage.NAMED_AT_MOST]:
        info = builder.url_infos[url]
        lines += [
            f"  archive:     {archive.name}, {int(info.size):,} bytes, SHA-256 {info.checksum}",
            f"  from:        {url}",
            f"  fetch it:    mkdir -p {shlex.quote(str(archive.parent))} && "
            f"curl -fL -o {shlex.quote(str(archive))} {shlex.quote(url)}",
        ]
    more = len(archives) - storage.NAMED_AT_MOST
    lines += [f"  and {more} more"] if more > 0 else []
    expected = f"{builder.data_dir}, or the official archive to prepare it from"
    return _not_prepared(builder, trouble, expected, lines)


def _needs_account(builder: Any, missing: list[str]) -> DataError:
    """The error for archives that only a logged-in user can download."""
    manual = _manual(builder)
    infos = {url.rpartition("/")[2]: info for url, info in builder.url_infos.items()}
    lines = [
        f"  archive:     {manual / file}, {int(infos[file].size):,} bytes, SHA-256 {infos[file].checksum}"
        for file in missing
    ]
    lines += [
        "  from:        https://image-net.org/download-images, after logging in",
        f"  put there:   mkdir -p {shlex.quote(str(manual))} && mv {' '.join(missing)} {shlex.quote(str(manual))}",
    ]
    expected = f"{builder.data_dir}, or the archives to prepare it from, which need an account at image-net.org"
    return _not_prepared(builder, "no prepared data set", expected, lines)


def _needs_hands(builder: Any, trouble: str) -> DataError:
    """The error for a data set that comes with instructions for the user."""
    told = (line.strip() for line in builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip().splitlines())
    lines = [f"  into:        {_manual(builder)}", *(f"  {line}" for line in told if line)]
    return _not_prepared(builder, trouble, f"{builder.data_dir}, or its files to prepare it from", lines)


def _not_prepared(builder: Any, got: str, expected: str, lines: list[str]) -> DataError:
    lines = [
        "Put the archive in its place and run again:",
        *lines,
        f"  run again:   {shlex.join(sys.orig_argv)}",
        f"If it is prepared elsewhere, give `data.dir`, the folder that holds {builder.name}/. "
        f"configs/digits.py needs no download.",
    ]
    return DataError(builder.info.full_name.rpartition("/")[0], got, expected, "\n".join(lines))
