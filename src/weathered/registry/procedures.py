"""Procedures, which say what a training step does, and bundles around one."""

from weathered.registry.entry import CALIBRATION, MIX, NOISE, OOD, POISON, ROBUST, SHORTCUT, TAIL, Entry

PROCEDURES: tuple[Entry, ...] = (
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
        "chroma-vae", "weathered.procedures.chroma_vae:ChromaVAE", "procedure", (SHORTCUT,),
        "Yang, NeurIPS 2022", "A small block of latents takes the shortcut up, and the rest classifies.",
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
        "dd-backdoor", "weathered.procedures.dd_backdoor:BackdooredDistillation", "procedure", (POISON,),
        "Liu, NDSS 2023", "Distil the data into a few images, with or without a trigger planted in them.",
    ),
    Entry(
        "robust-vit-recipe", "", "bundle", (ROBUST,),
        "Debenedetti, SaTML 2023", "One-step adversarial training with a rising budget, smoothing and a large decay.",
        parts=("pgd-training", "label-smoothing", "large-decay", "no-bias-decay"),
        defaults=(("steps", 1), ("reach", 1.5), ("warm_up", 0.1)),
    ),
)  # fmt: skip
