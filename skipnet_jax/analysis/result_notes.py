"""What a reader of the result tables must know: which runs are left out, and where the figures come from."""

from collections.abc import Iterable, Sequence

from skipnet_jax.analysis.run_groups import CIFAR_DIFFERENCES, Group, Run, differences, identity
from skipnet_jax.models import model_info
from skipnet_jax.models.zoo import find
from skipnet_jax.runs import workdir as workdirs


def notes(runs: Iterable[Run], groups: Sequence[Group]) -> list[str]:
    """Writes the notes, a sentence or two each.

    Args:
      runs: all runs, finished or not.
    """
    lines = []
    for run in runs:
        if not run.finished:
            done = run.metrics[-1]["epoch"] if run.metrics else 0
            lines.append(f"{run.path} is left out: it is not finished (epoch {done:.4g} of {run.spec.epochs}).")
    finished = [run for group in groups for run in group.runs]
    for condition in dict.fromkeys(condition for run in finished for condition in run.scores):
        scored = [(run, run.scores[condition]) for run in finished if condition in run.scores]
        in_training = sum(score.source == workdirs.METRICS for _, score in scored)
        if in_training:
            lines.append(
                f"{condition.title}: {in_training} of {len(scored)} runs have no record of --mode=evaluate in "
                f"{workdirs.RESULTS}; their figure is the test after the last epoch ({workdirs.METRICS})."
            )
        early = [
            f"{run.path} (step {score.step} of {run.tests[-1].step})"
            for run, score in scored
            if score.step < run.tests[-1].step
        ]
        if early:
            lines.append(
                f"{condition.title}: the figure is from an earlier checkpoint than the last: {', '.join(early)}."
            )
        averaged = sum(run.spec.ema_decay > 0 for run, _ in scored)
        if averaged:
            lines.append(
                f"{condition.title}: {averaged} of {len(scored)} runs use the moving average of the parameters."
            )
    return lines + _unequal_relatives(groups)


def _unequal_relatives(groups: Sequence[Group]) -> list[str]:
    """Names the networks of one table that differ in more than their junction."""
    relatives: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        relatives.setdefault((find(group.network)[0].published_name, group.trained_on.table), []).append(group)
    lines = []
    for (name, table), members in relatives.items():
        ignored = ("model.name", *(CIFAR_DIFFERENCES if table == "CIFAR" else ()))
        differing = differences([identity(group.runs[0]) for group in members], ignored)
        if any(differing) and len({group.network for group in members}) > 1:
            each = "; ".join(
                f"{model_info(group.network).published_name}: {text}"
                for group, text in zip(members, differing, strict=True)
            )
            lines.append(f"{table}: {name} and its relatives differ in more than the junction. {each}.")
    return lines
