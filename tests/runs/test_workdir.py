"""The folder of a run: what it remembers, and what it refuses."""

import concurrent.futures
import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax import errors
from skipnet_jax.runs import checkpoint, weights, workdir
from skipnet_jax.train import train_and_evaluate
from tests.tiny_runs import make_spec


def with_checkpoint(path, spec):
    run = workdir.open_for_training(path, spec)
    (run / workdir.CHECKPOINTS / "10").mkdir(parents=True)
    return run


def changed(spec, **fields):
    return dataclasses.replace(spec, **fields)


def test_a_new_workdir_remembers_its_config_and_takes_another_until_there_is_a_checkpoint(tmp_path):
    run = workdir.open_for_training(tmp_path / "runs" / "new", make_spec(seed=3))
    assert workdir.read_spec(run) == make_spec(seed=3)
    assert workdir.open_for_training(run, make_spec(epochs=2)) == run
    assert workdir.read_spec(run) == make_spec(epochs=2)


def test_a_file_is_no_workdir(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(errors.UserError, match=r"workdir: got .*file, which is a file, expected a folder"):
        workdir.open_for_training(file, make_spec())
    assert file.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", "/proc/no/such"):  # even root cannot write there
        with pytest.raises(errors.UserError, match=r"which cannot be written .* Choose another workdir"):
            workdir.open_for_training(path, make_spec())


def test_a_run_with_another_config_lists_the_differences(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    other = make_spec(seed=5, optim=changed(make_spec().optim, lr=0.2))
    with pytest.raises(errors.UserError, match=r"config: got optim.lr=0.2, seed=5, expected optim.lr=0.05, ") as error:
        workdir.open_for_training(run, other)
    assert error.value.mend.endswith("`allow_change`=optim.lr,seed")
    assert workdir.read_spec(run) == make_spec()
    workdir.open_for_training(run, other, allow_change=["optim.lr", "seed"])


def test_fields_that_do_not_change_the_result_may_change(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    data = changed(make_spec().data, dir="/elsewhere")
    other = make_spec(log_every_steps=7, eval_batch_size=8, checkpoint_every_epochs=2, data=data)
    workdir.open_for_training(run, other)
    assert workdir.read_spec(run) == make_spec()  # in case the new one does not fit
    workdir.remember(run, other)
    assert workdir.read_spec(run) == other


def test_the_batch_size_of_a_run_never_changes(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    for allowed in ([], ["batch_size"]):
        with pytest.raises(errors.UserError, match=r"batch_size: got 128, expected 256 .*Give batch_size=256; .*"):
            workdir.open_for_training(run, make_spec(batch_size=128), allow_change=allowed)


def test_a_run_that_is_short_of_memory_is_told_to_use_twice_its_own_parts(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec(accumulate_steps=2))
    with pytest.raises(errors.UserError, match=r"with accumulate_steps=4 allow_change=accumulate_steps\. Or start"):
        workdir.open_for_training(run, make_spec(batch_size=128))


@pytest.mark.parametrize("name", ["epoch", "config.epochs"])
def test_an_unknown_field_to_change_is_refused(name, tmp_path):
    """The message names the field as `allow_change` takes it, and not as the flag --config.epochs."""
    with pytest.raises(errors.UserError, match=f"allow_change: got the unknown field {name}") as error:
        workdir.open_for_training(tmp_path, make_spec(), allow_change=[name])
    assert error.value.message("--config.{}".format).endswith(" Did you mean epochs?")


def test_converted_weights_are_no_run_to_resume(tmp_path):
    run = with_checkpoint(tmp_path / "run", make_spec())
    (run / workdir.MODEL).write_text('{"name": "skip_resnet50", "num_classes": 1000}')
    with pytest.raises(errors.UserError, match=r"which holds converted weights.*init_from"):
        workdir.open_for_training(run, make_spec())
    spec = workdir.read_spec(run)
    assert (spec.model.name, spec.data.name, spec.data.image_size) == ("skip_resnet50", "imagenet2012", 224)


@pytest.mark.parametrize("content", ['{"architectures": ["ResNet"], "model": {}}', '{"compilerOptions": 1,}', "[]"])
def test_a_config_of_another_program_stays_as_it_is(content, tmp_path):
    """As in a folder of the Hugging Face hub, or where somebody trains in the folder of a project."""
    (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(errors.UserError, match=r"config\.json: got .*Choose another `?workdir`?, or remove the file"):
        workdir.open_for_training(tmp_path, make_spec())
    assert (tmp_path / workdir.CONFIG).read_text() == content


def test_a_failed_start_occupies_no_folder_even_if_another_version_made_it(tmp_path):
    workdir.open_for_training(tmp_path, make_spec())
    stored = json.loads((tmp_path / workdir.CONFIG).read_text())
    (tmp_path / workdir.CONFIG).write_text(json.dumps({"a_field_of_tomorrow": 1} | stored))
    workdir.open_for_training(tmp_path, make_spec(epochs=2))
    assert workdir.read_spec(tmp_path).epochs == 2


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b", "[old]/run"])
def test_a_folder_from_which_no_checkpoint_could_be_read_is_refused_before_anything_is_written(name, tmp_path):
    for write in (lambda place: train_and_evaluate(make_spec(), place), weights.require_new):
        with pytest.raises(errors.UserError, match=r"^workdir: got .*, with . ?.*, expected a path without \[ "):
            write(tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plain", "50% of a {b} 'é'", "#1 (new), x=1~", "猫]", "a*b?"])
def test_a_checkpoint_in_any_other_folder_can_be_read(name, tmp_path):
    """Orbax writes each array to a file, then joins these files, which it finds by a pattern with the folder's path."""
    workdir.require_plain(tmp_path / name)
    state = {"params": {"w": jnp.ones(3)}}
    with checkpoint.open_manager(workdir.locate(tmp_path / name)) as manager:
        checkpoint.save(manager, 1, state, {"accuracy": 0.5})
        manager.wait_until_finished()
        checkpoint.restore(manager, 1, jax.tree.map(checkpoint.shape_of, state))


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(errors.UserError, match=r"which has no config\.json, expected a run's workdir"):
        workdir.read_spec(tmp_path)


@pytest.mark.parametrize(("content", "got"), [("{", "no valid JSON"), ("[1]", "[1]"), ('{"seed": "x"}', "")])
def test_a_damaged_config_is_named(tmp_path, content, got):
    (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(errors.UserError) as error:
        workdir.read_spec(tmp_path)
    assert error.value.field.startswith(f"{tmp_path / workdir.CONFIG}") and got in error.value.got


def test_an_unknown_network_is_a_mistake_in_the_file_that_names_it(tmp_path):
    """Not in a flag, which only training takes."""
    workdir.open_for_training(tmp_path, make_spec())
    (tmp_path / workdir.CONFIG).write_text((tmp_path / workdir.CONFIG).read_text().replace("skip_resnet20", "resnet2O"))
    with pytest.raises(errors.UserError, match=r"config\.json: model\.name: got 'resnet2O', .*Restore the file"):
        workdir.read_spec(tmp_path)
    for name, num_classes, got in (("resnet2O", 10, "name: got 'resnet2O'"), ("resnet20", 1, "num_classes: got 1")):
        (tmp_path / workdir.MODEL).write_text(json.dumps({"name": name, "num_classes": num_classes}))
        with pytest.raises(errors.UserError, match=rf"model\.json: model\.{got}, .*Convert the weights again"):
            workdir.read_spec(tmp_path)


def test_evaluations_that_end_at_once_all_keep_their_results(tmp_path):
    """As when several data sets are evaluated by several commands."""
    path = workdir.locate(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: workdir.add_results(path, {"data": f"data_{number}"}), range(40)))
    assert {record["data"] for record in workdir.read_results(path)} == {f"data_{number}" for number in range(40)}


def test_a_damaged_line_of_the_metrics_is_named(tmp_path):
    (tmp_path / workdir.METRICS).write_text('{"step": 1}\n{"step":\n{"st')
    with pytest.raises(errors.UserError, match=r"metrics\.jsonl, line 2: got no valid JSON"):
        workdir.read_metrics(tmp_path)
