"""TensorFlow Datasets (TFDS) gets its data sets prepared, or the user is told what to do.

TFDS prepares a set from the official archives, which it downloads or takes from its manual directory. ImageNet itself
is not to be had without an account: its two archives have to be put there by hand.
"""

import shlex
import sys
import threading
from typing import Any

from skipnet_jax.errors import DataError
from skipnet_jax.specs import DataSpec

# Archives that no program can download: they are behind an account at image-net.org.
_BY_HAND = {
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "imagenet2012_real": ("ILSVRC2012_img_val.tar",),
}

# A server that has not answered by then counts as out of reach, seconds.
_REACH_SECONDS = 2.5


def require_available(spec: DataSpec) -> None:
    """Raises a DataError within 5 seconds if the data set is neither prepared nor to be had."""
    builder = find_builder(spec)
    if builder.is_prepared():
        return
    manual = _root(builder) / "downloads" / "manual"
    by_hand = _BY_HAND.get(builder.name, ())
    missing = [file for file in by_hand if not (manual / file).exists()]
    if missing:
        raise DataError(_how_to_place(builder, missing))
    for url, archive in _archives(builder).items():
        trouble = None if archive.exists() else _why_unreachable(url)
        if trouble is not None:
            raise DataError(_how_to_get(builder, f"is not prepared and cannot be downloaded: {trouble}"))


def find_builder(spec: DataSpec) -> Any:
    """The TFDS builder, of a prepared version if there is one; makes no directory, does not import TensorFlow yet."""
    import tensorflow_datasets as tfds

    name, _, variant = spec.name.partition("/")
    variants = tuple(tfds.builder_cls(name).builder_configs)
    if variant and variant not in variants:
        allowed = [f"{name}/{known}" for known in variants] or [name]
        raise ValueError(f"data.name: got {spec.name!r}, expected {' or '.join(allowed)}. Change --config.data.name.")
    newest = tfds.builder(spec.name, data_dir=spec.dir or None)
    if not newest.is_prepared():
        for version in newest.supported_versions:
            older = tfds.builder(f"{spec.name}:{version}", data_dir=spec.dir or None)
            if older.is_prepared():
                return older
    return newest


def _root(builder: Any) -> Any:
    """The directory that holds the data sets."""
    return builder.data_path.parents[builder.info.full_name.count("/")]


def _archives(builder: Any) -> dict[str, Any]:
    """Addresses of the archives that can be downloaded, and the paths where TFDS takes them if put there by hand."""
    manual = _root(builder) / "downloads" / "manual"
    infos = {url: info.filename or url.rpartition("/")[2] for url, info in builder.url_infos.items()}
    kept = {url: file for url, file in infos.items() if file not in _BY_HAND["imagenet2012"]}
    if builder.builder_config is not None:  # a variant's archive has the variant in its name, spelt a bit differently
        kept = {url: file for url, file in kept.items() if _letters(builder.builder_config.name) in _letters(file)}
    return {url: manual / file for url, file in kept.items()}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name))


def prepare(builder: Any) -> None:
    """Makes the data set from its archive; TFDS shows the progress and removes what it could not finish."""
    from tensorflow_datasets.core.download import download_manager, downloader, util

    # TFDS would retry for minutes. There is no public setting.
    downloader.MAX_RETRIES = 2
    try:
        builder.download_and_prepare()
    except (OSError, download_manager.NonMatchingChecksumError, util.DownloadError) as error:  # requests' are OSErrors
        raise DataError(_how_to_get(builder, f"could not be prepared: {type(error).__name__}: {error}")) from error


def _why_unreachable(url: str) -> str | None:
    """Asks the server for the file, through TFDS's own HTTP client and proxies; None if it is there."""
    import requests

    answer = [f"no answer within {_REACH_SECONDS:g} s"]

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_REACH_SECONDS) as response:
                answer[0] = "" if response.ok else f"the server answers {response.status_code} {response.reason}"
        except requests.RequestException as error:
            answer[0] = f"{type(error).__name__}: {error}"

    # In a thread, since the time-out does not bound the look-up of the server's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return answer[0] or None


def how_to_mend(builder: Any) -> str:
    """What to do about a prepared data set that is damaged."""
    return f"Delete {builder.data_dir} and prepare or copy {builder.name} again"


def _how_to_get(builder: Any, trouble: str) -> str:
    """The message of a DataError: the exact files, their place and the commands."""
    archives = _archives(builder)
    lines = [f"{builder.info.full_name.rpartition('/')[0]} {trouble}", f"  looked for:  {builder.data_dir} (prepared)"]
    for url, archive in archives.items():
        info = builder.url_infos[url]
        lines += [
            f"  and for:     {archive} (the official archive)",
            f"  file:        {archive.name}, {int(info.size):,} bytes, SHA-256 {info.checksum}",
            f"  from:        {url}",
            f"  fetch it:    mkdir -p {shlex.quote(str(archive.parent))} && "
            f"curl -fL -o {shlex.quote(str(archive))} {shlex.quote(url)}",
        ]
    return "\n".join(lines) + "\n" + _and_then(builder)


def _how_to_place(builder: Any, missing: list[str]) -> str:
    """The same for archives that need an account."""
    manual = _root(builder) / "downloads" / "manual"
    checksums = {url.rpartition("/")[2]: info for url, info in builder.url_infos.items()}
    lines = [f"{builder.name} is not prepared, and its archives are not to be had without an account."]
    lines += [f"  looked for:  {builder.data_dir} (prepared)"]
    for file in missing:
        info = checksums[file]
        lines += [f"  and for:     {manual / file} ({int(info.size):,} bytes, SHA-256 {info.checksum})"]
    lines += [
        "  from:        https://image-net.org/download-images, after logging in",
        f"  put there:   mkdir -p {shlex.quote(str(manual))} && mv {' '.join(missing)} {shlex.quote(str(manual))}",
    ]
    return "\n".join(lines) + "\n" + _and_then(builder)


def _and_then(builder: Any) -> str:
    return (
        f"  run again:   {shlex.join(sys.orig_argv)}\n"
        f"A data set that is prepared elsewhere is found with --config.data.dir=DIR (DIR holds {builder.name}/). "
        f"configs/digits.py needs no download."
    )
