import dataclasses

import pytest

from skipnet_jax import specs
from skipnet_jax.runs import workdir


def make_spec(**changes):
    return dataclasses.replace(
        specs.TrainSpec(
            model=specs.ModelSpec(name="skip_resnet20", num_classes=10),
            data=specs.DataSpec(name="digits", image_size=8, pad_crop=1),
            mixing=specs.MixingSpec(),
            optim=specs.OptimSpec(lr=0.1),
            batch_size=64,
            epochs=4,
        ),
        **changes,
    )


def with_checkpoint(path, spec):
    run = workdir.open_for_training(path, spec)
    (run / workdir.CHECKPOINTS / "10").mkdir(parents=True)
    return run


def test_a_new_workdir_remembers_its_config(tmp_path):
    run = workdir.open_for_training(tmp_path / "runs" / "new", make_spec(seed=3))
    assert workdir.read_spec(run) == make_spec(seed=3)
    assert workdir.open_for_training(run, make_spec(seed=3)) == run


def test_a_file_is_no_workdir(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"--workdir: got .*file, which is a file, expected a folder"):
        workdir.open_for_training(file, make_spec())
    assert file.read_text() == "mine"


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", "/proc/no/such"):  # even root cannot write there
        with pytest.raises(ValueError, match=r"which cannot be written .* Choose another --workdir"):
            workdir.open_for_training(path, make_spec())


def test_another_configs_run_lists_what_differs(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    other = make_spec(seed=5, optim=specs.OptimSpec(lr=0.2))
    with pytest.raises(ValueError, match="holds a run with another config") as error:
        workdir.open_for_training(run, other)
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["  optim.lr: got 0.2, expected 0.1", "  seed: got 5, expected 0"]
    assert len(lines) == 4 and "another --workdir" in lines[3]
    assert lines[3].endswith("--allow_change=optim.lr,seed")
    assert workdir.read_spec(run) == make_spec()


def test_how_a_run_is_watched_may_change(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    data = dataclasses.replace(make_spec().data, dir="/elsewhere")
    changed = make_spec(log_every_steps=7, eval_batch_size=8, checkpoint_every_epochs=2, data=data)
    workdir.open_for_training(run, changed)
    assert workdir.read_spec(run) == make_spec()  # it may not fit, and then the old one has to go on
    workdir.remember(run, changed)
    assert workdir.read_spec(run) == changed


def test_the_batch_size_of_a_run_never_changes(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    for allowed in ([], ["batch_size"]):
        with pytest.raises(
            ValueError, match=r"got 32, expected 64.*--config\.batch_size=64.*--config\.init_from="
        ) as error:
            workdir.open_for_training(run, make_spec(batch_size=32), allow_change=allowed)
        assert "accumulate_steps" in str(error.value)


def test_without_a_checkpoint_nothing_holds_a_config_back(tmp_path):
    run = workdir.open_for_training(tmp_path / "run", make_spec(epochs=1))
    workdir.open_for_training(run, make_spec(epochs=2))
    assert workdir.read_spec(run).epochs == 2


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"which has no config\.json, expected a run's workdir"):
        workdir.read_spec(tmp_path)
    (tmp_path / workdir.CONFIG).write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config\.json: got no valid JSON"):
        workdir.read_spec(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"), [(b"\xff\xfe", "no valid JSON"), (b"{", "no valid JSON"), (b"[1]", "got [1]")]
)
def test_a_damaged_config_is_named(tmp_path, content, found):
    (tmp_path / workdir.CONFIG).write_bytes(content)
    with pytest.raises(ValueError) as error:
        workdir.read_spec(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / workdir.CONFIG}: ") and found in str(error.value)


def test_a_damaged_line_of_the_metrics_is_named(tmp_path):
    (tmp_path / workdir.METRICS).write_text('{"step": 1}\n{"step":\n{"st')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: got no valid JSON"):
        workdir.read_metrics(tmp_path)
