"""Mixtral (arXiv:2401.04088): eight large experts, two per token."""

from fedmoe.models.families.family import Family

FAMILY = Family(name="Mixtral", model_type="mixtral")
