"""The order of the priority classes in a cluster: said by its environment, each class once."""

import pytest

from cluster.priority import CLASSES, priorities_env, priorities_here
from cluster.ray_start import ray_environment
from runtime.core.errors import ConfigError


def test_without_a_word_interactive_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TANDEM_PRIORITIES", raising=False)
    assert priorities_here() == CLASSES == ("interactive", "serving", "training", "batch")


def test_what_is_written_is_what_is_read(monkeypatch: pytest.MonkeyPatch):
    order = ("batch", "serving", "training", "interactive")
    for name, value in priorities_env(order).items():
        monkeypatch.setenv(name, value)
    assert priorities_here() == order


@pytest.mark.parametrize(
    "said", ["serving,training", "serving,serving,training,batch,interactive", "a,b,c,d"]
)
def test_an_order_that_leaves_out_a_class_keeps_the_cluster_from_starting(
    said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TANDEM_PRIORITIES", said)
    with pytest.raises(ConfigError, match=r"^TANDEM_PRIORITIES is .*each class once.*interactive, serving"):
        ray_environment("store")
