"""Data makers: known flaws put into a data set, the exact truth kept beside them; one file each."""
