"""Prepares the data sets of TensorFlow Datasets (TFDS), or tells the user what to do.

TFDS prepares a data set from the official archives, which it downloads or finds in its manual directory. ImageNet's
own two archives need an account, so the user has to put them into that directory.
"""

import shlex
import sys
import threading
from typing import Any

from skipnet_jax.errors import DataError, UserError
from skipnet_jax.specs import DataSpec

# Archives that no program can download, since they need an account at image-net.org.
_BY_HAND = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "imagenet2012_real": ("ILSVRC2012_img_val.tar",),
}

# A server that has not answered within this many seconds counts as out of reach.
_REACH_SECONDS = 2.5


def require_available(spec: DataSpec) -> None:
    """Raises a DataError within 5 seconds if the data set is not prepared and cannot be."""
    builder = find_builder(spec)
    if builder.is_prepared():
        return
    missing = [file for file in _BY_HAND.get(builder.name, ()) if not (_manual(builder) / file).exists()]
    if missing:
        raise _needs_account(builder, missing)
    for url, archive in _archives(builder).items():
        trouble = None if archive.exists() else _why_unreachable(url)
        if trouble is not None:
            raise _needs_archive(builder, f"no prepared data set, and no download ({trouble})")


def find_builder(spec: DataSpec) -> Any:
    """Returns the TFDS builder, of a prepared version if there is one. Makes no folder and imports no TensorFlow."""
    import tensorflow_datasets as tfds

    name, _, variant = spec.name.partition("/")
    variants = tuple(tfds.builder_cls(name).builder_configs)
    if variant and variant not in variants:
        allowed = [f"{name}/{known}" for known in variants] or [name]
        raise UserError("data.name", repr(spec.name), " or ".join(allowed), "Change `data.name`.")
    newest = tfds.builder(spec.name, data_dir=spec.dir or None)
    if not newest.is_prepared():
        for version in newest.supported_versions:
            older = tfds.builder(f"{spec.name}:{version}", data_dir=spec.dir or None)
            if older.is_prepared():
                return older
    return newest


def _manual(builder: Any) -> Any:
    """The folder where TFDS looks for archives before it downloads them."""
    return builder.data_path.parents[builder.info.full_name.count("/")] / "downloads" / "manual"


def _archives(builder: Any) -> dict[str, Any]:
    """Addresses of the archives that can be downloaded -> paths where TFDS finds them if the user puts them there."""
    infos = {url: info.filename or url.rpartition("/")[2] for url, info in builder.url_infos.items()}
    kept = {url: file for url, file in infos.items() if file not in _BY_HAND["imagenet2012"]}
    if builder.builder_config is not None:  # a variant's archive has the variant in its name, spelt differently
        kept = {url: file for url, file in kept.items() if _letters(builder.builder_config.name) in _letters(file)}
    return {url: _manual(builder) / file for url, file in kept.items()}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name))


def prepare(builder: Any) -> None:
    """Prepares the data set from its archive; TFDS shows the progress and removes anything unfinished."""
    from tensorflow_datasets.core.download import download_manager, downloader, util

    # Otherwise TFDS would retry for minutes. There is no public setting.
    downloader.MAX_RETRIES = 2
    try:
        builder.download_and_prepare()
    except (OSError, download_manager.NonMatchingChecksumError, util.DownloadError) as error:  # requests' are OSErrors
        raise _needs_archive(builder, f"{type(error).__name__} while preparing it ({error})") from error


def _why_unreachable(url: str) -> str | None:
    """Asks the server for the file, with TFDS's own HTTP client and its proxies; None if it is there."""
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
    """Names the archives that can be downloaded, where TFDS looks for them, and the commands."""
    lines = []
    for url, archive in _archives(builder).items():
        info = builder.url_infos[url]
        lines += [
            f"  archive:     {archive.name}, {int(info.size):,} bytes, SHA-256 {info.checksum}",
            f"  from:        {url}",
            f"  fetch it:    mkdir -p {shlex.quote(str(archive.parent))} && "
            f"curl -fL -o {shlex.quote(str(archive))} {shlex.quote(url)}",
        ]
    expected = f"{builder.data_dir}, or the official archive to prepare it from"
    return _not_prepared(builder, trouble, expected, lines)


def _needs_account(builder: Any, missing: list[str]) -> DataError:
    """The same for archives that only a logged-in user can download."""
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
    expected = f"{builder.data_dir}, or the archives to prepare it from, which only an account at image-net.org gets"
    return _not_prepared(builder, "no prepared data set", expected, lines)


def _not_prepared(builder: Any, got: str, expected: str, lines: list[str]) -> DataError:
    lines = [
        "Put the archive in its place and run again:",
        *lines,
        f"  run again:   {shlex.join(sys.orig_argv)}",
        f"If it is prepared elsewhere, give `data.dir`, the folder that holds {builder.name}/. "
        f"configs/digits.py needs no download.",
    ]
    return DataError(builder.info.full_name.rpartition("/")[0], got, expected, "\n".join(lines))
