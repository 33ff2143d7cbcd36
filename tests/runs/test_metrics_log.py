from etils import epath
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util.tensor_util import make_ndarray

from skipnet_jax.runs import metrics_log, workdir


def test_a_resumed_log_drops_what_will_come_again(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0)
    for step in (5, 10, 15):
        log.write(step, {"train/loss": step / 10})
    log.close()
    with (tmp_path / workdir.METRICS).open("a") as file:
        file.write('{"step": 20, "train')  # kill -9 in the middle of a line
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=10)
    log.write(15, {"train/loss": 7.0})
    log.close()
    assert workdir.read_metrics(tmp_path) == [
        {"step": 5, "train/loss": 0.5},
        {"step": 10, "train/loss": 1.0},
        {"step": 15, "train/loss": 7.0},
    ]
    assert len(list((tmp_path / workdir.TENSORBOARD).glob("events.out.tfevents.*"))) == 2


def test_a_step_that_is_evaluated_again_has_one_line_of_it(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0)
    for step, numbers in ((5, {"test/loss": 1.0}), (10, {"train/loss": 0.5}), (10, {"epoch": 2.0, "test/loss": 0.7})):
        log.write(step, numbers)
    log.close()
    for unevaluated, left in ((False, [5, 10, 10]), (True, [5, 10])):
        metrics_log.MetricsLog(epath.Path(tmp_path), step=10, unevaluated=unevaluated).close()
        assert [line["step"] for line in workdir.read_metrics(tmp_path)] == left


def test_every_line_is_json_even_of_a_run_that_diverged(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0)
    log.write(5, {"train/loss": float("nan"), "grad_norm": float("inf"), "epoch": 1.0})
    log.close()
    assert (tmp_path / workdir.METRICS).read_text() == (
        '{"step": 5, "train/loss": null, "grad_norm": null, "epoch": 1.0}\n'
    )


def test_tensorboard_reads_the_same_numbers(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0)
    log.write(5, {"train/loss": 0.5, "epoch": 1.0})
    log.write(10, {"train/loss": 0.25, "test/accuracy": 0.75})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / workdir.TENSORBOARD))
    events.Reload()
    names = {"train/loss", "epoch", "test/accuracy"}
    read = {
        name: [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(name)]
        for name in names
    }
    assert read == {
        "train/loss": [(5, 0.5), (10, 0.25)],
        "epoch": [(5, 1.0)],
        "test/accuracy": [(10, 0.75)],
    }


def test_weights_and_biases_is_off_unless_asked_for(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), step=0)
    log.write(5, {"train/loss": 0.5})
    log.close()
    assert not (tmp_path / workdir.WANDB).exists() and not (tmp_path / "wandb").exists()
