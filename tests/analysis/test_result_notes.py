import dataclasses

from skipnet_jax.analysis import result_notes, run_groups
from tests.analysis import made_runs


def notes_of(*paths):
    every = [run_groups.read(path) for path in paths]
    return result_notes.notes(every, run_groups.group_by_config(run for run in every if run.finished))


def seeded(seed, **changes):
    return dataclasses.replace(made_runs.DIGITS, seed=seed, **changes)


def test_nothing_to_say(tmp_path):
    scored = [("digits", 16, 0.9)]
    assert notes_of(*(made_runs.write(tmp_path / str(i), seeded(i), scored=scored) for i in range(2))) == []


def test_runs_left_out_and_sources_of_figures(tmp_path):
    a = made_runs.write(tmp_path / "a", seeded(0), scored=[("digits", 16, 0.9)])
    b = made_runs.write(tmp_path / "b", seeded(1))
    c = made_runs.write(tmp_path / "c", seeded(2), scored=[("digits", 16, 0.9)], step=10)
    d = made_runs.write(tmp_path / "d", seeded(3), accuracies=(0.5,))
    left_out, in_training, early = notes_of(a, b, c, d)
    assert left_out == f"{d} is left out: it is not finished (epoch 1 of 2)."
    assert in_training.startswith("Digits at 16 px: 1 of 3 runs have no record of --mode=evaluate in results.json")
    assert early == f"Digits at 16 px: the figure is from an earlier checkpoint than the last: {c} (step 10 of 20)."


def test_moving_averages(tmp_path):
    spec = seeded(0, ema_decay=0.9)
    [note] = notes_of(made_runs.write(tmp_path, spec, scored=[("digits", 16, 0.9)]))
    assert note == "Digits at 16 px: 1 of 1 runs use the moving average of the parameters."


def test_relatives_with_different_configs(tmp_path):
    scored = [("digits", 16, 0.9)]
    paths = [made_runs.write(tmp_path / "skip", seeded(0), scored=scored)]
    plain = dataclasses.replace(made_runs.DIGITS.model, name="resnet20")
    same = seeded(0, model=plain)
    assert notes_of(*paths, made_runs.write(tmp_path / "same", same, scored=scored)) == []
    other = made_runs.write(tmp_path / "other", seeded(1, model=plain, batch_size=256), scored=scored)
    assert notes_of(*paths, other) == [
        "Digits: ResNet-20 and its relatives differ in more than the junction. ResNet-20: batch_size=256; "
        "Skip-ResNet-20: batch_size=128."
    ]
