"""Dashboards are what Grafana takes, nothing lies upon another thing, and Prometheus reads every query."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from cluster.monitoring.dashboards import dashboards, tandem_dashboard
from cluster.monitoring.prometheus import to_text
from cluster.monitoring.rules import rule_groups
from runtime.cli_monitoring import monitoring
from tests.monitoring.queries import filled, metrics_of, panels, queries

SCHEMA = json.loads(Path(__file__).with_name("grafana_schema.json").read_text())
NAMES = ["tandem", "ray-default", "ray-serve", "ray-serve-deployment", "ray-serve-llm", "ray-train"]
UNITS = {"none", "short", "percentunit", "bytes", "Bps", "s", "h", "reqps"}
"""Grafana's words that ours use."""


def drawn() -> list[dict[str, Any]]:
    return [panel for panel in panels(tandem_dashboard()) if panel["type"] != "row"]


def test_rays_own_dashboards_come_from_the_installed_ray_and_one_is_ours():
    found = dashboards()
    assert list(found) == NAMES
    assert len({one["uid"] for one in found.values()}) == len(NAMES)
    assert all("rayVersion:2.60.0" in found[name]["tags"] for name in NAMES[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_has_what_grafana_needs(name: str):
    found = dashboards()[name]
    jsonschema.validate(found, SCHEMA)
    ids = Counter(panel["id"] for panel in panels(found))
    assert max(ids.values()) == 1
    # A ConfigMap holds 1 MiB.
    assert len(to_text(found)) < 1 << 20


def test_no_panel_of_ours_lies_upon_another_or_beyond_the_edge():
    places = [panel["gridPos"] for panel in panels(tandem_dashboard())]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_every_panel_of_ours_says_what_it_shows_and_in_which_unit():
    for panel in drawn():
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["description"].endswith(".")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["legendFormat"] for target in panel["targets"])


def test_every_query_of_ours_asks_the_chosen_cluster_of_the_chosen_prometheus():
    for panel in drawn():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            asked = metrics_of(filled(target["expr"]))
            assert target["expr"].count('ray_io_cluster=~"$cluster"') >= len(asked) >= 1, target["expr"]


def test_variables_that_queries_use_are_there():
    found = tandem_dashboard()
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(found["panels"])))
    assert used == {"datasource", "cluster", "price_per_gpu_hour"}
    assert used == {variable["name"] for variable in found["templating"]["list"]}


def test_prometheus_reads_every_query_of_every_dashboard(programs: Path, tmp_path: Path):
    asked = sorted({query for one in dashboards().values() for query in queries(one)})
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(asked)]
    file = tmp_path / "queries.yml"
    file.write_text(to_text({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([programs / "promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(asked) > 200


def test_cards_held_for_a_time_are_what_costs(programs: Path, tmp_path: Path):
    (panel,) = [panel for panel in drawn() if panel["title"] == "Cost by holder"]
    share = 'ray_tandem_share_fraction{ray_io_cluster="c",node_id="n",card="%s",holder="%s"}'
    case = {
        "interval": "1m",
        "input_series": [
            # Half a card for 30 minutes, then nothing; two cards all the time; memory without a card.
            {"series": share % ("0", "half"), "values": "0.5x29 0x60"},
            {"series": share % ("1", "two"), "values": "1x100"},
            {"series": share % ("2", "two"), "values": "1x100"},
            {"series": share % ("", "host"), "values": "1x100"},
        ],
        "promql_expr_test": [
            {
                "expr": filled(panel["targets"][0]["expr"]),
                "eval_time": "59m",
                "exp_samples": [
                    # 2.5 an hour: 15 minutes of a card, and 2 x 60 minutes.
                    {"labels": '{holder="half"}', "value": 0.625},
                    {"labels": '{holder="two"}', "value": 5},
                ],
            }
        ],
    }
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([programs / "promtool", "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_names_of_metrics_are_found_in_a_query():
    query = (
        'sum by (le) (rate(a_total{x="y{z"}[5m])) / on (app) b:c:sum > 0.5 and {__name__=~"d|e"} offset 5m'
    )
    assert metrics_of(query) == {"a_total", "b:c:sum", "d", "e"}
    used = {
        metric for group in rule_groups() for rule in group["rules"] for metric in metrics_of(rule["expr"])
    }
    assert {"up", "ray_tandem_share_over_bytes", "app:tandem_waiting_requests:sum"} < used


def test_the_command_writes_one_file_for_each(tmp_path: Path):
    assert CliRunner().invoke(monitoring, ["dashboards", "--out", str(tmp_path)]).exit_code == 0
    assert sorted(file.stem for file in tmp_path.iterdir()) == sorted(NAMES)
    assert json.loads((tmp_path / "tandem.json").read_text()) == tandem_dashboard()
