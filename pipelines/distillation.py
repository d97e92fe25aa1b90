"""The pipeline on Kubeflow: the steps of dvc.yaml, with the parameters divided before them and a word at the end.

prepare → teacher → {baseline, kd, distill} → export → evaluate → register. Nothing branches: the teacher step trains or
imports, and the gate is inside register.
"""

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.kubeflow import steps
from pipelines.pods import configure, trained_by
from pipelines.profile import Profile

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
    train = {name: trained_by(name, profile) for name in ("teacher", "baseline", "kd", "distill")}

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
        ended = configure(steps.ended(), "ended", profile)
        ended.set_caching_options(False)
        with dsl.ExitHandler(ended, name="steps"):
            settings = steps.settings(params=params, overrides=overrides, data_source=data_source, mlflow=mlflow)
            given = settings.outputs
            prepare = steps.prepare(settings=given["prepare"], dvc_repo=dvc_repo, dvc_path=dvc_path, dvc_rev=dvc_rev)
            data = prepare.outputs["data"]
            teacher = train["teacher"](settings=given["teacher"], data=data)
            network = teacher.outputs["teacher"]
            baseline = train["baseline"](settings=given["baseline"], data=data)
            kd = train["kd"](settings=given["kd"], data=data, teacher=network)
            distill = train["distill"](settings=given["distill"], data=data, teacher=network)
            student = distill.outputs["student"]
            export = steps.export(settings=given["export"], data=data, teacher=network, student=student)
            trained = {"baseline": baseline.outputs["baseline"], "kd": kd.outputs["kd"], "student": student}
            deploy = export.outputs["deploy"]
            evaluate = steps.evaluate(settings=given["evaluate"], data=data, teacher=network, deploy=deploy, **trained)
            register = steps.register(
                settings=given["register"],
                teacher=network,
                deploy=deploy,
                report=evaluate.outputs["report"],
                **trained,
            )
            register.set_caching_options(False)  # the registry may have changed though nothing here did
            for name, task in {
                "settings": settings,
                "prepare": prepare,
                "teacher": teacher,
                "baseline": baseline,
                "kd": kd,
                "distill": distill,
                "export": export,
                "evaluate": evaluate,
                "register": register,
            }.items():
                configure(task, name, profile)

    return pipeline
