"""Attacks: small changes of inputs, chosen to change what a network says."""
