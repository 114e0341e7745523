"""ERNIE 4.5: a softmax with a bias to choose, normalised over the chosen."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="ERNIE 4.5", model_type="ernie4_5_moe", corrected=True, shared=True)
