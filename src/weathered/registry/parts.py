"""Losses, weights, samplers, transforms, terms, tricks and what else fills a slot of a run."""

from weathered.registry.entry import CALIBRATION, MIX, NOISE, OOD, ROBUST, TAIL, Entry

PARTS: tuple[Entry, ...] = (
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
        "large-decay", "weathered.tricks.large_decay:LargeDecay", "trick", (ROBUST,),
        "Debenedetti, SaTML 2023", "A decoupled weight decay of 0.5, ten times the usual.", card="robust-vit-recipe",
        claimed=False,
    ),
)  # fmt: skip
