"""The pipeline on Kubeflow: the table of steps, with the parameters divided before them and a word at the end.

prepare → teacher → {baseline, kd, distill} → export → evaluate → register. Nothing branches: the teacher step trains or
imports, and the gate is inside register.
"""

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.graph import STEPS
from pipelines.kubeflow import components
from pipelines.kubeflow.pods import configure
from pipelines.kubeflow.profile import Profile

NAME = "gkd-distillation"


def distillation(
    params: dict[str, Any], overrides: list[str] | None = None, profile: Profile | None = None
) -> GraphComponent:
    """The pipeline, with defaults for its arguments.

    Args:
        params: default of the argument of this name, content of params.yaml.
        overrides: likewise.
        profile: what the cluster gives; None asks for nothing, which is what a run on this machine needs.
    """
    default_params, default_overrides = params, list(overrides or [])
    nodes = profile.model_dump_json() if profile and profile.nodes else ""

    @dsl.pipeline(
        name=NAME,
        description="Distil a large image classifier into a small one: measured, packaged as ONNX, registered.",
    )
    def pipeline(
        params: dict = default_params,
        overrides: list = default_overrides,
        data_source: str = "",
        dvc_repo: str = "",
        dvc_path: str = "",
        dvc_rev: str = "",
        mlflow: str = "",
    ):
        """Distil a large image classifier into a small one: measured, packaged as ONNX, registered.

        Args:
            params: Content of params.yaml.
            overrides: A list of section.key=value, such as train.epochs=30.
            data_source: Replaces data.source unless empty.
            dvc_repo: Git repository whose DVC-tracked data is read instead of data.root; empty for none.
            dvc_path: What to fetch from it.
            dvc_rev: Tag, branch or commit of it; empty for the newest.
            mlflow: Address of the MLflow server, without password; replaces tracking.uri unless empty.
        """
        ended = configure(components.ended(train_jobs=bool(nodes)), "ended", profile)
        ended.set_caching_options(False)
        with dsl.ExitHandler(ended, name="steps"):
            settings = components.settings(params=params, overrides=overrides, data_source=data_source, mlflow=mlflow)
            configure(settings, "settings", profile)
            settings.set_caching_options(False)  # it asks the MLflow server, which the cache would not
            made: dict[str, Any] = {}  # artifacts by the name of the folder
            for step in STEPS:
                given = {"settings": settings.outputs[step.name]} | {name: made[name] for name in step.inputs}
                if step.name == "prepare":
                    given |= {"dvc_repo": dvc_repo, "dvc_path": dvc_path, "dvc_rev": dvc_rev}
                if nodes and step.trains:
                    given["profile"] = nodes
                task = getattr(components, step.name)(**given)
                made[step.output] = task.outputs[step.output]
                if not step.cached:
                    task.set_caching_options(False)
                configure(task, step.name, profile)

    return pipeline
