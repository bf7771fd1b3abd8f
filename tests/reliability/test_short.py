"""The trials in short: a few of each kind, with another seed than the long ones."""

from __future__ import annotations

import pytest

from tests.reliability import addresses, catalogs, images, store, versions

SEED = 3


@pytest.mark.parametrize(
    ("run", "trials"),
    [(addresses.run, 300), (catalogs.run, 5), (images.run, 60), (store.run, 50), (versions.run, 50)],
    ids=["addresses", "catalogs", "images", "store", "versions"],
)
def test_no_trial_is_lost(run, trials: int) -> None:
    outcomes = run(trials, SEED)
    assert outcomes.losses == []
    assert outcomes.trials >= trials
