"""Wrong labels: found from out-of-sample probabilities, duplicates, several annotators, or training dynamics."""

from weathered.audit.labels.annotators import annotator_quality, dawid_skene, krippendorff_alpha, majority_vote
from weathered.audit.labels.audit import audit_labels
from weathered.audit.labels.confident import confident_learning
from weathered.audit.labels.duplicates import exact_duplicates, near_duplicates
from weathered.audit.labels.folds import out_of_sample_probabilities
from weathered.audit.labels.issues import find_issues, issues_of
from weathered.audit.labels.neighbours import nearest_neighbours
from weathered.audit.labels.noise import estimate_noise
from weathered.audit.labels.quality import label_quality
from weathered.audit.labels.trajectory import (
    area_under_margin,
    margin_threshold,
    margins,
    mean_loss_score,
    neighbour_agreement,
    two_networks,
)

__all__ = [
    "annotator_quality",
    "area_under_margin",
    "audit_labels",
    "confident_learning",
    "dawid_skene",
    "estimate_noise",
    "exact_duplicates",
    "find_issues",
    "issues_of",
    "krippendorff_alpha",
    "label_quality",
    "majority_vote",
    "margin_threshold",
    "margins",
    "mean_loss_score",
    "near_duplicates",
    "nearest_neighbours",
    "neighbour_agreement",
    "out_of_sample_probabilities",
    "two_networks",
]
