"""The ledger of TFH: the generator has learnt what it was trained for, whatever that does to the classifier."""

from statistics import fmean

from weathered.fewshot.classifiers import LOGISTIC
from weathered.ledger import read_ledger


def test_the_generator_has_learnt_and_fine_tuning_brings_it_near_the_baseline():
    record = read_ledger("tfh")
    assert record is not None
    (error,) = (also["values"] for also in record["also"] if also["metric"].startswith("error of generated features"))
    assert all(value < 0.25 for arm in ("tfh", "tfh (vectors)") for value in error[arm])
    values = record["values"]
    assert all(tuned > plain for tuned, plain in zip(values["tfh-ft"], values["tfh"], strict=True))
    assert fmean(values["tfh-ft"]) >= fmean(values[LOGISTIC]) - 0.03
