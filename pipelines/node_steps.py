"""The training steps' components under a profile with `nodes`: the task waits for a TrainJob.

They have the names, inputs and outputs of those in components/kubeflow/steps.py, and the profile besides; they stand
on this floor since they start pods, which no step does.
"""

from functools import partial

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import image

component = partial(dsl.component, base_image=image(), install_kfp_package=False)


@component
def teacher(settings: str, profile: str, data: Input[Dataset], teacher: Output[Model]):
    """Train the teacher on several nodes, or check and import teacher.source.

    Args:
        settings: As JSON, the section teacher of the parameters.
        profile: As JSON, what the cluster gives.
        data: The prepared images.
        teacher: One network or several, listed in teacher.json.
    """
    from components.kubeflow.metadata import of_teacher
    from components.kubeflow.task import running
    from pipelines.nodes import train_on_nodes

    with running("teacher", settings) as task:
        train_on_nodes("teacher", task, profile, inputs={"data": data.path}, out=teacher.path)
        teacher.metadata.update(of_teacher(teacher.path))


@component
def baseline(settings: str, profile: str, data: Input[Dataset], baseline: Output[Model]):
    """Train the student alone on the same budget, on several nodes: what distillation is compared with.

    Args:
        settings: As JSON, the sections student, train and references of the parameters.
        profile: As JSON, what the cluster gives.
        data: The prepared images.
        baseline: The network, or a note that references.baseline is off.
    """
    from components.kubeflow.metadata import of_student
    from components.kubeflow.task import running
    from pipelines.nodes import train_on_nodes

    with running("baseline", settings) as task:
        train_on_nodes("baseline", task, profile, inputs={"data": data.path}, out=baseline.path)
        baseline.metadata.update(of_student(baseline.path))


@component
def kd(settings: str, profile: str, data: Input[Dataset], teacher: Input[Model], kd: Output[Model]):
    """Train the student by plain soft-label distillation on the same budget, on several nodes.

    Args:
        settings: As JSON, the sections student, train and references of the parameters.
        profile: As JSON, what the cluster gives.
        data: The prepared images.
        teacher: The network or networks it learns from.
        kd: The network, or a note that references.kd is off.
    """
    from components.kubeflow.metadata import of_student
    from components.kubeflow.task import running
    from pipelines.nodes import train_on_nodes

    with running("kd", settings) as task:
        train_on_nodes("kd", task, profile, inputs={"data": data.path, "teacher": teacher.path}, out=kd.path)
        kd.metadata.update(of_student(kd.path))


@component
def distill(settings: str, profile: str, data: Input[Dataset], teacher: Input[Model], student: Output[Model]):
    """Train the student by distill.method, on several nodes.

    Args:
        settings: As JSON, the sections student, train and distill of the parameters.
        profile: As JSON, what the cluster gives.
        data: The prepared images.
        teacher: The network or networks it learns from.
        student: The network, its curves, and training.json.
    """
    from components.kubeflow.metadata import of_student
    from components.kubeflow.task import running
    from pipelines.nodes import train_on_nodes

    with running("distill", settings) as task:
        train_on_nodes("distill", task, profile, inputs={"data": data.path, "teacher": teacher.path}, out=student.path)
        student.metadata.update(of_student(student.path))
