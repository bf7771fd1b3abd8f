"""The trials in short: a few of each kind, with another seed than the long ones."""

from __future__ import annotations

import pytest

from tests.reliability import addresses, catalogs, images, store, versions

SEED = 3


@pytest.mark.parametrize(
    ("run", "trials"),
    [(addresses.run, 400), (catalogs.run, 8), (images.run, 100), (store.run, 80), (versions.run, 100)],
    ids=["addresses", "catalogs", "images", "store", "versions"],
)
def test_no_trial_is_lost(run, trials: int) -> None:
    outcomes = run(trials, SEED)
    assert outcomes.losses == []
    assert outcomes.trials >= trials
