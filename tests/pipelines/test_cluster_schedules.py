"""Schedules on a server, and the clocks they go by."""

from dataclasses import replace

import pytest

from pipelines.kubeflow import runs, schedules
from pipelines.kubeflow.schedules import Clock
from tests.pipelines.conftest import says
from tests.pipelines.kfp_server import KfpServer


def test_a_schedule_is_made_once_and_its_file_uploaded_once(connect, work):
    weekly = replace(work, name="weekly", pipeline="gkd")
    with KfpServer() as server:
        found = connect(host=server.host)
        first = schedules.schedule(found, weekly, Clock("0 0 3 * * 1"))
        with says("a schedule 'weekly' is there already"):
            schedules.schedule(found, weekly, Clock("0 0 4 * * 1"))
        second = schedules.schedule(found, weekly, Clock("0 0 4 * * 1"), replace=True)
        assert list(server.schedules) == [second["schedule_id"]] != [first["schedule_id"]]
        assert len(server.pipelines) == 1
        digests = [v["display_name"] for v in server.versions.values() if v["display_name"] != "gkd"]
        assert len(digests) == 1
        assert digests[0].startswith("sha256-")
        assert not server.refused


def test_a_schedule_that_is_removed_or_replaced_leaves_its_run_at_work(connect, work):
    weekly = replace(work, name="weekly")
    with KfpServer() as server:
        found = connect(host=server.host)

        def scheduled() -> str:
            made = schedules.schedule(found, weekly, Clock("0 0 3 * * 1"), replace=True)
            run = runs.submit(found, work)["run_id"]
            server.runs[run]["recurring_run_id"] = made["schedule_id"]
            return run

        first, second = scheduled(), scheduled()
        schedules.unschedule(found, "weekly")
        assert server.killed == set()

        server.version = "2.16.1"
        third = scheduled()
        for remove in (lambda: schedules.unschedule(found, "weekly"), scheduled):
            with says(f"run {third} of the schedule 'weekly' is at work", "--now"):
                remove()
        assert len(server.schedules) == 1
        assert schedules.unschedule(found, "weekly", now=True)["stopped"] == [third]
        assert server.terminated == {third}
        assert server.runs[third]["state"] == "FAILED"
        assert server.runs[first]["state"] == server.runs[second]["state"] == "PENDING"


def test_a_run_that_ends_before_it_is_stopped_is_no_hindrance_to_removing_its_schedule(connect, work):
    class Quick(KfpServer):
        def get_run(self, run_id, *, query, content):
            self.looks[run_id] = 100
            return super().get_run(run_id, query=query, content=content)

    with Quick() as server:
        found = connect(host=server.host)
        made = schedules.schedule(found, replace(work, name="weekly"), Clock("0 0 3 * * 1"))
        run = runs.submit(found, work)["run_id"]
        server.runs[run]["recurring_run_id"] = made["schedule_id"]
        assert server.runs[run]["state"] == "PENDING"
        assert schedules.unschedule(found, "weekly", now=True)["removed"] == made["schedule_id"]
        assert (server.runs[run]["state"], server.terminated) == ("SUCCEEDED", set())


@pytest.mark.parametrize(
    ("clock", "parts"),
    [
        ({"cron": "0 3 * * 1"}, ["has five fields", "write '0 0 3 * * 1'"]),
        ({"cron": "* * * * * *"}, ["every few seconds", "write 0"]),
        ({"cron": "0-5 0 3 * * *"}, ["every few seconds"]),
        ({"cron": "@every 1s"}, ["every few seconds"]),
        ({"cron": "monday"}, ["has 1 fields, not six"]),
        ({"cron": "@daily", "start": "tomorrow"}, ["--start 'tomorrow' is not a time"]),
        ({"cron": "@daily", "end": "2026-12-01T00:00:00"}, ["--end", "names no time zone"]),
        (
            {"cron": "@daily", "start": "2026-12-01T00:00:00Z", "end": "2026-12-01T00:30:00+01:00"},
            ["is not after --start"],
        ),
    ],
)
def test_clocks_that_make_no_sense(clock, parts):
    with says(*parts):
        Clock(**clock)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-01 00:00Z", "2026-12-01T00:00:00Z"),
        ("20261201T0300+01:00", "2026-12-01T03:00:00+01:00"),
    ],
)
def test_a_time_is_sent_as_the_api_writes_times(given, sent):
    assert (Clock("@daily", start=given).start, Clock("@daily", end=given).end) == (sent, sent)


def test_clocks_that_make_sense():
    for cron in ("0 */5 1-4,22 ? JAN-MAR MON-FRI", "@daily", "@every 90s", "0,30 0 * * * *"):
        assert Clock(cron).cron == cron
