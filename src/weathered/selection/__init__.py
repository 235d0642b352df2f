"""Rules that choose one of several finished models without looking at the data it is meant for."""
