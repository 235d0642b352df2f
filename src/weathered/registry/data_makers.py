"""Makers of data with a known flaw, before training."""

from weathered.registry.entry import NOISE, POISON, ROBUST, SHORTCUT, TAIL, Entry

DATA_MAKERS: tuple[Entry, ...] = (
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
        "backdoor", "weathered.data.makers.backdoor:Backdoor", "maker", (POISON,),
        "Gu, arXiv 2017", "A patch on some images, which get the label of one class.",
    ),
    Entry(
        "corrections", "weathered.data.makers.corrections:Corrections", "maker", (NOISE,),
        "textbook", "Labels that people have checked take the place of the given ones.",
    ),
    Entry(
        "corruption", "weathered.data.makers.corruption:Corruption", "maker", (ROBUST,),
        "Hendrycks, ICLR 2019", "One of 18 image corruptions at a severity from 1 to 5.",
    ),
    Entry(
        "shortcut", "weathered.data.makers.shortcut:Shortcut", "maker", (SHORTCUT,),
        "Geirhos, Nature Machine Intelligence 2020", "A patch or colour that follows the label in training alone.",
    ),
)  # fmt: skip
