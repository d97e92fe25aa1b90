"""A search on Kubeflow: workers side by side, each in a pod of its own, one study in a database, and one report."""

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from gkd_core.errors import GkdError
from pipelines.kubeflow import components, search_components
from pipelines.kubeflow.pods import configure
from pipelines.kubeflow.profile import Profile

NAME = "gkd-search"


def search(
    params: dict[str, Any], overrides: list[str] | None = None, profile: Profile | None = None, space: str = ""
) -> GraphComponent:
    """The pipeline, with defaults for its arguments.

    Args:
        params, overrides, space: defaults of the arguments of these names.
        profile: what the cluster gives; None asks for nothing.
    Raises:
        GkdError: the profile gives a training several devices.
    """
    if profile is not None and profile.all_devices > 1:
        raise GkdError(
            f"a search trains each trial in one process, but the profile gives it {profile.all_devices} devices: take "
            "cpu or gpu, and more workers"
        )
    default_params, default_overrides, default_space = params, list(overrides or []), space

    @dsl.pipeline(name=NAME, description="The best settings by validation: workers that share a study.")
    def pipeline(
        params: dict = default_params,
        overrides: list = default_overrides,
        data_source: str = "",
        dvc_repo: str = "",
        dvc_path: str = "",
        dvc_rev: str = "",
        mlflow: str = "",
        space: str = default_space,
        trials: int = 20,
        minutes: float = 0.0,
        each: str = "",
        seeds: list = [0],  # noqa: B006  # an argument's default in the compiled file
        storage: str = "",
        study: str = "",
        sampler_seed: int = 0,
        prune: bool = True,
        workers: int = 4,
    ):
        """The best settings by validation: workers that share a study.

        Args:
            params: Content of params.yaml.
            overrides: A list of section.key=value, such as train.epochs=30.
            data_source: Replaces data.source unless empty.
            dvc_repo: Git repository whose DVC-tracked data is read instead of data.root; empty for none.
            dvc_path: What to fetch from it.
            dvc_rev: Tag, branch or commit of it; empty for the newest.
            mlflow: Address of the MLflow server, without password; replaces tracking.uri unless empty.
            space: Content of a space file: parameters with ranges or choices.
            trials: Settings to try in each study, those of earlier runs included; 0 does not limit.
            minutes: A worker begins no trial after so many; 0 does not limit.
            each: A parameter with choices; each choice is a study of its own. Empty is one study.
            seeds: Of each setting's trainings.
            storage: Address of the database without password; empty is OPTUNA_STORAGE of the pods.
            study: Its name in the database; empty makes one of what the trials depend on.
            sampler_seed: Of what is drawn.
            prune: Stop trials that do worse than the median of the others.
            workers: Pods that search side by side.
        """
        ended = configure(components.ended(), "ended", profile)
        ended.set_caching_options(False)
        with dsl.ExitHandler(ended, name="steps"):
            plan = search_components.plan_search(
                params=params,
                overrides=overrides,
                data_source=data_source,
                mlflow=mlflow,
                space=space,
                trials=trials,
                minutes=minutes,
                each=each,
                seeds=seeds,
                storage=storage,
                study=study,
                sampler_seed=sampler_seed,
                prune=prune,
                workers=workers,
            )
            prepare = components.prepare(
                settings=plan.outputs["prepare"], dvc_repo=dvc_repo, dvc_path=dvc_path, dvc_rev=dvc_rev
            )
            data = prepare.outputs["data"]
            teacher = components.teacher(settings=plan.outputs["teacher"], data=data)
            plans = components.trainings(listed=plan.outputs["workers"])
            # kfp's local runner gives a loop's task no other parameter than the loop's own.
            with dsl.ParallelFor(plans.output) as own:
                worker = search_components.search_worker(plan=own, data=data, teacher=teacher.outputs["teacher"])
                worker.set_caching_options(False)  # the database knows what is done
            report = search_components.search_report(
                plan=plan.outputs["search"],
                workers=dsl.Collected(worker.outputs["result"]),
                data=data,
                teacher=teacher.outputs["teacher"],
            )
            report.set_caching_options(False)
            for task in (plan, plans):
                configure(task, "settings", profile)
            configure(prepare, "prepare", profile)
            configure(teacher, "teacher", profile)
            configure(worker, "distill", profile)
            configure(report, "evaluate", profile)

    return pipeline
