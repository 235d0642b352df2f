"""The table of all methods: name, where it lives, which slot it fills, what it is for. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One method.

    slug: its name on the command line. path: module and class. slot: the contract it fills.
    problems: what it is for. paper: first author, venue, year. summary: one line. card: the method it belongs to,
    where a method has several parts. parts: for a bundle, the slugs it stands for. defaults: for a bundle, options that
    its parts are given where a user says nothing. claimed: whether the claim of `card` is about this part, too.
    """

    slug: str
    path: str
    slot: str
    problems: tuple[str, ...]
    paper: str
    summary: str
    card: str = ""
    parts: tuple[str, ...] = ()
    defaults: tuple[tuple[str, float], ...] = ()
    claimed: bool = True

    @property
    def class_name(self) -> str:
        return self.path.partition(":")[2]

    @property
    def claim(self) -> str:
        """The slug of the claim that says what was measured of it."""
        return self.card if self.card and self.claimed else self.slug


NOISE, TAIL, MIX, OOD, ROBUST, CALIBRATION, ARRIVING, FEW, DOMAINS = (
    "noisy-labels",
    "long-tail",
    "mixing",
    "ood",
    "robustness",
    "calibration",
    "new-classes",
    "few-shot",
    "new-domains",
)

PROBLEMS = {
    NOISE: "some labels are wrong",
    TAIL: "some classes are rare",
    MIX: "more and smoother training data by mixing samples",
    OOD: "inputs unlike the training data must be recognised",
    ROBUST: "inputs may be corrupted or chosen by an attacker",
    CALIBRATION: "confidence must mean something",
    ARRIVING: "classes arrive later",
    FEW: "new classes come with a few samples each",
    DOMAINS: "the model is meant for places that its training data do not come from",
}

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "cross-entropy", "weathered.losses.cross_entropy:CrossEntropy", "loss", (),
        "textbook", "Negative log-likelihood of the label; the baseline.",
    ),
    Entry(
        "label-smoothing", "weathered.losses.cross_entropy:LabelSmoothing", "loss", (CALIBRATION, NOISE),
        "Szegedy, CVPR 2016", "Cross entropy against a label softened towards uniform.",
    ),
    Entry(
        "logitclip", "weathered.losses.logitclip:LogitClip", "loss", (NOISE,),
        "Wei, ICML 2023", "Cap the norm of the logits, so that a wrong label's loss is bounded.",
    ),
    Entry(
        "logitnorm", "weathered.losses.logitnorm:LogitNorm", "loss", (OOD,),
        "Wei, ICML 2022", "Give all logits one norm in training, so that unknown inputs stand out.",
    ),
    Entry(
        "alpha-loss", "weathered.losses.alpha_loss:AlphaLoss", "loss", (NOISE, TAIL),
        "Sypherd, TIT 2022", "One knob from exponential loss over cross entropy to one minus the probability.",
    ),
    Entry(
        "gce", "weathered.losses.gce:GeneralizedCrossEntropy", "loss", (NOISE,),
        "Zhang, NeurIPS 2018", "Between cross entropy and one minus the probability of the label.",
    ),
    Entry(
        "symmetric-cross-entropy", "weathered.losses.symmetric_cross_entropy:SymmetricCrossEntropy", "loss", (NOISE,),
        "Wang, ICCV 2019", "Cross entropy plus itself with label and prediction exchanged.",
    ),
    Entry(
        "focal", "weathered.losses.focal:Focal", "loss", (TAIL, CALIBRATION),
        "Lin, ICCV 2017", "Cross entropy that counts less where the label is predicted well already.",
    ),
    Entry(
        "softmax-binary-cross-entropy",
        "weathered.losses.softmax_binary_cross_entropy:SoftmaxBinaryCrossEntropy", "loss", (MIX,),
        "Verma, ICML 2019", "Each class asked by itself on softmax probabilities.", card="manifold-mixup",
        claimed=False,
    ),
    Entry(
        "forward-correction", "weathered.losses.forward_correction:ForwardCorrection", "loss", (NOISE,),
        "Patrini, CVPR 2017", "Pass predictions through the known label noise before the loss.",
    ),
    Entry(
        "ldam", "weathered.losses.ldam:LDAM", "loss", (TAIL,),
        "Cao, NeurIPS 2019", "Larger margins for rarer classes, on a cosine head.", card="ldam-drw",
    ),
    Entry(
        "logit-adjustment", "weathered.losses.logit_adjustment:LogitAdjustment", "loss", (TAIL,),
        "Menon, ICLR 2021", "Add the log of the class prior to the logits in training.",
    ),
    Entry(
        "vs-loss", "weathered.losses.vs_loss:VSLoss", "loss", (TAIL,),
        "Kini, NeurIPS 2021", "Scale and shift the logits of each class by how frequent it is.",
    ),
    Entry(
        "group-vs-loss", "weathered.losses.vs_loss:GroupVSLoss", "loss", (TAIL,),
        "Kini, NeurIPS 2021", "Scale and shift the logits of each group of samples by its size.", card="vs-loss",
        claimed=False,
    ),
    Entry(
        "bayias", "weathered.losses.bayias:Bayias", "loss", (TAIL, CALIBRATION),
        "Xu, NeurIPS 2021", "Add the log-ratio of training and test prior to the logits in training.",
        card="unimix-bayias",
    ),
    Entry(
        "unimix", "weathered.mixing.unimix:UniMix", "transform", (TAIL, MIX),
        "Xu, NeurIPS 2021", "Mixup with partners and shares that lean to rare classes.", card="unimix-bayias",
    ),
    Entry(
        "unimix-bayias", "", "bundle", (TAIL, CALIBRATION),
        "Xu, NeurIPS 2021", "UniMix trained with the Bayias loss.", parts=("unimix", "bayias"),
    ),
    Entry(
        "drw", "weathered.weighting.drw:DRW", "reweight", (TAIL,),
        "Cao, NeurIPS 2019", "Class weights that switch on late in training.", card="ldam-drw",
    ),
    Entry(
        "ldam-drw", "", "bundle", (TAIL,),
        "Cao, NeurIPS 2019", "LDAM margins with deferred re-weighting.", parts=("ldam", "drw"),
    ),
    Entry(
        "class-balanced", "weathered.weighting.class_balanced:ClassBalanced", "reweight", (TAIL,),
        "Cui, CVPR 2019", "Class weights by the effective number of samples.",
    ),
    Entry(
        "class-balanced-sampling", "weathered.weighting.class_balanced_sampling:ClassBalancedSampling", "sampler",
        (TAIL,), "Kang, ICLR 2020", "Draw all classes alike, or by a power of their sizes such as the square root.",
    ),
    Entry(
        "progressive-sampling", "weathered.weighting.progressive_sampling:ProgressiveSampling", "sampler", (TAIL,),
        "Kang, ICLR 2020", "From rows as they are to all classes alike, over the training.",
    ),
    Entry(
        "cdb", "weathered.weighting.cdb:CDB", "reweight", (TAIL,),
        "Sinha, IJCV 2022", "Class weights by the present errors on validation data.",
    ),
    Entry(
        "cdb-sampling", "weathered.weighting.cdb_sampling:CDBSampling", "sampler", (TAIL,),
        "Sinha, IJCV 2022", "Draw classes by their present errors on validation data.", card="cdb",
    ),
    Entry(
        "absgd", "weathered.weighting.absgd:ABSGD", "reweight", (NOISE, TAIL),
        "Qi, TMLR 2023", "Weight samples by exp(loss / temperature) against a running average.",
    ),
    Entry(
        "mixup", "weathered.mixing.mixup:MixUp", "transform", (MIX, NOISE),
        "Zhang, ICLR 2018", "Blend pairs of inputs and their labels.",
    ),
    Entry(
        "cutmix", "weathered.mixing.cutmix:CutMix", "transform", (MIX,),
        "Yun, ICCV 2019", "Paste a box of another image; labels by the share of pixels.",
    ),
    Entry(
        "fmix", "weathered.mixing.fmix:FMix", "transform", (MIX,),
        "Harris, arXiv 2020", "Paste a random shape of another image; labels by the share of pixels.",
    ),
    Entry(
        "resizemix", "weathered.mixing.resizemix:ResizeMix", "transform", (MIX,),
        "Qin, arXiv 2020", "Paste a whole small copy of another image; labels by the share of pixels.",
    ),
    Entry(
        "mixgen", "weathered.mixing.mixgen:MixGen", "transform", (MIX,),
        "Hao, WACV 2023 Workshops", "Blend the images of two pairs and join their captions.",
    ),
    Entry(
        "one-of", "weathered.mixing.one_of:OneOf", "transform", (MIX,),
        "textbook", "One of several transforms for each batch, drawn by weight.",
    ),
    Entry(
        "crop-flip", "weathered.augment.crop_flip:CropFlip", "transform", (MIX,),
        "textbook", "Random crops after padding, and horizontal flips.",
    ),
    Entry(
        "rand-augment", "weathered.augment.rand_augment:RandAugment", "transform", (MIX,),
        "Cubuk, NeurIPS 2020", "A few random operations on each image, all at one magnitude.",
    ),
    Entry(
        "trivial-augment", "weathered.augment.trivial_augment:TrivialAugment", "transform", (MIX,),
        "Müller, ICCV 2021", "One random operation at a random strength on each image.",
    ),
    Entry(
        "random-erasing", "weathered.augment.random_erasing:RandomErasing", "transform", (MIX,),
        "Zhong, AAAI 2020", "Overwrite a random rectangle of each image.",
    ),
    Entry(
        "supervised", "weathered.procedures.supervised:Supervised", "procedure", (),
        "textbook", "Plain training on the given labels.",
    ),
    Entry(
        "jocor", "weathered.procedures.jocor:JoCoR", "procedure", (NOISE,),
        "Wei, CVPR 2020", "Two networks that agree, trained on the samples of small joint loss.",
    ),
    Entry(
        "co-teaching", "weathered.procedures.co_teaching:CoTeaching", "procedure", (NOISE,),
        "Han, NeurIPS 2018", "Two networks, each trained on the samples of small loss for the other.",
    ),
    Entry(
        "self-adaptive-training", "weathered.procedures.self_adaptive_training:SelfAdaptiveTraining", "procedure",
        (NOISE,), "Huang, NeurIPS 2020", "Replace labels by a running average of the network's own predictions.",
    ),
    Entry(
        "selective", "weathered.procedures.selective_classification:SelectiveClassification", "procedure", (NOISE,),
        "Huang, NeurIPS 2020", "Learn to abstain where the network's predictions contradict the labels.",
    ),
    Entry(
        "self-adaptive-trades", "weathered.procedures.self_adaptive_trades:SelfAdaptiveTrades", "procedure",
        (ROBUST,), "Huang, NeurIPS 2020", "Adversarial training by TRADES, with targets that follow the network.",
    ),
    Entry(
        "self-adaptive-self-supervised",
        "weathered.procedures.self_adaptive_self_supervised:SelfAdaptiveSelfSupervised", "procedure", (),
        "Huang, TPAMI 2022", "Experimental: features without labels, from one averaged target for each image.",
    ),
    Entry(
        "automix", "weathered.procedures.automix:AutoMix", "procedure", (MIX,),
        "Liu, ECCV 2022", "Learn the mixing mask together with the classifier.",
    ),
    Entry(
        "manifold-mixup", "weathered.procedures.manifold_mixup:ManifoldMixup", "procedure", (MIX,),
        "Verma, ICML 2019", "Blend hidden states of pairs, at a layer drawn for each batch.",
    ),
    Entry(
        "multimix", "weathered.procedures.multimix:MultiMix", "procedure", (MIX,),
        "Venkataramanan, NeurIPS 2023", "Many mixtures of a batch's embeddings for one pass through the network.",
    ),
    Entry(
        "smoothmix", "weathered.procedures.smoothmix:SmoothMix", "procedure", (ROBUST,),
        "Jeong, NeurIPS 2021", "Noise training that flattens over-confident directions, for certified robustness.",
    ),
    Entry(
        "linf-distance-net", "weathered.procedures.linf_distance_net:LinfDistanceNet", "procedure", (ROBUST,),
        "Zhang, ICLR 2022", "Train a network of Linf distances, whose margins prove what no attack can change.",
    ),
    Entry(
        "classifier-retraining", "weathered.procedures.classifier_retraining:ClassifierRetraining", "procedure",
        (TAIL,), "Kang, ICLR 2020", "Late in training the classifier learns alone, on features that stand still.",
    ),
    Entry(
        "crt", "", "bundle", (TAIL,), "Kang, ICLR 2020",
        "The classifier learns alone at the end, from classes drawn alike.",
        parts=("classifier-retraining", "class-balanced-sampling"), defaults=(("start", 0.8),),
    ),
    Entry(
        "tau-normalisation", "weathered.procedures.tau_normalisation:TauNormalisation", "procedure", (TAIL,),
        "Kang, ICLR 2020", "Predict with class vectors of one length.",
    ),
    Entry(
        "ladc", "weathered.procedures.ladc:LADC", "procedure", (TAIL,),
        "Wang, arXiv 2021", "Late in training the classifier learns alone, on features drawn for rare classes.",
    ),
    Entry(
        "temperature-scaling", "weathered.procedures.temperature_scaling:TemperatureScaledTraining", "procedure",
        (CALIBRATION,), "Guo, ICML 2017", "Divide the logits by one number, fitted on validation data.",
    ),
    Entry(
        "risda", "weathered.procedures.risda:RISDA", "procedure", (TAIL,),
        "Chen, AAAI 2022", "Augment features in closed form by what confusable classes vary in.",
    ),
    Entry(
        "distillation", "weathered.procedures.distillation:Distillation", "procedure", (),
        "Hinton, arXiv 2015", "Learn from labels and from the softened predictions of a trained run.",
        card="bag-of-tricks", claimed=False,
    ),
    Entry(
        "odnl", "weathered.procedures.odnl:ODNL", "procedure", (NOISE, OOD),
        "Wei, NeurIPS 2021", "Images of no class under fresh random labels in every step.",
    ),
    Entry(
        "open-sampling", "weathered.procedures.open_sampling:OpenSampling", "procedure", (TAIL,),
        "Wei, ICML 2022", "Images of no class under labels drawn against the class sizes.",
    ),
    Entry(
        "cnc-ood", "weathered.procedures.cnc_ood:CnC", "procedure", (OOD,),
        "Hebbalaguppe, ECML-PKDD 2022", "One more class, of outliers made by CutMix and a corruption.",
    ),
    Entry(
        "contrastive", "weathered.procedures.contrastive:Contrastive", "procedure", (),
        "Radford, ICML 2021", "Images and captions are embedded so that those of a pair lie close together.",
        card="mixgen", claimed=False,
    ),
    Entry(
        "area-under-margin", "weathered.terms.area_under_margin:AreaUnderMargin", "term", (NOISE,),
        "Pleiss, NeurIPS 2020", "Record how far each label led the other classes while it was trained on.",
    ),
    Entry(
        "cals", "weathered.terms.cals:CALS", "term", (CALIBRATION, TAIL),
        "Liu, CVPR 2023", "Penalise logits far below the largest, by weights of the classes learned on held-out data.",
    ),
    Entry(
        "center-collapse", "weathered.terms.center_collapse:CenterCollapse", "term", (TAIL,),
        "Zhong, CVPR 2023", "Pull the class means of each batch towards the vertices of a simplex.",
    ),
    Entry(
        "linear-scaling", "weathered.tricks.linear_scaling:LinearScaling", "trick", (),
        "Goyal, arXiv 2017", "The learning rate in proportion to the batch.", card="bag-of-tricks",
    ),
    Entry(
        "warm-up", "weathered.tricks.warm_up:WarmUp", "trick", (),
        "Goyal, arXiv 2017", "The learning rate rises linearly at the start.", card="bag-of-tricks",
    ),
    Entry(
        "cosine", "weathered.tricks.cosine:CosineDecay", "trick", (),
        "Loshchilov, ICLR 2017", "The learning rate falls along half a cosine to 0.", card="bag-of-tricks",
    ),
    Entry(
        "no-bias-decay", "weathered.tricks.no_bias_decay:NoBiasDecay", "trick", (),
        "Jia, arXiv 2018", "Weight decay spares biases and normalisation.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "zero-gamma", "weathered.tricks.zero_gamma:ZeroGamma", "trick", (),
        "Goyal, arXiv 2017", "Every residual block starts as its shortcut.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "low-precision", "weathered.tricks.low_precision:LowPrecision", "trick", (),
        "Micikevicius, ICLR 2018", "Passes in bfloat16, weights and updates in float32.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "resnet-b", "weathered.tricks.resnet_variants:ResNetB", "trick", (),
        "He, CVPR 2019", "Residual branches halve in their 3x3 convolution.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "resnet-c", "weathered.tricks.resnet_variants:ResNetC", "trick", (),
        "He, CVPR 2019", "ResNet-B with three 3x3 convolutions as its stem.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "resnet-d", "weathered.tricks.resnet_variants:ResNetD", "trick", (),
        "He, CVPR 2019", "ResNet-C whose shortcuts average before they halve.", card="bag-of-tricks",
        claimed=False,
    ),
    Entry(
        "bag-of-tricks", "", "bundle", (),
        "He, CVPR 2019", "The refinements of settings, network, labels and batches that go together.",
        parts=(
            "linear-scaling", "warm-up", "cosine", "no-bias-decay", "zero-gamma", "resnet-d", "label-smoothing",
            "mixup",
        ),
        defaults=(("alpha", 0.2),),
    ),
    Entry(
        "plain", "weathered.steppers.plain:Plain", "stepper", (),
        "textbook", "One backward pass, one optimizer step.",
    ),
    Entry(
        "susceptibility", "weathered.audit.susceptibility:Susceptibility", "probe", (NOISE,),
        "Forouzesh, ICLR 2023", "Watch how readily the network would fit random labels, epoch by epoch.",
    ),
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
        "outlier-exposure", "weathered.procedures.outlier_exposure:OutlierExposure", "procedure", (OOD,),
        "Hendrycks, ICLR 2019", "Uniform predictions on images of none of the classes.",
    ),
    Entry(
        "pgd-training", "weathered.procedures.pgd_training:PGDTraining", "procedure", (ROBUST,),
        "Madry, ICLR 2018", "Attack each batch by PGD and train on what it finds.",
    ),
    Entry(
        "trades", "weathered.procedures.trades:Trades", "procedure", (ROBUST,),
        "Zhang, ICML 2019", "The usual loss, plus how far an attacker can drive predictions from the clean ones.",
    ),
    Entry(
        "large-decay", "weathered.tricks.large_decay:LargeDecay", "trick", (ROBUST,),
        "Debenedetti, SaTML 2023", "A decoupled weight decay of 0.5, ten times the usual.", card="robust-vit-recipe",
        claimed=False,
    ),
    Entry(
        "robust-vit-recipe", "", "bundle", (ROBUST,),
        "Debenedetti, SaTML 2023", "One-step adversarial training with a rising budget, smoothing and a large decay.",
        parts=("pgd-training", "label-smoothing", "large-decay", "no-bias-decay"),
        defaults=(("steps", 1), ("reach", 1.5), ("warm_up", 0.1)),
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
        "attack-ensemble", "", "attack", (ROBUST,),
        "Croce, ICML 2020", "Both kinds of APGD, then Square: AutoAttack without its FAB.",
        parts=("apgd-ce", "apgd-t", "square"),
    ),
    Entry(
        "symmetric", "weathered.data.makers.symmetric_noise:SymmetricNoise", "maker", (NOISE,),
        "textbook", "Wrong labels, uniform over the other classes.",
    ),
    Entry(
        "asymmetric", "weathered.data.makers.asymmetric_noise:AsymmetricNoise", "maker", (NOISE,),
        "Patrini, CVPR 2017", "Wrong labels from each class to a similar one.",
    ),
    Entry(
        "instance", "weathered.data.makers.instance_noise:InstanceNoise", "maker", (NOISE,),
        "Xia, NeurIPS 2020", "Wrong labels that depend on the input.",
    ),
    Entry(
        "long-tail", "weathered.data.makers.long_tail:LongTail", "maker", (TAIL,),
        "Cao, NeurIPS 2019", "Thin the classes to an exponential or step profile.",
    ),
    Entry(
        "open-set", "weathered.data.makers.open_set_noise:OpenSetNoise", "maker", (NOISE,),
        "Wang, CVPR 2018", "Images of another data set under the labels of this one.",
    ),
    Entry(
        "corrections", "weathered.data.makers.corrections:Corrections", "maker", (NOISE,),
        "textbook", "Labels that people have checked take the place of the given ones.",
    ),
    Entry(
        "corruption", "weathered.data.makers.corruption:Corruption", "maker", (ROBUST,),
        "Hendrycks, ICLR 2019", "One of 18 image corruptions at a severity from 1 to 5.",
    ),
)  # fmt: skip

