"""MiniMax-M2: sigmoid scores with a bias to choose, without groups."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="MiniMax-M2", model_type="minimax_m2", scores="sigmoid", corrected=True)
