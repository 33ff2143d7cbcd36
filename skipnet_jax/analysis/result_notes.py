"""What a reader of result tables has to know besides: which runs are left out, and where figures are from."""

from collections.abc import Iterable, Sequence

from skipnet_jax.analysis.runs import DIFFER_IN_CIFAR, Group, Run, differences, identity
from skipnet_jax.models import model_info
from skipnet_jax.models.zoo import find
from skipnet_jax.runs import workdir as workdirs


def notes(runs: Iterable[Run], groups: Sequence[Group]) -> list[str]:
    """What a reader of the tables has to know, in sentences.

    Args:
      runs: all that were asked for.
      groups: of the finished ones among them.
    """
    lines = []
    for run in runs:
        if not run.finished:
            done = run.metrics[-1]["epoch"] if run.metrics else 0
            lines.append(f"{run.path} is left out: it is not finished (epoch {done:.4g} of {run.spec.epochs}).")
    finished = [run for group in groups for run in group.runs]
    for where in dict.fromkeys(where for run in finished for where in run.scores):
        place = f"{where[0].title} at {where[1]} px"
        scored = [(run, run.scores[where]) for run in finished if where in run.scores]
        in_training = sum(score.source == workdirs.METRICS for _, score in scored)
        if in_training:
            lines.append(
                f"{place}: {in_training} of {len(scored)} runs are not in a {workdirs.RESULTS} of --mode=evaluate; "
                f"theirs is the test after the last epoch ({workdirs.METRICS})."
            )
        early = [
            f"{run.path} (step {score.step} of {run.last_test['step']})"
            for run, score in scored
            if run.last_test is not None and score.step < run.last_test["step"]
        ]
        if early:
            lines.append(f"{place}: not by the last checkpoint, but an earlier one: {', '.join(early)}.")
        averaged = sum(run.spec.ema_decay > 0 for run, _ in scored)
        if averaged:
            lines.append(f"{place}: of {averaged} of {len(scored)} runs the moving average of the parameters.")
    return lines + _unequal(groups)


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Where networks that differ in their junction stand in one table, but were trained by different configs."""
    relatives: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        relatives.setdefault((find(group.network)[0].published_name, group.runs[0].learnt.table), []).append(group)
    lines = []
    for (name, table), members in relatives.items():
        ignored = ("model.name", *(DIFFER_IN_CIFAR if table == "CIFAR" else ()))
        differing = differences([identity(group.runs[0]) for group in members], ignored)
        if any(differing) and len({group.network for group in members}) > 1:
            each = "; ".join(
                f"{model_info(group.network).published_name}: {text}"
                for group, text in zip(members, differing, strict=True)
            )
            lines.append(f"{table}: {name} and its relatives differ in more than the junction. {each}.")
    return lines