TABLE: dict[str, Entry] = {entry.slug: entry for entry in ENTRIES}
ALIASES = {"ce": "cross-entropy", "generalized-cross-entropy": "gce", "sce": "symmetric-cross-entropy"}

TRAINING_SLOTS = ("sampler", "transform", "procedure", "loss", "reweight", "term", "stepper", "probe")

EXPORTS = {
    "AttackEnsemble": "weathered.attacks.attack_ensemble:AttackEnsemble",
    "Batch": "weathered.core.batch:Batch",
    "Dataset": "weathered.data.dataset:Dataset",
    "Procedure": "weathered.core.procedure:Procedure",
    "Run": "weathered.core.run:Run",
    "Settings": "weathered.core.settings:Settings",
    "Target": "weathered.core.target:Target",
    "Traits": "weathered.core.facts:Traits",
    "build_model": "weathered.nn.build:build_model",
    "fit": "weathered.core.fit:fit",
    "load": "weathered.data.sources:load",
    "load_pair": "weathered.data.sources:load_pair",
    "TemperatureScaling": "weathered.procedures.temperature_scaling:TemperatureScaling",
    "load_run": "weathered.loaded_run:load_run",
    "train": "weathered.training:train",
    "compare": "weathered.comparison:compare",
    **{entry.class_name: entry.path for entry in ENTRIES if entry.path},
}
"""What `from weathered import NAME` finds, imported when asked for."""
