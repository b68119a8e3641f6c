"""Two runs side by side: differing fields, last figures, one picture."""

from __future__ import annotations

import json

import pandas
import pytest

from runtime.compare import compare
from runtime.core.errors import ConfigError
from runtime.run import Run
from storage.runs import RunFolder
from tests.runtime.conftest import SPEC, Command, MakeRun, log_steps


@pytest.fixture
def other(make_run: MakeRun) -> RunFolder:
    """A run like ``recovered`` with another learning rate and one worker, half as far, without evaluation."""
    arguments = {**SPEC["llamafactory"], "learning_rate": 0.01, "cutoff_len": 64}  # type: ignore[dict-item]
    run = make_run(llamafactory=arguments, scaling={"num_workers": 1})
    log_steps(run, 1, 16, loss=16.0)
    run.write_result({"status": "stopped", "error": "stopped on request, with a checkpoint at step 16"})
    return run


def test_differing_fields_and_last_figures_as_json(tandem: Command, recovered: RunFolder, other: RunFolder):
    a, b = recovered.run_id, other.run_id
    rows = json.loads(tandem("runs", "compare", a, b, "--json").stdout)
    spec = {row["name"]: (row[a], row[b]) for row in rows if row["what"] == "spec"}
    assert spec == {
        "llamafactory.learning_rate": (0.005, 0.01),
        "llamafactory.cutoff_len": (None, 64),
        "scaling.num_workers": (2, 1),
    }
    metrics = {row["name"]: (row[a], row[b]) for row in rows if row["what"] == "metric"}
    assert metrics["loss"] == (0.2, 1.0)
    assert metrics["eval_loss"] == (0.75, None)
    assert metrics["best_loss"] == (0.2, 1.0), "eval_loss is no measure where only one was evaluated"
    assert metrics["tokens_per_s"] == (1020.5, 1008.5)
    assert metrics["wall_time_s"] == (99.0, None)
    assert "mfu" not in metrics


def test_the_terminal_shows_letters_tables_and_curves(
    tandem: Command, recovered: RunFolder, other: RunFolder
):
    shown = tandem("runs", "compare", recovered.run_id, other.run_id).stdout
    for said in (recovered.run_id, other.run_id, "llamafactory.learning_rate", "best_loss", "loss of A, B"):
        assert said in shown, said
    picture = shown[shown.index("loss of A, B") :]
    assert picture.count("A") > 10
    assert picture.count("B") > 10


def test_a_notebook_gets_a_table_and_one_figure(recovered: RunFolder, other: RunFolder):
    found = compare(Run(recovered), Run(other))
    table = pandas.DataFrame(found.table()).set_index("name")
    assert table.loc["step", other.run_id] == 16
    assert [line.get_label() for line in found.plot().axes[0].lines] == [
        f"{recovered.run_id} loss", f"{recovered.run_id} eval_loss", f"{other.run_id} loss",
    ]  # fmt: skip
    assert found._repr_html_().count("<img") == 1


def test_one_run_is_not_compared_with_itself(tandem: Command, recovered: RunFolder):
    for words in ([recovered.run_id], ["poems", recovered.run_id]):
        assert "Name two or more that differ" in tandem("runs", "compare", *words, code=2).stderr
    with pytest.raises(ConfigError, match="none"):
        compare()
