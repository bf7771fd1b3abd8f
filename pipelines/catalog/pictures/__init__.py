"""From a reference to pixels: fetching under address rules, decoding at the tower's size, both ahead of the model."""
