"""Contenders × pairs × seeds on Kubeflow: trainings side by side, so many at a time, and one comparison at the end."""

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from gkd_core.errors import GkdError
from pipelines.kubeflow import components, sweep_components
from pipelines.kubeflow.pods import configure
from pipelines.kubeflow.profile import Profile

NAME = "gkd-sweep"
PARALLELISM = 4


def sweep(
    params: dict[str, Any],
    overrides: list[str] | None = None,
    profile: Profile | None = None,
    parallelism: int = PARALLELISM,
    contenders: str = "",
) -> GraphComponent:
    """The pipeline, with defaults for its arguments.

    Args:
        params, overrides, contenders: defaults of the arguments of these names.
        profile: what the cluster gives; None asks for nothing.
        parallelism: trainings at a time.
    Raises:
        GkdError: the profile trains on several nodes.
    """
    if profile is not None and profile.nodes is not None:
        raise GkdError(
            "a sweep trains each student in a pod of its own, side by side, but the profile has nodes: take gpu or "
            "multi-gpu"
        )
    default_params, default_overrides, default_contenders = params, list(overrides or []), contenders

    @dsl.pipeline(
        name=NAME, description="Settings against each other, by pairs of networks and seeds, on the same data."
    )
    def pipeline(
        params: dict = default_params,
        overrides: list = default_overrides,
        data_source: str = "",
        dvc_repo: str = "",
        dvc_path: str = "",
        dvc_rev: str = "",
        mlflow: str = "",
        methods: list = [],  # noqa: B006  # an argument's default in the compiled file
        pairs: list = [],  # noqa: B006
        seeds: list = [0, 1, 2],  # noqa: B006
        reference: str = "",
        metric: str = "top1",
        contenders: str = default_contenders,
    ):
        """Settings against each other, by pairs of networks and seeds, on the same data.

        Args:
            params: Content of params.yaml.
            overrides: A list of section.key=value, such as train.epochs=30.
            data_source: Replaces data.source unless empty.
            dvc_repo: Git repository whose DVC-tracked data is read instead of data.root; empty for none.
            dvc_path: What to fetch from it.
            dvc_rev: Tag, branch or commit of it; empty for the newest.
            mlflow: Address of the MLflow server, without password; replaces tracking.uri unless empty.
            methods: Names of methods; an empty list is every method there is.
            pairs: A list of [teacher, student]; an empty list is the pair of the parameters.
            seeds: Of the students; three or more give intervals.
            reference: The contender that the others are compared with; empty is kd, or the first of the contenders.
            metric: What they are compared by: top1, balanced_accuracy or macro_f1.
            contenders: Content of a file of contenders, instead of methods; empty is none.
        """
        ended = configure(components.ended(), "ended", profile)
        ended.set_caching_options(False)
        with dsl.ExitHandler(ended, name="steps"):
            plan = sweep_components.plan(
                params=params,
                overrides=overrides,
                data_source=data_source,
                mlflow=mlflow,
                methods=methods,
                pairs=pairs,
                seeds=seeds,
                reference=reference,
                metric=metric,
                contenders=contenders,
            )
            prepare = components.prepare(
                settings=plan.outputs["prepare"], dvc_repo=dvc_repo, dvc_path=dvc_path, dvc_rev=dvc_rev
            )
            data = prepare.outputs["data"]
            teachers = components.trainings(listed=plan.outputs["teachers"])
            trials = components.trainings(listed=plan.outputs["trials"])
            with dsl.ParallelFor(teachers.output, parallelism=parallelism) as settings:
                teacher = components.teacher(settings=settings, data=data)
            gather = sweep_components.gather(teachers=dsl.Collected(teacher.outputs["teacher"]))
            with dsl.ParallelFor(trials.output, parallelism=parallelism) as trial:
                run_trial = sweep_components.run_trial(trial=trial, data=data, teachers=gather.outputs["together"])
            results = dsl.Collected(run_trial.outputs["result"])
            compare = sweep_components.compare(results=results, reference=plan.outputs["reference"], metric=metric)
            for task in (plan, teachers, trials):
                configure(task, "settings", profile)
            configure(prepare, "prepare", profile)
            configure(teacher, "teacher", profile)
            configure(gather, "export", profile)
            configure(run_trial, "distill", profile)
            configure(compare, "evaluate", profile)

    return pipeline
