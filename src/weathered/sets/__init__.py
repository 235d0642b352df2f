"""Sets of labels instead of one label, and what can be measured of them."""
