"""`gkd registry`: list, promote, roll back, on a real tracking database."""

import pytest
from mlflow import MlflowClient

from components import registry
from gkd_core.config import TrackingConfig, parse_params
from gkd_core.errors import GkdError


@pytest.fixture
def settings(store_uri) -> TrackingConfig:
    return parse_params({"tracking": {"uri": store_uri}}).tracking


@pytest.fixture
def client(settings) -> MlflowClient:
    """Three versions, the second one champion."""
    client = MlflowClient(settings.uri)
    client.create_registered_model("gkd-student")
    for number in (1, 2, 3):
        tags = {"gkd.top1": f"0.9{number}", "gkd.manifest": str(number) * 64, "gkd.method": "kd", "gate.passed": "true"}
        client.create_model_version("gkd-student", f"/models/{number}", tags=tags if number < 3 else None)
    client.set_registered_model_alias("gkd-student", "champion", "2")
    client.set_registered_model_alias("gkd-student", "challenger", "3")
    return client


def aliases(client: MlflowClient) -> dict[str, int]:
    return {alias: int(number) for alias, number in client.get_registered_model("gkd-student").aliases.items()}


def tag(client: MlflowClient, version: int, name: str) -> str:
    return client.get_model_version("gkd-student", str(version)).tags[name]


def test_an_empty_registry_is_an_empty_list(settings):
    assert registry.list_versions(settings) == []


def test_list(settings, client):
    rows = registry.list_versions(settings)
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert rows[1] | {"created": ""} == {
        "version": 2,
        "aliases": ["champion"],
        "top1": 0.92,
        "gate": "passed",
        "created": "",
        "method": "kd",
        "network": "",
        "held": "",
        "data": "",
        "teacher": "",
        "student": "",
        "manifest": "222222222222",
    }
    assert (rows[0]["top1"], rows[0]["gate"], rows[0]["aliases"]) == (None, "", ["challenger"])
    assert rows[0]["created"].endswith("+00:00")


def test_promote_by_alias_and_by_number(settings, client):
    assert registry.promote(settings, "challenger", reason="looks right") == {
        "name": "gkd-student",
        "champion": 3,
        "previous_champion": 2,
        "reason": "looks right",
    }
    assert aliases(client) == {"champion": 3, "previous_champion": 2, "challenger": 3}
    assert tag(client, 3, "gkd.promoted").endswith(": looks right")
    assert registry.promote(settings, "1", reason="older")["previous_champion"] == 3
    assert aliases(client)["champion"] == 1


def test_promoting_the_champion_moves_nothing(settings, client):
    assert registry.promote(settings, "champion", reason="again")["previous_champion"] is None
    assert aliases(client) == {"champion": 2, "challenger": 3}


def test_rollback_there_and_back(settings, client):
    registry.promote(settings, "3", reason="try")
    assert registry.rollback(settings)["champion"] == 2
    assert aliases(client) == {"champion": 2, "previous_champion": 3, "challenger": 3}
    assert tag(client, 3, "gkd.held").endswith(": rolled back by hand")
    assert registry.rollback(settings, reason="it was right after all")["champion"] == 3
    assert tag(client, 3, "gkd.held") == "", "what was brought back is held no longer"
    assert tag(client, 2, "gkd.held").endswith(": it was right after all")
    registry.promote(settings, "2", reason="by hand")
    assert tag(client, 2, "gkd.held") == ""


def test_nothing_to_go_back_to(settings, client):
    with pytest.raises(GkdError, match=r"gkd-student has no previous_champion to go back to: .*gkd registry promote"):
        registry.rollback(settings)


def test_unknown_versions_aliases_and_models(settings, client):
    with pytest.raises(GkdError, match=r"version or alias '7' is unknown; Known: challenger, champion, 1, 2, 3"):
        registry.promote(settings, "7", reason="")
    with pytest.raises(GkdError, match=r"'champoin' is unknown; did you mean 'champion'\?"):
        registry.promote(settings, "champoin", reason="")
    other = settings.model_copy(update={"model_name": "gkd-studnet"})
    for ask in (registry.list_versions, registry.rollback, lambda settings: registry.promote(settings, "1", reason="")):
        with pytest.raises(GkdError, match=r"registered model 'gkd-studnet' is unknown; did you mean 'gkd-student'\?"):
            ask(other)
    assert aliases(client) == {"champion": 2, "challenger": 3}
