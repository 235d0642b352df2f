"""What works on trained networks: learners, scores, attacks, certificates and selection."""

from weathered.registry.entry import ARRIVING, CALIBRATION, DOMAINS, FEW, OOD, ROBUST, Entry

AFTERWARDS: tuple[Entry, ...] = (
    Entry(
        "ood-expansion-selection", "weathered.selection.ood_expansion_selection:ExpansionSelection", "selection",
        (DOMAINS,), "Ye, NeurIPS 2021", "Choose among runs by accuracy less how far features move between domains.",
    ),
    Entry(
        "acil", "weathered.incremental.acil:ACIL", "learner", (ARRIVING,),
        "Zhuang, NeurIPS 2022", "Recursive ridge regression on frozen features; equals joint training.",
    ),
    Entry(
        "tfh", "weathered.fewshot.tfh:TFH", "few-shot", (FEW,),
        "Lazarou, WACV 2022", "Generate more features of a new class from the mean of its few.",
    ),
    Entry(
        "smoothing", "weathered.certify.smoothing:RandomizedSmoothing", "certificate", (ROBUST,),
        "Cohen, ICML 2019", "A radius within which the smoothed prediction cannot change.", card="smoothmix",
    ),
    Entry(
        "linf-margin", "weathered.certify.linf_margin:LinfMargin", "certificate", (ROBUST,),
        "Zhang, ICML 2021", "A Linf radius from the margin of logits, for a network of Linf distances.",
        card="linf-distance-net",
    ),
    Entry(
        "interval-bounds", "weathered.certify.interval_bounds:IntervalBounds", "certificate", (ROBUST,),
        "Gowal, ICCV 2019", "Bounds of all logits over a box around the input, layer by layer.",
        card="linf-distance-net", claimed=False,
    ),
    Entry(
        "average-k", "weathered.sets.average_k:AverageK", "set", (CALIBRATION,),
        "Lorieul, arXiv 2021", "Sets of K labels on average: one threshold for all inputs, not K labels for each.",
    ),
    Entry(
        "msp", "weathered.scores.msp:MSP", "score", (OOD,),
        "Hendrycks, ICLR 2017", "One minus the largest softmax probability.", card="zode",
    ),
    Entry(
        "energy", "weathered.scores.energy:Energy", "score", (OOD,),
        "Liu, NeurIPS 2020", "Minus the log-sum-exp of the logits.", card="zode",
    ),
    Entry(
        "odin", "weathered.scores.odin:ODIN", "score", (OOD,),
        "Liang, ICLR 2018", "Tempered softmax after a small step towards the prediction.", card="zode",
    ),
    Entry(
        "mahalanobis", "weathered.scores.mahalanobis:Mahalanobis", "score", (OOD,),
        "Lee, NeurIPS 2018", "Distance of the features to the nearest class mean.", card="zode",
    ),
    Entry(
        "knn", "weathered.scores.knn:KNN", "score", (OOD,),
        "Sun, ICML 2022", "Distance of the features to their k-th neighbour in the training set.", card="zode",
    ),
    Entry(
        "gradnorm", "weathered.scores.gradnorm:GradNorm", "score", (OOD,),
        "Huang, NeurIPS 2021", "Minus the gradient norm of the divergence to the uniform label.", card="zode",
    ),
    Entry(
        "react", "weathered.scores.react:ReAct", "score", (OOD,),
        "Sun, NeurIPS 2021", "Energy after cutting large activations.", card="zode",
    ),
    Entry(
        "max-logit", "weathered.scores.max_logit:MaxLogit", "score", (OOD,),
        "Hendrycks, ICML 2022", "Minus the largest logit.",
    ),
    Entry(
        "gen", "weathered.scores.gen:GEN", "score", (OOD,),
        "Liu, CVPR 2023", "A generalised entropy of the largest probabilities.",
    ),
    Entry(
        "ash", "weathered.scores.ash:ASH", "score", (OOD,),
        "Djurisic, ICLR 2023", "Energy after most activations were set to 0 and the rest were changed.",
    ),
    Entry(
        "she", "weathered.scores.she:SHE", "score", (OOD,),
        "Zhang, ICLR 2023", "How little features resemble those of the predicted class in training.",
    ),
    Entry(
        "rmds", "weathered.scores.rmds:RMDS", "score", (OOD,),
        "Ren, 2021", "Mahalanobis distance to the nearest class, less that to all training data.",
    ),
    Entry(
        "vim", "weathered.scores.vim:ViM", "score", (OOD,),
        "Wang, CVPR 2022", "A virtual logit from what training features hardly use, against the real ones.",
    ),
    Entry(
        "outlier-class", "weathered.scores.outlier_class:OutlierClass", "score", (OOD,),
        "Hebbalaguppe, ECML-PKDD 2022", "Log-odds of the class of outliers, where a network was trained with one.",
        card="cnc-ood",
    ),
    Entry(
        "zode", "weathered.scores.zode:ZODE", "ensemble", (OOD,),
        "Xue, CVPR 2024", "Combine the scores of several models by p-values; keeps the acceptance rate.",
    ),
    Entry(
        "fgsm", "weathered.attacks.fgsm:FGSM", "attack", (ROBUST,),
        "Goodfellow, ICLR 2015", "One step of full length along the sign of the gradient.",
    ),
    Entry(
        "pgd", "weathered.attacks.pgd:PGD", "attack", (ROBUST,),
        "Madry, ICLR 2018", "Many small steps up the loss, each brought back into the budget.",
    ),
    Entry(
        "apgd-ce", "weathered.attacks.apgd:APGDCrossEntropy", "attack", (ROBUST,),
        "Croce, ICML 2020", "Steps with momentum up the cross entropy, whose size halves where it stops gaining.",
    ),
    Entry(
        "apgd-t", "weathered.attacks.apgd:APGDTargeted", "attack", (ROBUST,),
        "Croce, ICML 2020", "The same towards each of the likeliest wrong classes, on a ratio of logits.",
    ),
    Entry(
        "square", "weathered.attacks.square:Square", "attack", (ROBUST,),
        "Andriushchenko, ECCV 2020", "Random search by squares, which needs no gradient.",
    ),
    Entry(
        "astfocus", "weathered.attacks.astfocus:AstFocus", "attack", (ROBUST,),
        "Wei, TPAMI 2023", "Attack video clips by scores alone, in frames and squares that two agents learn to choose.",
    ),
    Entry(
        "random-focus", "weathered.attacks.random_focus:RandomFocus", "attack", (ROBUST,),
        "Wei, TPAMI 2023", "The same in frames and squares drawn at random.", card="astfocus",
    ),
    Entry(
        "nes", "weathered.attacks.nes:NES", "attack", (ROBUST,),
        "Ilyas, ICML 2018", "Follow a gradient estimated from scores at noisy inputs.", card="astfocus",
    ),
    Entry(
        "attack-ensemble", "", "attack", (ROBUST,),
        "Croce, ICML 2020", "Both kinds of APGD, then Square: AutoAttack without its FAB.",
        parts=("apgd-ce", "apgd-t", "square"),
    ),
)  # fmt: skip
