"""What somebody attached to an app, and what replicas say, comes back from the store as it was put there."""

from __future__ import annotations

import pytest

from runtime.core.errors import ConfigError
from storage import attached
from storage.store import Store


def test_the_last_word_on_a_name_counts_and_other_apps_do_not_hear_it(store: Store):
    attached.attach(store, "app", "helper", "helper/v1")
    attached.attach(store, "app", "helper", "helper/v2")
    attached.detach(store, "app", "poet")
    found = attached.listing(store, "app")
    assert {name: one.model for name, one in found.items()} == {"helper": "helper/v2", "poet": None}
    assert attached.listing(store, "app-2") == {}


def test_a_name_left_to_the_spec_again_is_no_attachment(store: Store):
    attached.attach(store, "app", "helper", "helper/v1")
    attached.put_back(store, "app", "helper", None)
    assert attached.listing(store, "app") == {}


def test_a_name_that_leads_out_of_its_folder_is_refused(store: Store):
    with pytest.raises(ConfigError, match=r"the adapter is '\.\./x'"):
        attached.attach(store, "app", "../x", "helper")


def test_replicas_tell_and_an_app_that_is_gone_leaves_nothing(store: Store):
    attached.report(store, "app", "r1", {"adapters": {"helper": {"version": "helper/v1"}}})
    attached.report(store, "app", "r2", {"adapters": {}})
    attached.report(store, "other", "r9", {})
    attached.withdraw(store, "app", "r2")
    assert attached.reports(store, "app") == {"r1": {"adapters": {"helper": {"version": "helper/v1"}}}}
    attached.attach(store, "app", "helper", "helper/v1")
    attached.clear(store, "app")
    assert attached.listing(store, "app") == {} == attached.reports(store, "app")
    assert list(attached.reports(store, "other")) == ["r9"]
