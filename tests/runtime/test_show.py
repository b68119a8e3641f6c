"""`tandem runs show`: where a run stands, what it kept and how often it was taken up."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

from runtime.progress import follow, watch
from runtime.run import Run
from runtime.run_report import report
from runtime.run_view import attempt_rows, view
from runtime.show import loss_curve
from storage.runs import RunFolder
from tests.conftest import wait_for
from tests.runtime.conftest import BEGAN_AT, Command, MakeRun, log_steps


def test_a_run_is_shown_with_all_that_is_known_of_it(tandem: Command, recovered: RunFolder):
    shown = tandem("runs", "show", recovered.run_id).stdout
    for said in (
        f"{recovered.run_id}  SUCCEEDED",
        "deepspeed=zero2",
        "num_workers=2",
        "40/40   epoch 4.00",
        "0.2000   eval_loss 0.7500   learning rate 0.001   grad norm 0.5",
        "1,040 tokens/s   32.0 samples/s   0.25 s a step",
        "memory peak 2.0 GB   saves blocked training for 5.0 s",
        "poems/v1",
        "loss (e: eval_loss)",
        "1.5 MB",
        "eval_loss 0.75",
        "a worker was killed (SIGKILL)",
        "17.5 s",
    ):
        assert said in shown, said
    assert "MFU" not in shown, "what was never logged is not shown"


def test_the_same_as_json_by_the_run_s_name(tandem: Command, recovered: RunFolder):
    told = json.loads(tandem("runs", "show", "poems", "--json").stdout)
    assert (told["run_id"], told["status"], told["model"]) == (recovered.run_id, "SUCCEEDED", "poems/v1")
    assert told["standing"]["tokens_per_s"] == 1040.0
    assert told["standing"]["memory_peak_bytes"] == 1_999_999_999, "the largest of all lines"
    assert told["standing"]["checkpoint_stall_s"] == 40 * 0.125, "the sum of all lines"
    assert [(one["step"], one["size_bytes"]) for one in told["checkpoints"]] == [(20, 1500000), (40, 1500000)]
    assert [one["recovery_s"] for one in told["attempts"] if "recovery_s" in one] == [17.5]
    assert [(row["step"], row["eval_loss"]) for row in told["evaluations"]] == [(20, 0.75)]
    assert len(told["metrics"]) == 41


def test_a_run_that_has_just_begun_is_shown_too(tandem: Command, make_run: MakeRun):
    run = make_run(deepspeed={"zero_optimization": {"stage": 2}})
    run.set_waiting("room for 2 workers; 1 would fit")
    run.update_record(dashboard_url="http://192.0.2.1:1")
    run.write_result({"status": "failed", "error": "not submitted: the cluster is away"})
    shown = tandem("runs", "show", run.run_id).stdout
    assert "not submitted: the cluster is away" in shown
    assert "deepspeed=inline" in shown
    assert "waiting for" not in shown, "what has ended waits for nothing"


def test_runs_are_listed_as_before(tandem: Command, make_run: MakeRun):
    first, other = make_run(), make_run(name="other")
    for run in (first, other):
        log_steps(run, 1, 4)
        run.metrics_log().append({"step": 4, "max_steps": 40, "eval_loss": 3.0})
        run.write_result({"status": "stopped", "error": "stopped on request, with a checkpoint at step 4"})
    listed = json.loads(tandem("runs", "--json").stdout)
    assert [(row["run_id"], row["status"], row["loss"]) for row in listed] == [
        (first.run_id, "STOPPED", 2.0),
        (other.run_id, "STOPPED", 2.0),
    ]
    assert [row["run_id"] for row in json.loads(tandem("runs", "other", "--json").stdout)] == [other.run_id]
    assert "Did you mean" in tandem("runs", "show", f"{other.run_id}x", code=2).stderr


def test_follow_and_json_do_not_go_together(tandem: Command, recovered: RunFolder):
    assert "leave out --follow" in tandem("runs", "show", recovered.run_id, "-f", "--json", code=2).stderr


def test_a_live_picture_is_drawn_again_until_the_run_ends(make_run: MakeRun, recovered: RunFolder):
    """On a terminal: first the run as it stands, later what has come since."""
    run = make_run()
    run.update_record(dashboard_url="http://192.0.2.1:1")
    log_steps(run, 1, 2)
    drawn = io.StringIO()
    # A run of a cluster that does not answer is UNKNOWN: it is watched on.
    run.update_record(dashboard_url="http://localhost:9")
    console = Console(file=drawn, force_terminal=True, width=100, height=40)
    thread = threading.Thread(target=watch, args=(Run(run), console))
    thread.start()
    wait_for(lambda: "2/40" in drawn.getvalue(), "the first picture", 20)
    log_steps(run, 3, 7)
    wait_for(lambda: "7/40" in drawn.getvalue(), "the next picture", 20)
    run.write_result({"status": "stopped", "error": "stopped on request, with a checkpoint at step 7"})
    thread.join(20)
    assert not thread.is_alive()


def test_a_picture_for_the_screen_has_the_newest_rows_only(recovered: RunFolder):
    for number in range(3, 9):
        recovered.write_attempt(number, "began", began_at=BEGAN_AT, num_workers=2, from_step=number * 11)
    console = Console(file=io.StringIO(), width=120)
    console.print(view(report(Run(recovered)), most_rows=2))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("77" in shown, "88" in shown, "66" in shown) == (True, True, False)


def test_the_bar_tells_of_waiting_and_of_recoveries(make_run: MakeRun):
    run = make_run()
    run.set_waiting("room for 2 workers; 1 would fit")
    run.update_record(dashboard_url="http://localhost:9")
    run.write_attempt(1, "began", attempt=1, began_at=BEGAN_AT, num_workers=2, from_step=0)
    drawn = io.StringIO()
    ended: list[Exception] = []

    def watched() -> None:
        try:
            follow(Run(run), Console(file=drawn, force_terminal=True, width=160))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=watched)
    thread.start()
    wait_for(lambda: "waiting for room for 2 workers; 1 would fit" in drawn.getvalue(), "the waiting", 20)
    run.set_waiting(None)
    run.write_attempt(1, "first-step", first_step_at=BEGAN_AT + 1)
    run.write_attempt(1, "ended", ended="failed", ended_at=BEGAN_AT + 9, reason="a node was lost", step=4)
    wait_for(lambda: "recovering" in drawn.getvalue(), "the loss", 20)
    run.write_attempt(2, "began", attempt=2, began_at=BEGAN_AT + 10, num_workers=2, from_step=4)
    run.write_attempt(2, "first-step", first_step_at=BEGAN_AT + 21, recovery_s=12.0)
    log_steps(run, 1, 6)
    wait_for(lambda: "1,006 tokens/s" in drawn.getvalue(), "the speed", 20)
    wait_for(lambda: "recovered from step 4 in 12 s (a node was lost)" in drawn.getvalue(), "the news", 20)
    run.write_result({"status": "stopped", "error": "stopped on request, with a checkpoint at step 6"})
    thread.join(20)
    assert not thread.is_alive()
    assert f"Go on with: tandem train --resume {run.run_id}" in str(ended[0])


def test_a_loss_curve_marks_evaluations():
    lines = [{"step": step, "loss": 8.0 / step} for step in range(1, 30)]
    assert "e" not in loss_curve(lines).replace("step", "")
    assert "loss (e: eval_loss)" in loss_curve([*lines, {"step": 20, "eval_loss": 4.0}])
    assert loss_curve([]) == ""


@pytest.mark.parametrize("what", ["plot", "html"])
def test_a_notebook_gets_figures(recovered: RunFolder, what: str, tmp_path: Path):
    run = Run(recovered)
    if what == "html":
        assert run._repr_html_().count("<img") == 1
        return
    loss, eval_loss = run.plot().axes[0].lines
    assert list(loss.get_xdata()) == list(range(1, 41))
    assert list(eval_loss.get_ydata()) == [0.75]


def test_an_attempt_that_never_said_how_it_ended_was_cut_off_but_for_the_one_that_goes_on():
    attempts = [{"num_workers": 2}, {"num_workers": 2, "ended": "failed"}, {"num_workers": 1}]
    living = attempt_rows(attempts, goes_on=True)
    assert [row["ended"] for row in living] == ["cut off", "failed", "goes on"]
    assert attempt_rows(attempts, goes_on=False)[-1]["ended"] == "cut off"
