"""The modes of the command: each is an entry of `MODES`, and a subcommand of `skipnet`.

A new mode is one more entry, below the definitions of the flags that only it has. Libraries are imported when a mode
runs, so that help and error messages come at once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from skipnet_jax.runs.joining import Joining

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: the name of a config, or a file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://...; training default: runs/CONFIG.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, latest or a step.")
ALLOW_CHANGE = flags.DEFINE_list("allow_change", [], "Fields of the config that may change when a run resumes.")
DATASETS = flags.DEFINE_list("datasets", [], "Evaluate on these data sets; default: the run's own.")
IMAGE_SIZES = flags.DEFINE_list("image_sizes", [], "Evaluate at these sizes, in pixels; default: the run's own.")
EVAL_CLASSES = flags.DEFINE_enum(
    "eval_classes", "all", ["all", "own"], "Predict any class, or only the data set's own, such as imagenet_a's 200."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data sets are; default: as in training.")
FLIP = flags.DEFINE_bool("flip", False, "Evaluate each image together with its mirror image.")
DETAILS = flags.DEFINE_bool("details", False, "Also evaluate by class and by confidence: tables and pictures.")
IMAGES = flags.DEFINE_list("images", [], "Image files to explain one by one; default: some test images.")
FORMAT = flags.DEFINE_string("format", None, "Format of the output.")
OUT = flags.DEFINE_string("out", None, "Folder for the output files; default: in the workdir, and no files for a plan.")
FROM = flags.DEFINE_string("from", None, "Weights to convert: a file, or a folder with config.json.")
PRETRAINED = flags.DEFINE_string("pretrained", None, "Convert the published weights of this network.")
MODEL = flags.DEFINE_string("model", None, "The network, if the weights fit several.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Make a new classifier for this many classes.", lower_bound=2)
WEIGHTS = flags.DEFINE_enum("weights", None, ["ema", "raw"], "The averaged weights (default), or the raw ones.")
CLASSES = flags.DEFINE_string("classes", None, "File with the names of the classes, one per line.")
TOPOLOGY = flags.DEFINE_list(
    "topology", [], "Plan for these devices: TPU slices such as v5e:4x4, gpu:h100, gpu:h200, cpu."
)
CHIPS = flags.DEFINE_integer("chips", None, "Plan for this many chips of each topology, from the first; default: all.")
QUICK = flags.DEFINE_bool(
    "quick", False, "Plan only what TPUs hold and move, in a fraction of the time: without machine code and its cycles."
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "yes", "no"],
    "Join the other hosts of a run; auto: if a cluster has started several. Without a value: yes.",
)
COORDINATOR_ADDRESS = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where not detected.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts, where not detected.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this host from 0, where not detected.", lower_bound=0)
COMPILE_CACHE = flags.DEFINE_enum(
    "compile_cache",
    "on",
    ["on", "off"],
    "Keep compiled programs for the next start, in ~/.cache/skipnet_jax or in JAX_COMPILATION_CACHE_DIR.",
)
_HOSTS = (DISTRIBUTED, COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID)
_Flag = flags.FlagHolder[Any]


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode whose flags are defined above.

    Args:
      line: what it does, for the list of all modes.
      run: does it, and returns the exit status.
      needs: the flags that must be given, each with an example.
      formats: the values of --format, the default first.
    """

    line: str
    run: Callable[[], int]
    flags: Sequence[_Flag]
    needs: Sequence[tuple[_Flag, str]] = ()
    formats: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A mode that parses its own command line, which may have arguments without flags.

    Args:
      line: what it does, for the list of all modes.
      main: does it. It gets the rest of the command line and the program's name, and returns the exit status.
    """

    line: str
    main: Callable[[Sequence[str], str], int]


def _train() -> int:
    from skipnet_jax import config, config_files, libraries
    from skipnet_jax.data import sources
    from skipnet_jax.models import zoo

    spec = config.train_spec(CONFIG.value)
    # Report mistakes before the other imports, which take seconds.
    sources.require_available(spec.data, to_train=True)
    zoo.require_trainable(spec)
    named = WORKDIR.value is not None
    if not named:
        value = config_flags.get_config_filename(flags.FLAGS["config"])
        flags.FLAGS["workdir"].value = f"runs/{config_files.run_name(value)}"
    host = _join_hosts(config.to_dict(spec))
    if not named and not host:
        print(f"no --workdir is given: training in {WORKDIR.value}", flush=True)
    libraries.import_tensorflow()
    from skipnet_jax.train import train_and_evaluate

    train_and_evaluate(spec, WORKDIR.value, allow_change=ALLOW_CHANGE.value)
    return 0


def _evaluate() -> int:
    from skipnet_jax import libraries

    _join_hosts({flag.name: flag.value for flag in (CHECKPOINT, DATASETS, IMAGE_SIZES, EVAL_CLASSES, FLIP, DETAILS)})
    _require_run()
    libraries.import_tensorflow()
    from skipnet_jax.evaluate import evaluate_workdir

    evaluate_workdir(
        WORKDIR.value,
        CHECKPOINT.value,
        datasets=DATASETS.value,
        image_sizes=[int(size) for size in IMAGE_SIZES.value],
        eval_classes=EVAL_CLASSES.value,
        data_dir=DATA_DIR.value,
        flip=FLIP.value,
        detailed=DETAILS.value,
    )
    return 0


def _explain() -> int:
    from skipnet_jax import libraries

    libraries.require_devices()
    _require_run()
    libraries.import_tensorflow()
    from skipnet_jax.explain import explain_workdir

    explain_workdir(WORKDIR.value, CHECKPOINT.value, images=IMAGES.value, out=OUT.value, data_dir=DATA_DIR.value)
    return 0


def _export() -> int:
    from skipnet_jax import libraries

    libraries.require_devices()
    _require_run()
    libraries.import_tensorflow()
    from skipnet_jax.exports.export import export_workdir

    export_workdir(WORKDIR.value, _format(), OUT.value, CHECKPOINT.value, data_dir=DATA_DIR.value)
    return 0


def _convert() -> int:
    from skipnet_jax import files, libraries

    if not files.is_local(WORKDIR.value):  # only a bucket needs TensorFlow, which takes seconds to import
        libraries.import_tensorflow()
    from skipnet_jax.convert import convert_checkpoint

    convert_checkpoint(
        str(WORKDIR.value),
        source=FROM.value,
        pretrained_name=PRETRAINED.value,
        model=MODEL.value,
        num_classes=NUM_CLASSES.value,
        weights=WEIGHTS.value,
        classes=CLASSES.value,
    )
    return 0


def _plan() -> int:
    from skipnet_jax import config
    from skipnet_jax.plan import plan_run

    spec = config.train_spec(CONFIG.value)
    fits = plan_run(spec, TOPOLOGY.value, chips=CHIPS.value, quick=QUICK.value, out=OUT.value, output_format=_format())
    return 0 if fits else 2


def _predict(argv: Sequence[str], program: str) -> int:
    from skipnet_jax import predict

    return predict.main(argv, program)


def _shards(argv: Sequence[str], program: str) -> int:
    from skipnet_jax.command import shards

    return shards.main(argv, program)


def _models(argv: Sequence[str], program: str) -> int:
    from skipnet_jax.command import networks

    return networks.main(argv, program)


def _report(argv: Sequence[str], program: str) -> int:
    from skipnet_jax.command import report

    return report.main(argv, program)


_RUN = (WORKDIR, "--workdir=runs/NAME")
_RECIPE = (CONFIG, "--config=digits or another")

MODES: dict[str, Mode | Program] = {
    "train": Mode(
        "Trains a network, or resumes an interrupted run.",
        _train,
        flags=(CONFIG, WORKDIR, ALLOW_CHANGE, COMPILE_CACHE, *_HOSTS),
        needs=(_RECIPE,),
    ),
    "evaluate": Mode(
        "Evaluates the network of a run, on its own test images or on others.",
        _evaluate,
        flags=(
            WORKDIR,
            CHECKPOINT,
            DATASETS,
            DATA_DIR,
            IMAGE_SIZES,
            EVAL_CLASSES,
            FLIP,
            DETAILS,
            COMPILE_CACHE,
            *_HOSTS,
        ),
        needs=(_RUN,),
    ),
    "predict": Program("Classifies image files with the network of a run, or an exported one.", _predict),
    "explain": Mode(
        "Draws what the gates let through.",
        _explain,
        flags=(WORKDIR, CHECKPOINT, IMAGES, DATA_DIR, OUT, COMPILE_CACHE),
        needs=(_RUN,),
    ),
    "export": Mode(
        "Writes the network of a run for other programs to run.",
        _export,
        flags=(WORKDIR, FORMAT, CHECKPOINT, DATA_DIR, OUT, COMPILE_CACHE),
        needs=(_RUN,),
        formats=("orbax", "stablehlo", "savedmodel", "onnx", "safetensors"),
    ),
    "convert": Mode(
        "Makes a workdir from published weights, or from a file with torch's, timm's or torchvision's names.",
        _convert,
        flags=(WORKDIR, FROM, PRETRAINED, MODEL, NUM_CLASSES, WEIGHTS, CLASSES),
        needs=(_RUN,),
    ),
    "plan": Mode(
        "Says what a run needs and costs on devices that are not here: memory, time, traffic.",
        _plan,
        flags=(CONFIG, TOPOLOGY, CHIPS, QUICK, OUT, FORMAT, COMPILE_CACHE),
        needs=(_RECIPE, (TOPOLOGY, "--topology=v5e:4x4 or another")),
        formats=("text", "json"),
    ),
    "shards": Program("Turns images into TFRecord shards, and checks shards.", _shards),
    "models": Program("Lists the networks: size, FLOPs and published accuracy.", _models),
    "report": Program("Writes one HTML page about runs.", _report),
}

MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


def _format() -> str:
    mode = MODES[MODE.value]
    assert isinstance(mode, Mode)
    return FORMAT.value or mode.formats[0]


def _require_run() -> None:
    """Refuses a workdir without a run. Call it before TensorFlow is imported, which takes seconds."""
    from skipnet_jax.runs import workdir

    workdir.read_spec(WORKDIR.value)


def joining() -> Joining:
    """What the flags say about other hosts."""
    return Joining(DISTRIBUTED.value, COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)


def _join_hosts(settings: Mapping[str, Any]) -> int:
    """Joins the other hosts, if there are any.

    Args:
      settings: what must be the same on all hosts, besides code and libraries.

    Returns:
      This process's number among the hosts.
    """
    from skipnet_jax import libraries

    if not joining().join(workdir=WORKDIR.value):
        libraries.require_devices()
        return 0
    from skipnet_jax.runs import agreement

    return agreement.require_alike({"mode": MODE.value, **settings})
